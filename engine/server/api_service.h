// ApiService: the OpenAI-compatible API over HttpExchange and RequestEngine.
//
//   auto api = ApiService::Create(engine, model, options);
//   HttpServer::Start(http, [&](auto exchange) { (*api)->Handle(std::move(exchange)); });
//
// Life of a generation request: route, key and place in the queue on the I/O thread; JSON, chat
// template and tokenizer on a worker; outputs on the engine's thread, which formats and writes
// them. docs/api.md lists routes and fields.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/server/http.h"
#include "engine/server/request_engine.h"
#include "vmm/status.h"
#include "vmm/types.h"

namespace weir::server {

// One client: who it is and what proves it. The key itself is not kept.
struct ApiKey {
  std::string tenant;  // distinct names are distinct tenants: queue share, prefix cache
  std::array<uint8_t, 32> sha256{};

  // The digest of |secret|, as clients send it after "Bearer ".
  static ApiKey FromSecret(std::string tenant, std::string_view secret);
  // |hex|: 64 hexadecimal digits. kInvalidArgument otherwise.
  static Result<ApiKey> FromDigest(std::string tenant, std::string_view hex);
};

// What is known about a request when its answer is complete; for logs and metrics. No content.
struct RequestRecord {
  std::string request_id;
  std::string tenant;      // "" if no key was accepted
  std::string_view route;  // "POST /v1/completions"; "" if there is none
  std::string peer;
  unsigned status = 0;   // 499: the client left before the answer was complete
  std::string error;     // message of the error, or ""
  uint32_t choices = 0;  // generation requests: what was asked, and what came of it
  uint64_t prompt_tokens = 0;
  uint64_t cached_tokens = 0;
  uint64_t completion_tokens = 0;
  TimeNs received_ns = 0;  // monotonic
  TimeNs finished_ns = 0;
};

struct ApiOptions {
  std::vector<ApiKey> keys;                // empty: everybody may call, as one tenant
  std::string version;                     // GET /version
  unsigned workers = 2;                    // threads that parse and tokenize
  uint32_t max_pending = 1024;             // requests that wait for a worker; more are 503
  uint64_t max_pending_bytes = 256 << 20;  // of their bodies
  uint32_t retry_after_s = 1;              // of 429 and 503
  // Called once for each request, from any thread; must not block. May be empty.
  std::function<void(const RequestRecord&)> on_request_end;
};

class ApiService {
 public:
  // kInvalidArgument: no model id, or two keys with one digest.
  static Result<std::unique_ptr<ApiService>> Create(std::shared_ptr<RequestEngine> engine,
                                                    ServedModel model, ApiOptions options);
  virtual ~ApiService() = default;  // after the HTTP server stopped; joins the workers
  // Never blocks; the answer comes from any thread.
  virtual void Handle(std::shared_ptr<HttpExchange> exchange) = 0;
  // Requests accepted whose answer is not complete: what a drain waits for beside the engine.
  virtual uint32_t in_flight() const = 0;
};

}  // namespace weir::server
