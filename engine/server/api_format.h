// Replies of /v1/completions and /v1/chat/completions: stream chunks and whole bodies.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/server/api_request.h"
#include "engine/text/tokenizer.h"

namespace weir::server {

// What every chunk of one reply has in common.
struct ReplyHead {
  Endpoint endpoint = kCompletions;  // or kChat
  std::string id;                    // "cmpl-..." or "chatcmpl-..."
  int64_t created_s = 0;
  std::string model;
  std::string fingerprint;
  int32_t logprobs = -1;  // as SamplingParams::logprobs
  bool return_token_ids = false;
  const Tokenizer* tokenizer = nullptr;  // for logprobs; may be null
};

struct Usage {
  uint64_t prompt_tokens = 0;
  uint64_t cached_tokens = 0;
  uint64_t completion_tokens = 0;
};

// Represents log-probabilities in the form of the endpoint, growing token by token; whole JSON only
// through Take.
class LogprobList {
 public:
  // |start|: characters in front of the first token's text.
  LogprobList(Endpoint endpoint, const Tokenizer* tokenizer, uint64_t start)
      : endpoint_(endpoint), tokenizer_(tokenizer), offset_(start) {}
  void Add(const SampledToken& token);
  // Appends the object and begins a new, empty one; offsets go on.
  void Take(std::string* out);

 private:
  void AddChat(const SampledToken& token);
  void AddCompletion(const SampledToken& token);
  void AppendChatEntry(int32_t token, float logprob, std::string* out) const;
  std::string Text(int32_t token) const;

  Endpoint endpoint_;
  const Tokenizer* tokenizer_;
  uint64_t offset_;  // characters
  std::string content_;
  std::string tokens_, token_logprobs_, top_logprobs_, offsets_;
};

// One choice as it is, or one chunk of it.
struct ChoiceText {
  uint32_t index = 0;
  std::string_view text;
  LogprobList* logprobs = nullptr;  // taken from; null: none were asked for
  std::span<const int32_t> token_ids = {};
  const std::vector<int32_t>* prompt_token_ids = nullptr;  // null: not in this chunk
  FinishReason finish = FinishReason::kNone;
  bool first = false;  // chunk: carries the role
};

// Represents the form of one reply. Immutable after construction.
class ReplyFormat {
 public:
  explicit ReplyFormat(ReplyHead head);
  const ReplyHead& head() const { return head_; }
  // One event: "data: {...}\n\n". |usage| null: without.
  void AppendChunk(const ChoiceText& choice, const Usage* usage, std::string* out) const;
  void AppendUsageChunk(const Usage& usage, std::string* out) const;
  std::string Reply(std::span<const ChoiceText> choices, const Usage& usage) const;

 private:
  void AppendChoiceEnd(const ChoiceText& choice, std::string* out) const;

  ReplyHead head_;
  std::string chunk_start_;  // up to the first choice
  std::string body_start_;
};

void AppendUsage(const Usage& usage, std::string* out);

}  // namespace weir::server
