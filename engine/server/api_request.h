// Typed requests: the JSON body of a POST, checked field by field.
//
// One table (api_fields.cc) says for each field what is accepted; the parser, /openapi.json and the
// tests all read it. Fields it does not name are ignored, as OpenAI and vLLM do. Fields that would
// change the answer and are not implemented here are named in it and refused unless they hold their
// neutral value. Nothing is clamped silently.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "engine/sampler.h"
#include "engine/server/api_error.h"

namespace weir::server {

// Bits, so that a field can say where it belongs.
enum Endpoint : uint8_t {
  kCompletions = 1,
  kChat = 2,
  kTokenize = 4,
  kDetokenize = 8,
};

inline constexpr uint32_t kMaxN = 64;
inline constexpr uint32_t kMaxChoices = 256;  // prompts * n of one request
inline constexpr uint32_t kMaxMessages = 4096;
inline constexpr uint32_t kMaxDeadlineMs = 3'600'000;
inline constexpr uint32_t kDefaultCompletionTokens = 16;  // OpenAI's max_tokens of completions

// What depends on the model.
struct RequestLimits {
  uint32_t vocab_size = 0;
  uint32_t max_model_len = 0;
};

// One prompt: text, or token ids to be used as they are.
struct Prompt {
  bool is_tokens = false;
  std::string text;
  std::vector<int32_t> tokens;
};

// A checked request to one of the four endpoints; fields of others keep their defaults.
struct ApiRequest {
  Endpoint endpoint = kCompletions;
  std::string model;  // empty: not given
  std::vector<Prompt> prompts;
  std::string messages_json;         // chat: an array of messages whose content is a string
  std::string template_kwargs_json;  // an object, or empty
  bool add_generation_prompt = true;
  std::optional<bool> add_special_tokens;  // absent: true for text, false for chat
  uint32_t n = 1;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  bool echo = false;
  bool return_token_ids = false;
  bool return_token_strs = false;
  SamplingParams sampling;
  std::string cache_salt;
  int32_t priority = 0;
  uint32_t deadline_ms = 0;  // 0: the server's limit alone

  // While parsing: fields whose meaning depends on another one.
  bool has_chat_logprobs = false;
  bool has_stream_options = false;
  int32_t top_logprobs = -1;
  std::optional<uint32_t> best_of;
  std::optional<uint32_t> max_completion_tokens;

  // Which of the two fields sampling.max_tokens is from; for messages.
  const char* max_tokens_field() const {
    return max_completion_tokens ? "max_completion_tokens" : "max_tokens";
  }
};

using FieldError = std::optional<ApiError>;

enum class FieldKind : uint8_t {
  kBool,
  kInteger,  // min..max
  kNumber,   // min..max
  kString,   // min..max bytes
  kCustom,   // |schema| describes it, |apply| checks it
  kNeutral,  // not implemented: only the values in |schema|, a JSON array, are accepted
};

struct FieldSpec {
  std::string_view name;
  unsigned where;  // Endpoint bits
  FieldKind kind;
  double min = 0;
  double max = 0;
  bool min_excluded = false;
  std::string_view schema;  // JSON
  std::string_view about;
  // The value has passed kind, min and max, and is not null (null is: not given).
  FieldError (*apply)(const nlohmann::json& value, const RequestLimits& limits, ApiRequest* out);
};
std::span<const FieldSpec> RequestFields();

// Body -> request. |body| must be a JSON object: UTF-8, no duplicate keys, at most 64 levels.
FieldError ParseRequest(Endpoint endpoint, std::string_view body, const RequestLimits& limits,
                        ApiRequest* out);

// JSON Schema (2020-12) of one endpoint's body. |model_id| is the value `model` takes.
nlohmann::json RequestSchema(Endpoint endpoint, std::string_view model_id,
                             const RequestLimits& limits);

}  // namespace weir::server
