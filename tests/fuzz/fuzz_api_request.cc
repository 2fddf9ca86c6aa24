// Any bytes as the body of a request to each endpoint. What is accepted holds what the limits say;
// what is refused names a status and gives a body that is JSON.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <nlohmann/json.hpp>

#include "engine/server/api_error.h"
#include "engine/server/api_request.h"
#include "vmm/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  constexpr weir::server::RequestLimits kLimits{.vocab_size = 1000, .max_model_len = 2048};
  for (const auto endpoint : {weir::server::kCompletions, weir::server::kChat,
                              weir::server::kTokenize, weir::server::kDetokenize}) {
    weir::server::ApiRequest request;
    if (const auto error = weir::server::ParseRequest(endpoint, body, kLimits, &request)) {
      WEIR_CHECK(error->status >= 400 && error->status < 500, "the client's fault");
      WEIR_CHECK(nlohmann::json::accept(weir::server::ErrorJson(*error)), "an error is JSON");
      continue;
    }
    WEIR_CHECK(request.n >= 1 && request.n <= weir::server::kMaxN, "n");
    for (const weir::server::Prompt& prompt : request.prompts) {
      for (const int32_t token : prompt.tokens) {
        WEIR_CHECK(token >= 0 && token < 1000, "token ids are in the vocabulary");
      }
    }
  }
  return 0;
}
