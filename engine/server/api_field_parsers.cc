#include "engine/server/api_field_parsers.h"

#include <charconv>
#include <cmath>
#include <utility>

#include <nlohmann/json.hpp>

namespace weir::server {
namespace {

using nlohmann::json;

constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 256;
constexpr size_t kMaxStopTokens = 256;
constexpr size_t kMaxBiases = 1024;

std::string At(std::string_view field, size_t index) {
  return std::string(field) + "[" + std::to_string(index) + "]";
}

FieldError CheckToken(const std::string& place, const json& value, const RequestLimits& limits) {
  if (IsInteger(value, 0, static_cast<double>(limits.vocab_size) - 1)) return {};
  return InvalidField(place, place + " must be a token id in [0, " +
                                 std::to_string(limits.vocab_size) + "), got " + Describe(value));
}

FieldError ReadTokens(const std::string& place, const json& list, const RequestLimits& limits,
                      std::vector<int32_t>* out) {
  out->reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    if (FieldError error = CheckToken(At(place, i), list[i], limits)) return error;
    out->push_back(list[i].get<int32_t>());
  }
  return {};
}

// content: a text, or parts of type text, which are joined by line feeds as vLLM does for templates
// that take text only.
FieldError FlattenContent(const std::string& place, json* message) {
  const std::string field = place + ".content";
  const auto content = message->find("content");
  const bool absent = content == message->end() || content->is_null();
  if (absent && (*message)["role"] == "assistant") {
    (*message)["content"] = "";
    return {};
  }
  if (!absent && content->is_string()) return {};
  if (absent || !content->is_array()) {
    return InvalidField(field, field + " must be a string or a list of text parts, got " +
                                   (absent ? "nothing" : Describe(*content)));
  }
  std::string text;
  for (size_t i = 0; i < content->size(); ++i) {
    const json& part = (*content)[i];
    const std::string where = At(field, i);
    const auto type = part.is_object() ? part.find("type") : part.end();
    if (!part.is_object() || type == part.end() || *type != "text") {
      return InvalidField(where, where +
                                     " must be {\"type\": \"text\", \"text\": ...}: this model "
                                     "reads text only");
    }
    const auto value = part.find("text");
    if (value == part.end() || !value->is_string()) {
      return InvalidField(where + ".text", where + ".text must be a string");
    }
    if (i > 0) text += '\n';
    text += value->get_ref<const std::string&>();
  }
  *content = std::move(text);
  return {};
}

}  // namespace

std::string Describe(const json& value) {
  switch (value.type()) {
    case json::value_t::null: return "null";
    case json::value_t::boolean: return value.get<bool>() ? "true" : "false";
    case json::value_t::string: return "a string";
    case json::value_t::array: return "a list";
    case json::value_t::object: return "an object";
    default: return value.dump();  // a number
  }
}

bool IsInteger(const json& value, double min, double max) {
  if (!value.is_number()) return false;
  const double number = value.get<double>();
  return number >= min && number <= max && std::floor(number) == number;
}

FieldError ParsePrompt(const json& value, const RequestLimits& limits, ApiRequest* out) {
  static constexpr char kAccepted[] =
      "prompt must be a string, a list of token ids, a list of strings or a list of lists of token "
      "ids";
  if (value.is_string()) {
    out->prompts.push_back({.text = value.get<std::string>()});
    return {};
  }
  if (!value.is_array()) return InvalidField("prompt", kAccepted + (", got " + Describe(value)));
  if (value.empty()) return InvalidField("prompt", "prompt must not be an empty list");
  if (value[0].is_number()) {
    Prompt prompt{.is_tokens = true};
    if (FieldError error = ReadTokens("prompt", value, limits, &prompt.tokens)) return error;
    out->prompts.push_back(std::move(prompt));
    return {};
  }
  if (value.size() > kMaxChoices) {
    return InvalidField("prompt", "prompt must hold at most " + std::to_string(kMaxChoices) +
                                      " prompts, got " + std::to_string(value.size()));
  }
  for (size_t i = 0; i < value.size(); ++i) {
    const json& item = value[i];
    if (item.type() != value[0].type() || !(item.is_string() || item.is_array())) {
      return InvalidField(At("prompt", i), kAccepted + (", got a list with " + Describe(item)));
    }
    Prompt prompt{.is_tokens = item.is_array()};
    if (prompt.is_tokens) {
      if (FieldError error = ReadTokens(At("prompt", i), item, limits, &prompt.tokens)) {
        return error;
      }
    } else {
      prompt.text = item.get<std::string>();
    }
    out->prompts.push_back(std::move(prompt));
  }
  return {};
}

FieldError ParseMessages(const json& value, const RequestLimits&, ApiRequest* out) {
  if (!value.is_array() || value.empty() || value.size() > kMaxMessages) {
    return InvalidField("messages", "messages must be a list of 1 to " +
                                        std::to_string(kMaxMessages) + " messages");
  }
  json messages = json::array();
  for (size_t i = 0; i < value.size(); ++i) {
    const std::string place = At("messages", i);
    if (!value[i].is_object()) {
      return InvalidField(
          place, place + " must be an object with role and content, got " + Describe(value[i]));
    }
    json message = value[i];
    const auto role = message.find("role");
    if (role == message.end() || !role->is_string() || role->get_ref<std::string&>().empty()) {
      return InvalidField(place + ".role", place + ".role must be a string such as \"user\"");
    }
    const auto speaker = message.find("name");
    if (speaker != message.end() && speaker->is_null()) {
      message.erase(speaker);
    } else if (speaker != message.end() && !speaker->is_string()) {
      return InvalidField(place + ".name", place + ".name must be a string");
    }
    for (const char* name : {"tool_calls", "function_call"}) {
      const auto calls = message.find(name);
      if (calls != message.end() && !calls->is_null() && !calls->empty()) {
        return InvalidField(place + "." + name,
                            place + "." + name + ": tool calls are not supported");
      }
    }
    if (FieldError error = FlattenContent(place, &message)) return error;
    messages.push_back(std::move(message));
  }
  out->messages_json = messages.dump();  // valid UTF-8: it was parsed
  return {};
}

FieldError ParseTokens(const json& value, const RequestLimits& limits, ApiRequest* out) {
  if (!value.is_array()) {
    return InvalidField("tokens", "tokens must be a list of token ids, got " + Describe(value));
  }
  Prompt prompt{.is_tokens = true};
  if (FieldError error = ReadTokens("tokens", value, limits, &prompt.tokens)) return error;
  out->prompts.push_back(std::move(prompt));
  return {};
}

FieldError ParseSeed(const json& value, const RequestLimits&, ApiRequest* out) {
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX);
  if (!fits) {
    return InvalidField(
        "seed", "seed must be an integer between -2^63 and 2^63 - 1, got " + Describe(value));
  }
  // Negative seeds are seeds of their own.
  out->sampling.seed = static_cast<uint64_t>(value.get<int64_t>());
  return {};
}

FieldError ParseLogitBias(const json& value, const RequestLimits& limits, ApiRequest* out) {
  if (!value.is_object() || value.size() > kMaxBiases) {
    return InvalidField("logit_bias", "logit_bias must be an object of at most " +
                                          std::to_string(kMaxBiases) + " token ids");
  }
  for (const auto& [key, bias] : value.items()) {
    uint32_t token = 0;
    const auto end = std::from_chars(key.data(), key.data() + key.size(), token);
    if (end.ec != std::errc() || end.ptr != key.data() + key.size() || token >= limits.vocab_size) {
      return InvalidField("logit_bias", "logit_bias must name token ids in [0, " +
                                            std::to_string(limits.vocab_size) +
                                            "), got another key");
    }
    const double number = bias.is_number() ? bias.get<double>() : NAN;
    if (!(number >= -100 && number <= 100)) {
      return InvalidField("logit_bias", "logit_bias of token " + key +
                                            " must be a number between -100 and 100, got " +
                                            Describe(bias));
    }
    // "1" and "01" name one token.
    if (!out->sampling.logit_bias.emplace(static_cast<int32_t>(token), static_cast<float>(number))
             .second) {
      return InvalidField("logit_bias",
                          "logit_bias names token " + std::to_string(token) + " twice");
    }
  }
  return {};
}

FieldError ParseStop(const json& value, const RequestLimits&, ApiRequest* out) {
  const json list = value.is_string() ? json::array({value}) : value;
  if (!list.is_array() || list.size() > kMaxStops) {
    return InvalidField("stop", "stop must be a string or a list of at most " +
                                    std::to_string(kMaxStops) + " strings");
  }
  for (const json& item : list) {
    const size_t bytes = item.is_string() ? item.get_ref<const std::string&>().size() : 0;
    if (bytes == 0 || bytes > kMaxStopBytes) {
      return InvalidField(
          "stop", "stop must hold strings of 1 to " + std::to_string(kMaxStopBytes) +
                      " bytes, got " +
                      (item.is_string() ? "one of " + std::to_string(bytes) : Describe(item)));
    }
    out->sampling.stop.push_back(item.get<std::string>());
  }
  return {};
}

FieldError ParseStopTokenIds(const json& value, const RequestLimits& limits, ApiRequest* out) {
  if (!value.is_array() || value.size() > kMaxStopTokens) {
    return InvalidField("stop_token_ids", "stop_token_ids must be a list of at most " +
                                              std::to_string(kMaxStopTokens) + " token ids");
  }
  return ReadTokens("stop_token_ids", value, limits, &out->sampling.stop_token_ids);
}

FieldError ParseStreamOptions(const json& value, const RequestLimits&, ApiRequest* out) {
  if (!value.is_object()) {
    return InvalidField("stream_options",
                        "stream_options must be an object, got " + Describe(value));
  }
  out->has_stream_options = true;
  const auto read = [&](const char* name, bool* flag) -> FieldError {
    const auto it = value.find(name);
    if (it == value.end() || it->is_null()) return {};
    const std::string place = std::string("stream_options.") + name;
    if (!it->is_boolean()) {
      return InvalidField(place, place + " must be true or false, got " + Describe(*it));
    }
    *flag = it->get<bool>();
    return {};
  };
  if (FieldError error = read("include_usage", &out->include_usage)) return error;
  return read("continuous_usage_stats", &out->continuous_usage);
}

FieldError ParseKwargs(const json& value, const RequestLimits&, ApiRequest* out) {
  if (!value.is_object()) {
    return InvalidField("chat_template_kwargs",
                        "chat_template_kwargs must be an object, got " + Describe(value));
  }
  // The program is the model's; a request gives values only.
  if (value.contains("chat_template")) {
    return InvalidField("chat_template_kwargs",
                        "chat_template_kwargs must not hold chat_template: the model's is used");
  }
  out->template_kwargs_json = value.dump();
  return {};
}

}  // namespace weir::server
