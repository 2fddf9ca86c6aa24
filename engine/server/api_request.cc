#include "engine/server/api_request.h"

#include <charconv>
#include <utility>

#include <nlohmann/json.hpp>

#include "engine/model/json.h"
#include "engine/server/api_field_parsers.h"

namespace weir::server {
namespace {

using nlohmann::json;

std::string Number(double value) {
  char text[32];
  const auto end = std::abs(value) < 1e15
                       ? std::to_chars(text, text + sizeof(text), value, std::chars_format::fixed)
                       : std::to_chars(text, text + sizeof(text), value);
  return {text, end.ptr};
}

std::string Range(const FieldSpec& field) {
  if (field.min_excluded) return "above " + Number(field.min) + " and at most " + Number(field.max);
  return "between " + Number(field.min) + " and " + Number(field.max);
}

FieldError CheckKind(const FieldSpec& field, const json& value) {
  const std::string name(field.name);
  const auto refuse = [&](const std::string& accepted) {
    return InvalidField(name, name + " must be " + accepted + ", got " + Describe(value));
  };
  switch (field.kind) {
    case FieldKind::kBool:
      if (!value.is_boolean()) return refuse("true or false");
      return {};
    case FieldKind::kInteger:
      if (!IsInteger(value, field.min, field.max)) return refuse("an integer " + Range(field));
      return {};
    case FieldKind::kNumber: {
      const double number = value.is_number() ? value.get<double>() : -1e300;
      const bool above = field.min_excluded ? number > field.min : number >= field.min;
      if (!above || number > field.max) return refuse("a number " + Range(field));
      return {};
    }
    case FieldKind::kString: {
      if (!value.is_string()) return refuse("a string");
      const auto bytes = static_cast<double>(value.get_ref<const std::string&>().size());
      if (bytes < field.min || bytes > field.max) {
        return InvalidField(name, name + " must have " + Number(field.min) + " to " +
                                      Number(field.max) + " bytes, got " + Number(bytes));
      }
      return {};
    }
    case FieldKind::kNeutral:
      for (const json& neutral : json::parse(field.schema)) {
        if (value == neutral) return {};
      }
      return InvalidField(
          name, name + " is not supported (" + std::string(field.about) + "); leave it out");
    case FieldKind::kCustom: return {};
  }
  return {};
}

FieldError CheckPrompts(Endpoint endpoint, const json& body, const ApiRequest& r) {
  const auto given = [&](const char* name) {
    const auto it = body.find(name);
    return it != body.end() && !it->is_null();
  };
  switch (endpoint) {
    case kCompletions:
      if (!given("prompt")) return InvalidField("prompt", "prompt is missing");
      break;
    case kChat:
      if (!given("messages")) return InvalidField("messages", "messages is missing");
      break;
    case kTokenize:
      if (given("prompt") == given("messages")) {
        return InvalidField("prompt", "either prompt or messages must be given");
      }
      break;
    case kDetokenize:
      if (!given("tokens")) return InvalidField("tokens", "tokens is missing");
      break;
  }
  const uint64_t prompts = std::max<size_t>(1, r.prompts.size());
  if (prompts * r.n > kMaxChoices) {
    return InvalidField("n", "prompts times n must be at most " + std::to_string(kMaxChoices) +
                                 ", got " + std::to_string(prompts) + " * " + std::to_string(r.n));
  }
  return {};
}

// Fields that depend on each other.
FieldError Combine(Endpoint endpoint, const RequestLimits& limits, ApiRequest* r) {
  SamplingParams& sampling = r->sampling;
  if (r->max_completion_tokens) sampling.max_tokens = *r->max_completion_tokens;
  if (sampling.max_tokens > 0 && sampling.min_tokens > sampling.max_tokens) {
    return InvalidField("min_tokens", std::string("min_tokens must be at most ") +
                                          r->max_tokens_field() + " (" +
                                          std::to_string(sampling.max_tokens) + "), got " +
                                          std::to_string(sampling.min_tokens));
  }
  if (sampling.min_tokens >= limits.max_model_len) {
    return InvalidField("min_tokens", "min_tokens must be below the model's context of " +
                                          std::to_string(limits.max_model_len) + " tokens, got " +
                                          std::to_string(sampling.min_tokens));
  }
  if (endpoint == kChat) {
    if (r->top_logprobs > 0 && !r->has_chat_logprobs) {
      return InvalidField("top_logprobs", "top_logprobs needs logprobs: true");
    }
    if (r->has_chat_logprobs) sampling.logprobs = std::max(0, r->top_logprobs);
  }
  if (r->echo && sampling.logprobs >= 0) {
    return InvalidField("echo",
                        "echo together with logprobs is not supported: the prompt's "
                        "log-probabilities are not computed");
  }
  if (r->best_of && *r->best_of != r->n) {
    return InvalidField("best_of", "best_of is not supported: it must equal n (" +
                                       std::to_string(r->n) + "), got " +
                                       std::to_string(*r->best_of));
  }
  if (r->has_stream_options && !r->stream) {
    return InvalidField("stream_options", "stream_options needs stream: true");
  }
  if (const Status status = ValidateSampling(sampling, limits.vocab_size); !status.ok()) {
    const std::string& message = status.message();
    return InvalidField(message.substr(0, message.find(' ')), message);
  }
  return {};
}

}  // namespace

FieldError ParseRequest(Endpoint endpoint, std::string_view body, const RequestLimits& limits,
                        ApiRequest* out) {
  Result<json> parsed = ParseJson(body);
  if (!parsed.ok()) {
    // What follows quotes the body, whose text must not get into the log.
    const std::string& message = parsed.status().message();
    return ApiError{.status = 400, .message = message.substr(0, message.find("; last read: "))};
  }
  if (!parsed->is_object()) {
    return ApiError{.status = 400,
                    .message = "the body must be a JSON object, got " + Describe(*parsed)};
  }
  out->endpoint = endpoint;
  for (const FieldSpec& field : RequestFields()) {
    if ((field.where & endpoint) == 0) continue;
    const auto it = parsed->find(field.name);
    if (it == parsed->end() || it->is_null()) continue;
    if (FieldError error = CheckKind(field, *it)) return error;
    if (FieldError error = field.apply(*it, limits, out)) return error;
  }
  if (FieldError error = CheckPrompts(endpoint, *parsed, *out)) return error;
  return Combine(endpoint, limits, out);
}

json RequestSchema(Endpoint endpoint, std::string_view model_id, const RequestLimits& limits) {
  json properties = json::object();
  for (const FieldSpec& field : RequestFields()) {
    if ((field.where & endpoint) == 0) continue;
    json schema;
    switch (field.kind) {
      case FieldKind::kBool: schema = {{"type", {"boolean", "null"}}}; break;
      case FieldKind::kInteger:
        schema = {{"type", {"integer", "null"}},
                  {"minimum", static_cast<int64_t>(field.min)},
                  {"maximum", static_cast<int64_t>(field.max)}};
        break;
      case FieldKind::kNumber:
        schema = {{"type", {"number", "null"}}, {"maximum", field.max}};
        schema[field.min_excluded ? "exclusiveMinimum" : "minimum"] = field.min;
        break;
      case FieldKind::kString:
        schema = {{"type", {"string", "null"}},
                  {"minLength", static_cast<int64_t>(field.min)},
                  {"maxLength", static_cast<int64_t>(field.max)}};
        break;
      case FieldKind::kCustom: schema = json::parse(field.schema); break;
      case FieldKind::kNeutral: {
        schema = {{"enum", json::parse(field.schema)}};
        schema["enum"].push_back(nullptr);
        break;
      }
    }
    schema["description"] =
        (field.kind == FieldKind::kNeutral ? "not supported: " : "") + std::string(field.about);
    properties[std::string(field.name)] = std::move(schema);
  }
  properties["model"]["enum"] = {model_id, nullptr};
  const auto bound_tokens = [&](json* schema) { (*schema)["maximum"] = limits.vocab_size - 1; };
  if (endpoint == kCompletions) {
    json& forms = properties["prompt"]["anyOf"];
    bound_tokens(&forms[1]["items"]);
    bound_tokens(&forms[3]["items"]["items"]);
  }
  if (endpoint == kDetokenize) bound_tokens(&properties["tokens"]["items"]);
  if (properties.contains("stop_token_ids")) bound_tokens(&properties["stop_token_ids"]["items"]);
  json schema = {{"type", "object"}, {"properties", std::move(properties)}};
  switch (endpoint) {
    case kCompletions: schema["required"] = {"prompt"}; break;
    case kChat: schema["required"] = {"messages"}; break;
    case kTokenize:
      schema["oneOf"] = {{{"required", {"prompt"}}}, {{"required", {"messages"}}}};
      break;
    case kDetokenize: schema["required"] = {"tokens"}; break;
  }
  return schema;
}

}  // namespace weir::server
