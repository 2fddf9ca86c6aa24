// The table of request fields: names, accepted values, where they go.
#include <nlohmann/json.hpp>

#include "engine/server/api_field_parsers.h"
#include "engine/server/api_request.h"

namespace weir::server {
namespace {

using nlohmann::json;

constexpr unsigned kGenerate = kCompletions | kChat;
constexpr unsigned kPrompted = kGenerate | kTokenize;
constexpr unsigned kAll = kPrompted | kDetokenize;
constexpr double kMaxInt32 = 2147483647.0;
constexpr double kMaxUint32 = 4294967295.0;

#define WEIR_SET(target, type)                                                 \
  [](const json& value, const RequestLimits&, ApiRequest* out) -> FieldError { \
    out->target = value.get<type>();                                           \
    return {};                                                                 \
  }

FieldError Ignore(const json&, const RequestLimits&, ApiRequest*) {
  return {};
}

constexpr FieldSpec Neutral(std::string_view name, unsigned where, std::string_view values,
                            std::string_view about) {
  return {name, where, FieldKind::kNeutral, 0, 0, false, values, about, &Ignore};
}

constexpr FieldSpec kFields[] = {
    {"model", kAll, FieldKind::kString, 1, 512, false, "", "the served model; absent: that one",
     WEIR_SET(model, std::string)},
    {"prompt", kCompletions, FieldKind::kCustom, 0, 0, false,
     R"({"anyOf":[{"type":"string"},{"type":"array","items":{"type":"integer","minimum":0}},
         {"type":"array","items":{"type":"string"}},
         {"type":"array","items":{"type":"array","items":{"type":"integer","minimum":0}}}]})",
     "a text, token ids, or a list of either", &ParsePrompt},
    {"prompt", kTokenize, FieldKind::kString, 0, 4 << 20, false, "", "the text to tokenize",
     [](const json& value, const RequestLimits&, ApiRequest* out) -> FieldError {
       out->prompts.push_back({.text = value.get<std::string>()});
       return {};
     }},
    {"messages", kChat | kTokenize, FieldKind::kCustom, 0, 0, false,
     R"({"type":"array","minItems":1,"items":{"type":"object","required":["role","content"],
         "properties":{"role":{"type":"string","minLength":1},"name":{"type":["string","null"]},
         "content":{"anyOf":[{"type":"string"},{"type":"array","items":{"type":"object",
         "required":["type","text"],"properties":{"type":{"const":"text"},
         "text":{"type":"string"}}}}]}}}})",
     "the conversation; content is a text or a list of text parts", &ParseMessages},
    {"tokens", kDetokenize, FieldKind::kCustom, 0, 0, false,
     R"({"type":"array","items":{"type":"integer","minimum":0}})", "the ids to turn into text",
     &ParseTokens},

    {"max_tokens", kGenerate, FieldKind::kInteger, 1, kMaxUint32, false, "",
     "most tokens to generate; default: 16 (completions), what there is room for (chat). Refused "
     "if "
     "the prompt leaves less room than was asked for",
     WEIR_SET(sampling.max_tokens, uint32_t)},
    {"max_completion_tokens", kGenerate, FieldKind::kInteger, 1, kMaxUint32, false, "",
     "the newer name of max_tokens; wins over it", WEIR_SET(max_completion_tokens, uint32_t)},
    {"min_tokens", kGenerate, FieldKind::kInteger, 0, kMaxUint32, false, "",
     "nothing but max_tokens ends the text before this many tokens",
     WEIR_SET(sampling.min_tokens, uint32_t)},
    {"temperature", kGenerate, FieldKind::kNumber, 0, 2, false, "", "0: the likeliest token always",
     WEIR_SET(sampling.temperature, double)},
    {"top_p", kGenerate, FieldKind::kNumber, 0, 1, true, "",
     "draw from the smallest set of tokens that holds this probability",
     WEIR_SET(sampling.top_p, double)},
    {"top_k", kGenerate, FieldKind::kInteger, -1, kMaxInt32, false, "",
     "draw from this many tokens; 0 or -1: all", WEIR_SET(sampling.top_k, int32_t)},
    {"min_p", kGenerate, FieldKind::kNumber, 0, 1, false, "",
     "drop tokens less likely than this times the likeliest", WEIR_SET(sampling.min_p, double)},
    {"presence_penalty", kGenerate, FieldKind::kNumber, -2, 2, false, "",
     "subtracted from the logit of every token generated before",
     WEIR_SET(sampling.presence_penalty, double)},
    {"frequency_penalty", kGenerate, FieldKind::kNumber, -2, 2, false, "",
     "subtracted once for each time a token was generated before",
     WEIR_SET(sampling.frequency_penalty, double)},
    // Far smaller ones would make logits infinite.
    {"repetition_penalty", kGenerate, FieldKind::kNumber, 0.01, 2, false, "",
     "divides (or multiplies, if negative) the logits of tokens in prompt and output",
     WEIR_SET(sampling.repetition_penalty, double)},
    {"seed", kGenerate, FieldKind::kCustom, 0, 0, false,
     R"({"type":["integer","null"],"minimum":-9223372036854775808,
         "maximum":9223372036854775807})",
     "the same seed and request give the same text; choice i draws with seed + i", &ParseSeed},
    {"logit_bias", kGenerate, FieldKind::kCustom, 0, 0, false,
     R"({"type":"object","maxProperties":1024,"propertyNames":{"pattern":"^[0-9]{1,9}$"},
         "additionalProperties":{"type":"number","minimum":-100,"maximum":100}})",
     "token id (as text) -> number added to its logit", &ParseLogitBias},
    {"stop", kGenerate, FieldKind::kCustom, 0, 0, false,
     R"({"anyOf":[{"type":"string","minLength":1,"maxLength":256},
         {"type":"array","maxItems":16,"items":{"type":"string","minLength":1,"maxLength":256}}]})",
     "the text ends before the first of these; at most 16 of 1 to 256 bytes", &ParseStop},
    {"stop_token_ids", kGenerate, FieldKind::kCustom, 0, 0, false,
     R"({"type":"array","maxItems":256,"items":{"type":"integer","minimum":0}})",
     "tokens that end the text", &ParseStopTokenIds},
    {"ignore_eos", kGenerate, FieldKind::kBool, 0, 0, false, "", "go on after the model's own end",
     WEIR_SET(sampling.ignore_eos, bool)},
    {"include_stop_str_in_output", kGenerate, FieldKind::kBool, 0, 0, false, "",
     "show what ended the text", WEIR_SET(sampling.include_stop_str_in_output, bool)},
    {"skip_special_tokens", kGenerate, FieldKind::kBool, 0, 0, false, "",
     "leave special tokens out of the text; default true",
     WEIR_SET(sampling.skip_special_tokens, bool)},
    {"logprobs", kCompletions, FieldKind::kInteger, 0, 20, false, "",
     "report log-probabilities: of each token and of this many likeliest ones",
     WEIR_SET(sampling.logprobs, int32_t)},
    {"logprobs", kChat, FieldKind::kBool, 0, 0, false, "", "report log-probabilities",
     WEIR_SET(has_chat_logprobs, bool)},
    {"top_logprobs", kChat, FieldKind::kInteger, 0, 20, false, "",
     "also of this many likeliest tokens; above 0 it needs logprobs",
     WEIR_SET(top_logprobs, int32_t)},
    {"echo", kCompletions, FieldKind::kBool, 0, 0, false, "",
     "put the prompt in front of the text; not together with logprobs", WEIR_SET(echo, bool)},
    {"n", kGenerate, FieldKind::kInteger, 1, kMaxN, false, "",
     "choices for each prompt; prompts * n <= 256", WEIR_SET(n, uint32_t)},
    {"best_of", kGenerate, FieldKind::kInteger, 1, kMaxN, false, "",
     "not implemented: must equal n", WEIR_SET(best_of, uint32_t)},
    {"stream", kGenerate, FieldKind::kBool, 0, 0, false, "",
     "answer with server-sent events, one for each token", WEIR_SET(stream, bool)},
    {"stream_options", kGenerate, FieldKind::kCustom, 0, 0, false,
     R"({"type":"object","properties":{"include_usage":{"type":["boolean","null"]},
         "continuous_usage_stats":{"type":["boolean","null"]}}})",
     "include_usage: a last chunk with usage; continuous_usage_stats: usage in every chunk",
     &ParseStreamOptions},
    {"return_token_ids", kGenerate, FieldKind::kBool, 0, 0, false, "",
     "add prompt_token_ids and token_ids to the reply", WEIR_SET(return_token_ids, bool)},
    {"return_token_strs", kTokenize, FieldKind::kBool, 0, 0, false, "",
     "add token_strs, the tokens as the vocabulary writes them", WEIR_SET(return_token_strs, bool)},
    {"add_special_tokens", kPrompted, FieldKind::kBool, 0, 0, false, "",
     "begin-of-sequence as the tokenizer says; default true for a text, false for a chat",
     WEIR_SET(add_special_tokens, bool)},
    {"add_generation_prompt", kChat | kTokenize, FieldKind::kBool, 0, 0, false, "",
     "end the prompt with the assistant's turn; default true",
     WEIR_SET(add_generation_prompt, bool)},
    {"chat_template_kwargs", kChat | kTokenize, FieldKind::kCustom, 0, 0, false,
     R"({"type":"object"})", "values of variables of the model's chat template", &ParseKwargs},
    {"cache_salt", kGenerate, FieldKind::kString, 1, 256, false, "",
     "prefixes are shared only between requests with the same salt, within one API key",
     WEIR_SET(cache_salt, std::string)},
    {"priority", kGenerate, FieldKind::kInteger, -kMaxInt32 - 1, kMaxInt32, false, "",
     "lower is served earlier, within one API key", WEIR_SET(priority, int32_t)},
    {"deadline_ms", kGenerate, FieldKind::kInteger, 1, kMaxDeadlineMs, false, "",
     "the request fails (504) if it is not finished so many milliseconds after it arrived",
     WEIR_SET(deadline_ms, uint32_t)},

    Neutral("suffix", kGenerate, R"([""])", "text after the completion"),
    Neutral("tools", kGenerate | kTokenize, "[[]]", "tool calls"),
    Neutral("tool_choice", kGenerate, R"(["none","auto"])", "tool calls"),
    Neutral("functions", kGenerate, "[[]]", "tool calls"),
    Neutral("function_call", kGenerate, R"(["none","auto"])", "tool calls"),
    Neutral("response_format", kGenerate, R"([{"type":"text"}])", "structured output"),
    Neutral("structured_outputs", kGenerate, "[{}]", "structured output"),
    Neutral("guided_json", kGenerate, "[]", "structured output"),
    Neutral("guided_regex", kGenerate, "[]", "structured output"),
    Neutral("guided_choice", kGenerate, "[]", "structured output"),
    Neutral("guided_grammar", kGenerate, "[]", "structured output"),
    Neutral("use_beam_search", kGenerate, "[false]", "beam search"),
    Neutral("length_penalty", kGenerate, "[1.0]", "beam search"),
    Neutral("prompt_logprobs", kGenerate, "[]", "log-probabilities of the prompt"),
    Neutral("truncate_prompt_tokens", kGenerate, "[]", "cutting prompts that are too long"),
    Neutral("bad_words", kGenerate, "[[]]", "forbidden texts (logit_bias forbids tokens)"),
    Neutral("allowed_token_ids", kGenerate, "[]", "allowed tokens (see logit_bias)"),
    Neutral("logits_processors", kGenerate, "[[]]", "code in requests"),
    Neutral("prompt_embeds", kGenerate, "[]", "embeddings as prompts"),
    Neutral("chat_template", kChat | kTokenize, "[]", "templates in requests: the model's is used"),
    Neutral("documents", kChat, "[[]]", "documents"),
    Neutral("continue_final_message", kChat | kTokenize, "[false]", "continuing the last message"),
    Neutral("spaces_between_special_tokens", kGenerate, "[true]", "another way to write tokens"),
    Neutral("return_tokens_as_token_ids", kGenerate, "[false]", "see return_token_ids"),
    Neutral("modalities", kChat, R"([["text"]])", "sound and pictures"),
    Neutral("audio", kChat, "[]", "sound"),
    Neutral("prediction", kChat, "[]", "predicted outputs"),
    Neutral("kv_transfer_params", kGenerate, "[{}]", "moving KV between servers"),
};

#undef WEIR_SET

}  // namespace

std::span<const FieldSpec> RequestFields() {
  return kFields;
}

}  // namespace weir::server
