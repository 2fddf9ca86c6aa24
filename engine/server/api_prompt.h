// Prompts: text, chats and token ids -> the tokens the engine gets. Costly: for a worker.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/server/api_request.h"
#include "engine/server/request_engine.h"

namespace weir::server {

struct PreparedPrompt {
  std::vector<int32_t> tokens;  // at least one, below max_model_len
  std::string text;             // what `echo` shows
  uint32_t max_tokens = 0;      // at least one; with |tokens| at most max_model_len
};

// The tokens of |request|'s prompts or messages. 400: no tokenizer, no template, the template
// refused, an empty prompt, or one that leaves no room for the tokens asked for.
FieldError PreparePrompts(const ServedModel& model, const ApiRequest& request,
                          std::vector<PreparedPrompt>* out);

// Bodies of /tokenize and /detokenize; error as above.
FieldError TokenizeReply(const ServedModel& model, const ApiRequest& request, std::string* body);
FieldError DetokenizeReply(const ServedModel& model, const ApiRequest& request, std::string* body);

}  // namespace weir::server
