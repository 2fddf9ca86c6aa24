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
// Thread-safe as HttpExchange is. Status and error of the record are written by whoever completes
// the answer; its other fields by one thread at a time, and not while another one completes it.
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

  void Reply(HttpResponse response, const std::string& error = {});
  void Fail(const ApiError& error);
  void BeginStream();
  // Ends a stream with |last|. An error that |last| tells goes into the record.
  void EndStream(std::string last, const std::string& error = {});
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
