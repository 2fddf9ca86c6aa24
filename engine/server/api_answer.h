// One HTTP request on its way to an answer, and what all of them share.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "engine/server/api_auth.h"
#include "engine/server/api_error.h"
#include "engine/server/api_service.h"
#include "engine/server/worker_pool.h"

namespace weir::server {

// What every request uses; lives until the last one is gone. Immutable but for its counters.
struct ApiContext {
  ApiContext(std::shared_ptr<RequestEngine> e, ServedModel m, ApiOptions o)
      : engine(std::move(e)), model(std::move(m)), options(std::move(o)), keys(options.keys) {}

  std::shared_ptr<RequestEngine> engine;
  const ServedModel model;
  const ApiOptions options;
  const KeyRing keys;
  const TenantSalts salts;
  WorkerPool* workers = nullptr;  // of the service; used only while it lives
  std::atomic<uint32_t> in_flight{0};
};

// Represents the answer to one request: its id, its record, and the right to complete it once.
// Thread-safe as HttpExchange is; the record's fields are written by one thread at a time.
class Answer {
 public:
  Answer(std::shared_ptr<ApiContext> context, std::shared_ptr<HttpExchange> exchange);
  ~Answer();
  Answer(const Answer&) = delete;
  Answer& operator=(const Answer&) = delete;

  ApiContext& context() const { return *context_; }
  const HttpRequest& request() const { return exchange_->request(); }
  HttpExchange& exchange() const { return *exchange_; }
  RequestRecord& record() { return record_; }

  void Reply(HttpResponse response);
  void Fail(const ApiError& error);
  void BeginStream();
  // Ends a stream: status is that of |record|.
  void EndStream();
  void Abort(unsigned status, std::string why);
  void ClientLeft();
  bool complete() const { return complete_.load(); }

 private:
  bool Complete(unsigned status);
  void Report();

  std::shared_ptr<ApiContext> context_;
  std::shared_ptr<HttpExchange> exchange_;
  RequestRecord record_;
  std::atomic<bool> complete_{false};
};

}  // namespace weir::server
