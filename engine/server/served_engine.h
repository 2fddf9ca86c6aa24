// ServedEngine: the RequestEngine of the program, over an AsyncEngine and its metrics.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "engine/server/async_engine.h"
#include "engine/server/http.h"
#include "engine/server/metrics.h"
#include "engine/server/request_engine.h"

namespace weir::server {

// Owns nothing: |engine|, |metrics| and the HTTP server outlive every call.
class ServedEngine final : public RequestEngine {
 public:
  ServedEngine(AsyncEngine& engine, const ServerMetrics& metrics)
      : engine_(engine), metrics_(metrics) {}

  Result<std::unique_ptr<QueuePlace>> Admit(const std::string& tenant) override;
  Result<uint64_t> Submit(std::unique_ptr<QueuePlace> place, AsyncRequest request,
                          std::shared_ptr<OutputSink> sink) override;
  void Cancel(uint64_t ticket) override { engine_.Cancel(ticket); }
  EngineState state() const override;
  std::string RenderMetrics() const override;

  // Whose figures the metrics show from now on; null: none.
  void set_http(const HttpServer* http) { http_ = http; }

 private:
  AsyncEngine& engine_;
  const ServerMetrics& metrics_;
  std::atomic<const HttpServer*> http_{nullptr};
};

}  // namespace weir::server
