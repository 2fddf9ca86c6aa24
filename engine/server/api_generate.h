// GenerationCall: one request of /v1/completions or /v1/chat/completions from place to answer.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/server/api_answer.h"
#include "engine/server/api_format.h"
#include "engine/server/api_prompt.h"
#include "vmm/mutex.h"

namespace weir::server {

// Represents prompts * n choices under one answer, each a request of the engine. Kept alive by the
// worker's job, then by the engine's sinks. Events come from a worker (Prepare), the engine's
// thread (outputs) and an I/O thread (the client left); |mutex_| orders them. The engine is never
// called with it held.
class GenerationCall : public std::enable_shared_from_this<GenerationCall> {
 public:
  GenerationCall(Endpoint endpoint, std::shared_ptr<Answer> answer);
  // On an I/O thread: takes one place in the queue and hands the rest to a worker.
  void Start();

 private:
  class Sink;
  struct Choice {
    explicit Choice(LogprobList list) : logprobs(std::move(list)) {}
    uint64_t ticket = 0;  // 0: not submitted yet
    bool finished = false;
    bool started = false;  // its first chunk was sent
    uint32_t cached_tokens = 0;
    uint64_t completion_tokens = 0;
    FinishReason finish = FinishReason::kNone;
    std::string text;
    std::vector<int32_t> token_ids;
    LogprobList logprobs;
  };

  void Prepare(std::unique_ptr<QueuePlace> first);
  std::optional<ApiError> Accept(ApiRequest* request, std::unique_ptr<QueuePlace> first,
                                 std::vector<std::unique_ptr<QueuePlace>>* places);
  void MakeChoices();
  void Submit(std::vector<std::unique_ptr<QueuePlace>> places);
  AsyncRequest EngineRequest(size_t index) const;
  void OnOutput(size_t index, GenerationOutput output);
  void ClientLeft();

  // |done_| becomes true; returns the tickets still to be cancelled.
  std::vector<uint64_t> Close() WEIR_REQUIRES(mutex_);
  std::vector<uint64_t> FailLocked(const ApiError& error) WEIR_REQUIRES(mutex_);
  std::vector<uint64_t> Deliver(size_t index, GenerationOutput& output) WEIR_REQUIRES(mutex_);
  uint64_t RepeatedBytes() const;
  std::string Events(Choice& choice, size_t index, const GenerationOutput& output)
      WEIR_REQUIRES(mutex_);
  void Collect(Choice& choice, size_t index, const GenerationOutput& output) WEIR_REQUIRES(mutex_);
  void Finish(std::string last_events) WEIR_REQUIRES(mutex_);
  Usage TotalUsage() const WEIR_REQUIRES(mutex_);
  Usage RecordUsage() WEIR_REQUIRES(mutex_);
  void CancelAll(const std::vector<uint64_t>& tickets);

  const Endpoint endpoint_;
  const std::shared_ptr<Answer> answer_;
  ApiContext& context_;
  // Written by Prepare before the first Submit, constant afterwards.
  ApiRequest request_;
  std::vector<PreparedPrompt> prompts_;
  std::unique_ptr<ReplyFormat> format_;
  Mutex mutex_{LockRank::kApiRequest};
  std::vector<Choice> choices_ WEIR_GUARDED_BY(mutex_);
  size_t unfinished_ WEIR_GUARDED_BY(mutex_) = 0;
  bool streaming_ WEIR_GUARDED_BY(mutex_) = false;  // BeginStream was called
  bool done_ WEIR_GUARDED_BY(mutex_) = false;
};

}  // namespace weir::server
