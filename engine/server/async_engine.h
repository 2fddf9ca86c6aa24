// AsyncEngine: an Engine that any thread may use.
//
// Represents one engine thread that owns the Engine and everything below it, and a mailbox. Others
// admit, submit and cancel; outputs come back through a sink, called on the engine thread after
// each step. The queue in front of the engine is bounded by requests and by tokens, is fair between
// tenants (virtual token counters: Sheng et al., OSDI'24, section 4) and ordered by priority within
// one.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "vmm/status.h"

namespace weir::server {

struct AsyncOptions {
  uint32_t max_queued_requests = 512;   // waiting, not yet running
  uint64_t max_queued_tokens = 262144;  // prompt tokens of those
  uint32_t max_queued_per_tenant = 256;
  TimeNs default_deadline_ns = 0;  // a request not finished by then ends with kError; 0: none
};

struct RequestTimes {  // monotonic; 0: has not happened
  TimeNs queued_ns = 0;
  TimeNs scheduled_ns = 0;  // first step it took part in
  TimeNs first_token_ns = 0;
  TimeNs last_token_ns = 0;
};

// Receives one request's outputs, in order, on the engine thread; must not block. Alive until the
// output with |finished|, which always comes, exactly once.
class OutputSink {
 public:
  virtual ~OutputSink() = default;
  virtual void OnOutput(GenerationOutput output, const RequestTimes& times) = 0;
};

// Move-only right to one place in the queue, taken before the costly part (tokenizing) and given
// back when it is destroyed unused.
class Admission {
 public:
  Admission(Admission&&) noexcept;
  Admission& operator=(Admission&&) noexcept;
  ~Admission();

 private:
  friend class AsyncEngine;
  struct State;
  explicit Admission(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

struct AsyncRequest {
  GenerationRequest request;
  TimeNs deadline_ns = 0;  // monotonic; 0: AsyncOptions::default_deadline_ns from now
};

enum class Health : uint8_t { kStarting, kReady, kDraining, kFailed };

// A consistent picture, renewed after each step.
struct AsyncStats {
  Health health = Health::kStarting;
  Status failure;       // of Health::kFailed
  uint32_t queued = 0;  // in front of the engine
  uint64_t queued_tokens = 0;
  CoreStats core;
  SchedulerStats scheduler;
  uint32_t running = 0;
  uint32_t waiting = 0;  // in the engine's own queue
  BlockCounts blocks;
  uint64_t prefix_queries = 0;  // tokens looked up
  uint64_t prefix_hits = 0;     // tokens found
  uint64_t evicted_bytes = 0;   // weights away from HBM now
  uint64_t stall_ns = 0;        // in gates, since start
  uint64_t faults_major = 0;
  uint64_t bytes_streamed = 0;
};

class AsyncEngine {
 public:
  static Result<std::unique_ptr<AsyncEngine>> Start(std::unique_ptr<Engine> engine,
                                                    const AsyncOptions& options);
  ~AsyncEngine();  // aborts what is left

  // kNoMemory: the queue is full (503); kShouldWait: this tenant's share of it is (429);
  // kBadState: draining or failed (503). Counted by reason in the metrics.
  Result<Admission> Admit(const std::string& tenant);
  // The engine checks the request on its own thread: what is wrong comes as an output with kError
  // and the status. kNoMemory: too many tokens queued. Any thread.
  Result<uint64_t> Submit(Admission admission, AsyncRequest request,
                          std::shared_ptr<OutputSink> sink);
  // Its blocks are free before the next step; the sink still gets its last output. Unknown:
  // nothing.
  void Cancel(uint64_t ticket);

  // No new requests; returns when those known have ended, or |timeout_ns| has passed: then the rest
  // is aborted and false returned.
  bool Drain(TimeNs timeout_ns);

  AsyncStats stats() const;
  // Immutable parts: options(), info(), model(), tokenizer(), chat_template() and the const text
  // functions may be called from any thread; nothing else.
  const Engine& engine() const;
};

}  // namespace weir::server
