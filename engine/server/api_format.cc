#include "engine/server/api_format.h"

#include <unordered_set>
#include <utility>

#include "engine/server/json_writer.h"
#include "engine/text/utf8.h"

namespace weir::server {
namespace {

uint64_t Characters(std::string_view text) {
  uint64_t n = 0;
  for (const char c : text) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80 ? 1 : 0;
  return n;
}

void Separate(std::string* list) {
  if (!list->empty()) list->push_back(',');
}

}  // namespace

// Like OpenAI: a token that is no text by itself is written as its bytes, "bytes:\xe2\x80".
std::string LogprobList::Text(int32_t token) const {
  if (tokenizer_ == nullptr) return {};
  const std::string_view bytes = tokenizer_->TokenBytes(token);
  if (FindInvalidUtf8(bytes) == bytes.size()) return std::string(bytes);
  static constexpr char kHex[] = "0123456789abcdef";
  std::string text = "bytes:";
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    text += "\\x";
    text += kHex[byte >> 4];
    text += kHex[byte & 15];
  }
  return text;
}

void LogprobList::Add(const SampledToken& token) {
  endpoint_ == kChat ? AddChat(token) : AddCompletion(token);
}

void LogprobList::AppendChatEntry(int32_t token, float logprob, std::string* out) const {
  *out += R"({"token":)";
  AppendJsonString(Text(token), out);
  *out += R"(,"logprob":)";
  AppendJsonNumber(logprob, out);
  *out += R"(,"bytes":[)";
  const std::string_view bytes = tokenizer_ ? tokenizer_->TokenBytes(token) : std::string_view();
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i > 0) out->push_back(',');
    AppendJsonNumber(static_cast<uint32_t>(static_cast<unsigned char>(bytes[i])), out);
  }
  out->push_back(']');
}

void LogprobList::AddChat(const SampledToken& token) {
  Separate(&content_);
  AppendChatEntry(token.token, token.logprob, &content_);
  content_ += R"(,"top_logprobs":[)";
  for (size_t i = 0; i < token.top.size(); ++i) {
    if (i > 0) content_.push_back(',');
    AppendChatEntry(token.top[i].token, token.top[i].logprob, &content_);
    content_.push_back('}');
  }
  content_ += "]}";
}

void LogprobList::AddCompletion(const SampledToken& token) {
  const std::string text = Text(token.token);
  Separate(&tokens_);
  AppendJsonString(text, &tokens_);
  Separate(&token_logprobs_);
  AppendJsonNumber(token.logprob, &token_logprobs_);
  Separate(&offsets_);
  AppendJsonNumber(offset_, &offsets_);
  // What it adds to the text: a character belongs to the token with its first byte.
  if (tokenizer_ != nullptr) offset_ += Characters(tokenizer_->TokenBytes(token.token));
  Separate(&top_logprobs_);
  top_logprobs_.push_back('{');
  // Two tokens may have one text; a JSON object may not have one key twice. The likelier one stays.
  std::unordered_set<std::string> seen;
  const auto add = [&](int32_t id, float logprob) {
    std::string key = Text(id);
    if (seen.contains(key)) return;
    if (!seen.empty()) top_logprobs_.push_back(',');
    AppendJsonString(key, &top_logprobs_);
    top_logprobs_.push_back(':');
    AppendJsonNumber(logprob, &top_logprobs_);
    seen.insert(std::move(key));
  };
  for (const TokenLogprob& top : token.top) add(top.token, top.logprob);
  add(token.token, token.logprob);
  top_logprobs_.push_back('}');
}

void LogprobList::Take(std::string* out) {
  if (endpoint_ == kChat) {
    *out += R"({"content":[)" + std::exchange(content_, {}) + "]}";
    return;
  }
  *out += R"({"tokens":[)" + std::exchange(tokens_, {});
  *out += R"(],"token_logprobs":[)" + std::exchange(token_logprobs_, {});
  *out += R"(],"top_logprobs":[)" + std::exchange(top_logprobs_, {});
  *out += R"(],"text_offset":[)" + std::exchange(offsets_, {}) + "]}";
}

void AppendUsage(const Usage& usage, std::string* out) {
  *out += R"("usage":{"prompt_tokens":)";
  AppendJsonNumber(usage.prompt_tokens, out);
  *out += R"(,"total_tokens":)";
  AppendJsonNumber(usage.prompt_tokens + usage.completion_tokens, out);
  *out += R"(,"completion_tokens":)";
  AppendJsonNumber(usage.completion_tokens, out);
  *out += R"(,"prompt_tokens_details":{"cached_tokens":)";
  AppendJsonNumber(usage.cached_tokens, out);
  *out += "}}";
}

ReplyFormat::ReplyFormat(ReplyHead head) : head_(std::move(head)) {
  const bool chat = head_.endpoint == kChat;
  const auto start = [&](std::string_view object) {
    std::string text = R"({"id":)";
    AppendJsonString(head_.id, &text);
    text += R"(,"object":")";
    text += object;
    text += R"(","created":)";
    AppendJsonNumber(head_.created_s, &text);
    text += R"(,"model":)";
    AppendJsonString(head_.model, &text);
    text += R"(,"system_fingerprint":)";
    AppendJsonString(head_.fingerprint, &text);
    return text + R"(,"choices":[)";
  };
  body_start_ = start(chat ? "chat.completion" : "text_completion");
  chunk_start_ = "data: " + start(chat ? "chat.completion.chunk" : "text_completion");
}

void ReplyFormat::AppendChoiceEnd(const ChoiceText& choice, std::string* out) const {
  *out += R"(,"logprobs":)";
  if (choice.logprobs != nullptr) {
    choice.logprobs->Take(out);
  } else {
    *out += "null";
  }
  *out += R"(,"finish_reason":)";
  switch (choice.finish) {
    case FinishReason::kStop: *out += R"("stop")"; break;
    case FinishReason::kLength: *out += R"("length")"; break;
    default: *out += "null";
  }
  if (head_.return_token_ids) {
    if (head_.endpoint == kCompletions && choice.prompt_token_ids != nullptr) {
      *out += R"(,"prompt_token_ids":)";
      AppendJsonArray(*choice.prompt_token_ids, out);
    }
    *out += R"(,"token_ids":)";
    AppendJsonArray(choice.token_ids, out);
  }
  out->push_back('}');
}

void ReplyFormat::AppendChunk(const ChoiceText& choice, const Usage* usage,
                              std::string* out) const {
  const bool chat = head_.endpoint == kChat;
  *out += chunk_start_;
  *out += R"({"index":)";
  AppendJsonNumber(choice.index, out);
  if (chat) {
    *out += choice.first ? R"(,"delta":{"role":"assistant","content":)" : R"(,"delta":{"content":)";
  } else {
    *out += R"(,"text":)";
  }
  AppendJsonString(choice.text, out);
  if (chat) out->push_back('}');
  AppendChoiceEnd(choice, out);
  out->push_back(']');
  if (chat && head_.return_token_ids && choice.prompt_token_ids != nullptr) {
    *out += R"(,"prompt_token_ids":)";
    AppendJsonArray(*choice.prompt_token_ids, out);
  }
  if (usage != nullptr) {
    out->push_back(',');
    AppendUsage(*usage, out);
  }
  *out += "}\n\n";
}

void ReplyFormat::AppendUsageChunk(const Usage& usage, std::string* out) const {
  *out += chunk_start_;
  *out += "],";
  AppendUsage(usage, out);
  *out += "}\n\n";
}

std::string ReplyFormat::Reply(std::span<const ChoiceText> choices, const Usage& usage) const {
  const bool chat = head_.endpoint == kChat;
  std::string out = body_start_;
  for (const ChoiceText& choice : choices) {
    if (&choice != choices.data()) out.push_back(',');
    out += R"({"index":)";
    AppendJsonNumber(choice.index, &out);
    out += chat ? R"(,"message":{"role":"assistant","content":)" : R"(,"text":)";
    AppendJsonString(choice.text, &out);
    if (chat) out.push_back('}');
    AppendChoiceEnd(choice, &out);
  }
  out += "],";
  AppendUsage(usage, &out);
  if (chat && head_.return_token_ids && !choices.empty() && choices[0].prompt_token_ids) {
    out += R"(,"prompt_token_ids":)";
    AppendJsonArray(*choices[0].prompt_token_ids, &out);
  }
  out.push_back('}');
  return out;
}

}  // namespace weir::server
