// AsyncEngine: an Engine that any thread may use.
//
// Represents one engine thread that owns the Engine and everything below it, and a mailbox. Others
// admit, submit and cancel; outputs come back through a sink, called on the engine thread after
// each step. The queue in front of the engine is bounded by requests and by tokens, is fair between
// tenants (virtual token counters: Sheng et al., OSDI'24, section 4) and ordered by priority within
// one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/engine.h"
#include "vmm/status.h"

namespace weir::server {

class ServerMetrics;
class StepEngine;

struct AsyncOptions {
  uint32_t max_queued_requests = 512;   // waiting, not yet running
  uint64_t max_queued_tokens = 262144;  // prompt tokens of those; one request alone may have more
  uint32_t max_queued_per_tenant = 256;
  // Most time from Submit on, whatever deadline a request sets; 0: no limit. A request not finished
  // by then ends with FinishReason::kError and a kCancelled status, at the next step boundary.
  TimeNs request_timeout_ns = 0;
  // Steps that fail in a row, with none in between that succeeds, until the engine counts as lost.
  uint32_t max_failed_steps = 6;
  ServerMetrics* metrics = nullptr;  // outlives the engine; null: nothing is counted
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
  TimeNs deadline_ns = 0;  // monotonic; 0: AsyncOptions::request_timeout_ns alone
};

// kNotReady: weights are away and cannot be read (LinkState::kLost). Requests end with kBadState
// until they can.
enum class Health : uint8_t { kStarting, kReady, kNotReady, kDraining, kFailed };

// A consistent picture, renewed after each step; health and what is queued are of now.
struct AsyncStats {
  Health health = Health::kStarting;
  Status failure;       // of Health::kFailed and kNotReady
  uint32_t queued = 0;  // in front of the engine
  uint64_t queued_tokens = 0;
  uint32_t unfinished = 0;  // submitted, last output not yet given to the sink
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
  MemoryView memory;
  WeightPagerStats pager;
  LinkReport link;
  uint64_t prefix_evicted_blocks = 0;
  uint64_t kv_blocks_moved = 0;
  uint64_t kv_block_bytes = 0;
  uint64_t leaked_blocks = 0;  // used by nobody when the engine was last idle: a defect
};

// States:  kReady <--> kNotReady;  those --Drain--> kDraining --> (destroyed);  kReady, kDraining
// --a failed step--> kFailed When the engine fails every request ends with kError and BadState;
// nothing more is taken.
class AsyncEngine {
 public:
  static Result<std::unique_ptr<AsyncEngine>> Start(std::unique_ptr<Engine> engine,
                                                    const AsyncOptions& options);
  // With a stand-in for the engine (tests); engine() may then not be called.
  static Result<std::unique_ptr<AsyncEngine>> Start(std::unique_ptr<StepEngine> engine,
                                                    const AsyncOptions& options);
  ~AsyncEngine();  // aborts what is left: each sink has its last output when this returns
  AsyncEngine(const AsyncEngine&) = delete;
  AsyncEngine& operator=(const AsyncEngine&) = delete;

  // kNoMemory: the queue is full (503); kShouldWait: this tenant's share of it is (429);
  // kBadState: draining or failed (503). Counted by reason in the metrics.
  Result<Admission> Admit(const std::string& tenant);
  // The engine checks the request on its own thread: what is wrong comes as an output with kError
  // and the status. kNoMemory: too many tokens queued. kInvalidArgument, kUnsupported: the text
  // cannot be tokenized. kBadState: aborted or failed since. After an error no output comes.
  // |request|.request.prompt is tokenized here, in the caller's thread, unless there are tokens.
  // An output's id is the ticket. Any thread.
  Result<uint64_t> Submit(Admission admission, AsyncRequest request,
                          std::shared_ptr<OutputSink> sink);
  // Its blocks are free before the next step; the sink still gets its last output. Unknown:
  // nothing. May be called from a sink.
  void Cancel(uint64_t ticket);

  // No new admissions; returns when what is known or admitted has ended, or |timeout_ns| has
  // passed: then the rest is aborted (kError, BadState) and false returned. Not from a sink.
  bool Drain(TimeNs timeout_ns);
  // Ends everything now, as a Drain whose time has passed; does not wait. Any thread.
  void Abort();

  AsyncStats stats() const;
  // Immutable parts: options(), info(), model(), tokenizer(), chat_template() and the const text
  // functions may be called from any thread; nothing else.
  const Engine& engine() const;

 private:
  struct Impl;
  explicit AsyncEngine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The clock of every TimeNs of the server: monotonic, the same as HostDriver's.
TimeNs MonotonicNow();

}  // namespace weir::server
