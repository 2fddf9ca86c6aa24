#include "engine/server/api_prompt.h"

#include <algorithm>
#include <utility>

#include "engine/server/json_writer.h"

namespace weir::server {
namespace {

const char* FieldOf(const ApiRequest& request) {
  return request.messages_json.empty() ? "prompt" : "messages";
}

FieldError Encode(const ServedModel& model, const ApiRequest& request, const std::string& text,
                  bool add_special_tokens, std::vector<int32_t>* tokens) {
  if (model.tokenizer == nullptr) {
    return InvalidField(FieldOf(request), "this model has no tokenizer: give token ids");
  }
  auto encoded = model.tokenizer->Encode(text, {.add_special_tokens = add_special_tokens});
  if (!encoded.ok()) return InvalidField(FieldOf(request), encoded.status().message());
  *tokens = std::move(*encoded);
  return {};
}

FieldError RenderChat(const ServedModel& model, const ApiRequest& request, std::string* text) {
  if (model.chat_template == nullptr) {
    return InvalidField("messages", "chat is not available: " + model.chat_template_error);
  }
  ChatInputs inputs;
  inputs.messages_json = request.messages_json;
  inputs.extra_json = request.template_kwargs_json;
  inputs.add_generation_prompt = request.add_generation_prompt;
  if (model.tokenizer != nullptr) {
    if (const auto bos = model.tokenizer->bos_id()) inputs.bos_token = model.tokenizer->Piece(*bos);
    if (!model.tokenizer->eos_ids().empty()) {
      inputs.eos_token = model.tokenizer->Piece(model.tokenizer->eos_ids().front());
    }
  }
  auto rendered = model.chat_template->Render(inputs);
  if (!rendered.ok()) return InvalidField("messages", rendered.status().message());
  *text = std::move(*rendered);
  return {};
}

// All prompts as tokens, of any length.
FieldError EncodeAll(const ServedModel& model, const ApiRequest& request,
                     std::vector<PreparedPrompt>* out) {
  if (!request.messages_json.empty()) {
    PreparedPrompt prompt;
    if (FieldError error = RenderChat(model, request, &prompt.text)) return error;
    if (FieldError error = Encode(model, request, prompt.text,
                                  request.add_special_tokens.value_or(false), &prompt.tokens)) {
      return error;
    }
    out->push_back(std::move(prompt));
    return {};
  }
  for (const Prompt& given : request.prompts) {
    PreparedPrompt prompt;
    if (given.is_tokens) {
      prompt.tokens = given.tokens;
      if (request.echo && model.tokenizer != nullptr) {
        prompt.text = model.tokenizer->Decode(given.tokens, {});
      }
    } else {
      if (FieldError error = Encode(model, request, given.text,
                                    request.add_special_tokens.value_or(true), &prompt.tokens)) {
        return error;
      }
      prompt.text = given.text;
    }
    out->push_back(std::move(prompt));
  }
  return {};
}

FieldError TooLong(const ServedModel& model, std::string field, const std::string& what) {
  ApiError error =
      InvalidField(std::move(field), what + "; prompt and output of one request have at most " +
                                         std::to_string(model.max_model_len) + " tokens here");
  error.code = "context_length_exceeded";
  return error;
}

// How many tokens may be generated: as many as asked for, or the default as far as there is room.
FieldError LimitOutput(const ServedModel& model, const ApiRequest& request,
                       PreparedPrompt* prompt) {
  const std::string field = FieldOf(request);
  const uint64_t size = prompt->tokens.size();
  if (size >= model.max_model_len) {
    return TooLong(
        model, field,
        field + " has " + std::to_string(size) + " tokens, which leaves none of them to generate");
  }
  const auto room = static_cast<uint32_t>(model.max_model_len - size);
  const SamplingParams& sampling = request.sampling;
  for (const auto& [name, asked] : {std::pair{request.max_tokens_field(), sampling.max_tokens},
                                    std::pair{"min_tokens", sampling.min_tokens}}) {
    if (asked <= room) continue;
    return TooLong(model, name,
                   std::string(name) + " is " + std::to_string(asked) + " and " + field + " has " +
                       std::to_string(size) + " tokens, which leaves room for " +
                       std::to_string(room));
  }
  prompt->max_tokens = sampling.max_tokens;
  if (sampling.max_tokens != 0) return {};
  prompt->max_tokens = room;
  if (request.endpoint == kCompletions) {
    prompt->max_tokens = std::min(room, std::max(kDefaultCompletionTokens, sampling.min_tokens));
  }
  return {};
}

}  // namespace

FieldError PreparePrompts(const ServedModel& model, const ApiRequest& request,
                          std::vector<PreparedPrompt>* out) {
  if (!request.sampling.stop.empty() && model.tokenizer == nullptr) {
    return InvalidField("stop", "stop needs a tokenizer, which this model lacks");
  }
  if (FieldError error = EncodeAll(model, request, out)) return error;
  for (PreparedPrompt& prompt : *out) {
    if (prompt.tokens.empty()) {
      return InvalidField(FieldOf(request), std::string(FieldOf(request)) + " has no tokens");
    }
    if (FieldError error = LimitOutput(model, request, &prompt)) return error;
  }
  return {};
}

FieldError TokenizeReply(const ServedModel& model, const ApiRequest& request, std::string* body) {
  std::vector<PreparedPrompt> prompts;
  if (FieldError error = EncodeAll(model, request, &prompts)) return error;
  const std::vector<int32_t>& tokens = prompts.front().tokens;
  *body = R"({"count":)";
  AppendJsonNumber(static_cast<uint64_t>(tokens.size()), body);
  *body += R"(,"max_model_len":)";
  AppendJsonNumber(model.max_model_len, body);
  *body += R"(,"tokens":)";
  AppendJsonArray(tokens, body);
  *body += R"(,"token_strs":)";
  if (request.return_token_strs) {
    body->push_back('[');
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (i > 0) body->push_back(',');
      AppendJsonString(model.tokenizer->Piece(tokens[i]), body);
    }
    body->push_back(']');
  } else {
    *body += "null";
  }
  body->push_back('}');
  return {};
}

FieldError DetokenizeReply(const ServedModel& model, const ApiRequest& request, std::string* body) {
  if (model.tokenizer == nullptr) {
    return InvalidField("tokens", "this model has no tokenizer");
  }
  *body = R"({"prompt":)";
  AppendJsonString(model.tokenizer->Decode(request.prompts.front().tokens, {}), body);
  body->push_back('}');
  return {};
}

}  // namespace weir::server
