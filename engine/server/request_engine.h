// RequestEngine: what the API layer needs of an engine, and nothing more.
//
// Represents an engine any thread may give requests to. The program implements it over AsyncEngine
// and its metrics in a few lines; tests implement it without a model. Every method may be called
// from any thread at once and does not block on a step.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/server/async_engine.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "vmm/status.h"

namespace weir::server {

// Move-only right to one place in the queue; destroyed unused it goes back.
class QueuePlace {
 public:
  virtual ~QueuePlace() = default;
};

struct EngineState {
  Health health = Health::kStarting;
  Status failure;           // of Health::kFailed and kNotReady
  uint32_t unfinished = 0;  // requests queued, waiting and running
};

// Implementations are held by shared_ptr and live until the last output of the last request, which
// may come from the destructor of the engine below: they should not own it.
class RequestEngine {
 public:
  virtual ~RequestEngine() = default;

  // Taken before anything costly is done for a request; one place for each of its choices.
  // kNoMemory: the queue is full (answered 503); kShouldWait: this tenant's share of it is (429);
  // kBadState: draining, starting or failed (503).
  virtual Result<std::unique_ptr<QueuePlace>> Admit(const std::string& tenant) = 0;

  // Returns a ticket for Cancel. The outputs go to |sink|, in order and from one thread at a time,
  // maybe before this returns; after an error of Submit none comes. Errors as Admit's; kNoMemory
  // also: too many tokens are queued. A deadline that passes is an output with
  // FinishReason::kError and kCancelled; a request that can never fit is one with kNoMemory.
  virtual Result<uint64_t> Submit(std::unique_ptr<QueuePlace> place, AsyncRequest request,
                                  std::shared_ptr<OutputSink> sink) = 0;

  // Unknown or finished: nothing. The sink still gets its last output. May be called from inside
  // OutputSink::OnOutput.
  virtual void Cancel(uint64_t ticket) = 0;

  virtual EngineState state() const = 0;

  // The text of GET /metrics (Prometheus exposition format 0.0.4).
  virtual std::string RenderMetrics() const = 0;
};

// The model behind the API; immutable. What it points at outlives every request.
struct ServedModel {
  std::string id;                               // name in requests and replies
  int64_t created_s = 0;                        // Unix time; of `created` in /v1/models
  uint32_t max_model_len = 0;                   // most tokens of prompt and output
  uint32_t vocab_size = 0;                      // rows of logits
  const Tokenizer* tokenizer = nullptr;         // null: prompts and replies are token ids only
  const ChatTemplate* chat_template = nullptr;  // null: no chat
  std::string chat_template_error;              // why
  std::string fingerprint;                      // `system_fingerprint`: what determines the answers
};

}  // namespace weir::server
