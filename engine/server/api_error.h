// ApiError: what went wrong with a request, as the client is told.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "engine/server/http.h"
#include "vmm/status.h"

namespace weir::server {

// Whether a client may send the same request again by itself: openai-python and others obey the
// header `x-should-retry`, and retry every 429 and 5xx without it.
enum class Retry : uint8_t { kNo, kLater };

struct ApiError {
  unsigned status = 400;
  std::string message;  // names what was wrong and what is accepted; must be UTF-8
  std::string param;    // the field, or empty
  std::string code;     // OpenAI's name of the case, or empty
  Retry retry = Retry::kNo;
};

ApiError InvalidField(std::string param, std::string message);  // 400
// 404: |asked| is not |served|, the one model there is.
ApiError UnknownModel(std::string param, std::string_view asked, std::string_view served);

// {"error":{"message","type","param","code"}}
std::string ErrorJson(const ApiError& error);
// With Retry-After and x-should-retry where the status is 429 or 503.
HttpResponse ErrorResponse(const ApiError& error, uint32_t retry_after_s);

// RequestEngine::Admit or Submit refused.
ApiError RefusedError(const Status& status);
// A request ended with FinishReason::kError or, not by our wish, kCancelled (|status| ok).
ApiError EndedError(const Status& status);

}  // namespace weir::server
