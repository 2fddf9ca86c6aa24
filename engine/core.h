// EngineCore: continuous batching over one model's memory, in tokens.
//
// A single-threaded state machine over {driver, compute, clock}: the same code serves, is simulated
// and is fuzzed. One Step(): ask the policy where the border should be and move towards it;
// schedule and submit the recorded step; collect the one before it or, where one may be under way,
// this one; report its tokens. Text (tokenizer, stop strings) is the layer above (engine.h).
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "engine/compute.h"
#include "engine/link_watch.h"
#include "engine/memory.h"
#include "engine/request_work.h"
#include "engine/scheduler.h"
#include "engine/step_trace.h"
#include "policy/cost_model.h"
#include "policy/policy.h"

namespace weir {

struct CoreOptions {
  SchedulerOptions scheduler;
  uint32_t max_model_len = 0;  // tokens of prompt + output of one request
  std::vector<int32_t> eos_ids;
  uint32_t max_failed_steps = 3;  // in a row; then the batch's requests fail with the step's error
  // Steps in a row in which nothing could run although the policy moved the border; then the first
  // waiting request fails.
  uint32_t max_starved_steps = 16;
  uint32_t policy_interval = 1;  // steps between two decisions
};

// One request as the core takes it.
struct CoreRequest {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  uint64_t cache_salt = 0;  // requests share prefixes only within one salt
  int32_t priority = 0;     // lower runs first
};

// What became of one request in one step.
struct CoreOutput {
  RequestId id = 0;
  SampledTokens tokens;  // new ones
  bool finished = false;
  FinishReason reason = FinishReason::kNone;
  Status error;  // of FinishReason::kError
  uint32_t prompt_tokens = 0;
  uint32_t cached_tokens = 0;  // of the prompt, from the prefix cache
  TimeNs scheduled_ns = 0;     // start of the first step it took part in; 0: none yet
};

// Requests that wait in front of the core, not yet added: the policy sees them as its own waiting.
struct QueuedDemand {
  uint32_t requests = 0;
  uint64_t blocks = 0;           // of their prompts
  uint64_t expected_blocks = 0;  // at their expected ends
};

struct CoreStats {
  uint64_t steps = 0;
  uint64_t failed_steps = 0;
  uint64_t steps_without_weights = 0;  // of those: a copy of weights failed, or did not come
  uint64_t prompt_tokens_computed = 0;
  uint64_t output_tokens = 0;
  uint64_t requests_finished = 0;
  uint64_t requests_failed = 0;
  uint32_t peak_running = 0;
  uint64_t border_moves = 0;     // each part of a move made in parts counts
  uint64_t border_refusals = 0;  // wishes of the policy that were clipped or failed
  TimeNs compute_ns = 0;         // of steps, where they ran
  uint64_t queued_steps = 0;     // submitted while the one before ran
  TimeNs queued_ns = 0;          // compute_ns of those
  TimeNs idle_ns = 0;            // in which the device waited before those
  uint64_t wasted_rows = 0;      // computed for requests that had ended meanwhile
  uint64_t scrubbed_blocks = 0;  // of KV, zeroed because they went from one tenant to another
  TimeNs border_ns = 0;          // moving the border, by the host
  TimeNs step_ns = 0;            // of the calling thread in Step
  TimeNs waited_ns = 0;          // of those, until a step had ended where it ran
};

// One row per step for reports and plots.
struct StepRecord {
  uint64_t step = 0;
  TimeNs start_ns = 0;
  TimeNs step_ns = 0;
  TimeNs stall_ns = 0;
  TimeNs host_ns = 0;  // of the calling thread in Step since the record before, without waiting
  uint32_t rows = 0;
  uint32_t running = 0;
  uint32_t waiting = 0;
  uint32_t kv_used = 0;
  uint32_t kv_cached = 0;
  uint32_t kv_capacity = 0;
  uint32_t evicted_granules = 0;
};

class EngineCore {
 public:
  // A move of the border may make steps longer by so much of the longer of those before and after.
  static constexpr double kLateMove = 0.06;

  // |memory|, |compute|, |policy|, |driver| outlive the core.
  EngineCore(Driver& driver, Memory& memory, Compute& compute, Policy& policy,
             const CoreOptions& options);
  ~EngineCore();
  EngineCore(const EngineCore&) = delete;
  EngineCore& operator=(const EngineCore&) = delete;

  // Queues a request; max_tokens is cut to what the context leaves (0: all that may be held).
  // kInvalidArgument: empty prompt, a token outside the vocabulary, sampling parameters out of
  // range, longer than max_model_len. kNoMemory: at its end it could not fit even alone. kBadState:
  // weights are away and cannot be read (LinkState::kLost).
  Result<RequestId> Add(CoreRequest request);
  // Ends a request now; its blocks are free at once. The next TakeOutputs reports |reason|.
  // kNotFound when it is unknown or already finished.
  Status Finish(RequestId id, FinishReason reason);

  // One step. False when there is nothing to do. An error is a defect or a lost device: what could
  // be handled (a failed copy, no memory) was.
  Result<bool> Step();
  std::vector<CoreOutput> TakeOutputs();
  // Another policy decides from the next step on; it outlives the core.
  void SetPolicy(Policy& policy);
  // The most tokens, prompt and output, of one request: what the context and the KV of the widest
  // border of this policy hold.
  uint64_t max_request_tokens() const { return max_request_tokens_; }
  void set_queued_demand(const QueuedDemand& queued) { queued_ = queued; }

  // Runs a few steps of several sizes on blocks of its own and fits the cost model; before the
  // first request.
  Status Calibrate();

  bool idle() const { return scheduler_.idle(); }
  const CoreStats& stats() const { return stats_; }
  const Scheduler& scheduler() const { return scheduler_; }
  const SchedulerStats& scheduler_stats() const { return scheduler_.stats(); }
  const CostModel& cost_model() const { return cost_; }
  const std::vector<StepRecord>& step_records() const { return records_; }
  void set_keep_step_records(bool keep) { keep_records_ = keep; }
  PolicySnapshot Snapshot() const;
  // Why the border last stayed where it was although the policy wished otherwise; ok if it never
  // did.
  const Status& last_border_error() const { return last_border_error_; }
  // The backing copy of the weights and the link to it.
  const LinkReport& link() const { return link_.report(); }
  // Whether the border has not got yet where the policy wants it.
  bool border_under_way() const {
    return border_goal_ && *border_goal_ != memory_.weights().planned().target();
  }
  Memory& memory() { return memory_; }
  // Memory's invariants, and with no request known: every block free or cached (leak check).
  Status CheckIntegrity();
  // Begins or changes a recording that somebody outside asked for. Step does this first; to be
  // called as well now and then while nothing is to do.
  void FollowRecorder();

 private:
  // A step between Submit and Collect. Its memory serves another one afterwards.
  struct StepUnderWay {
    std::vector<ScheduledSequence> scheduled;
    StepBatch batch;
    std::optional<StepTrace> trace;
    uint64_t bytes_queued = 0;
    // Ended while this step was the last submitted: it may still look at them.
    std::vector<std::unique_ptr<Sequence>> retired;
  };

  // --- border.cc: what a policy wants, and the way there
  // What of |decision| there can be.
  static EvictionTarget Clip(const PolicyDecision& decision, const WeightsView& weights);
  void ApplyPolicy();
  void TraceDecision(const PolicySnapshot& snapshot, const PolicyDecision& decision, bool clipped);
  // At rest, as a whole.
  Status MoveBorder(const EvictionTarget& target);
  // Whether the request that is first in turn fits with |target|, or does not now either.
  bool FirstInTurnFits(const EvictionTarget& target) const;
  void SetBorderGoal(const EvictionTarget& goal);
  // One part of the way to where the policy wants the border.
  void MoveTowardsGoal();
  // Where the border is after the next part of the way from |now|, of which |away| granules a layer
  // are away: fewer than |now| says where an earlier part was left half done.
  EvictionTarget NextBorder(const EvictionTarget& now, double away) const;
  // Granules a layer, mean over the layers, of one part of the way from |away|, or all there are.
  double GranulesOfPart(double away, bool restoring) const;
  // Of the granules that weights bring home on the way to the goal: the share that KV must give up.
  double KvShareOfWayHome() const;
  // What the gates of a step are reached in, with |away| away: the compute or the copies, whichever
  // takes longer.
  double PaceNs(const EvictionTarget& away) const;
  // Of a step's copies, with |away| granules a layer away; 0: the link is unknown.
  double CopyNs(double away) const;
  // What a step may take while the border moves: the longer of those before and after.
  double MovePaceNs() const;
  Memory::KvHolder Holder();
  void AdvanceBorder(uint64_t limit_ns);

  // --- core.cc: steps and requests
  void TraceMemory();
  uint32_t depth() const;
  // Fills |batch|, which is empty.
  void BuildBatch(const std::vector<ScheduledSequence>& scheduled, StepBatch* batch) const;
  // Step, but for its times.
  Result<bool> ScheduleAndCollect();
  // Schedules and submits a step; false when there was nothing to submit.
  bool SubmitStep();
  Status Submit(StepUnderWay& step);
  Status ScrubBlocks();
  std::unique_ptr<StepUnderWay> NewStep();
  void Recycle(std::unique_ptr<StepUnderWay> step);
  void CollectStep();
  void Drain();
  void AcceptAll(StepUnderWay& step, StepOutcome& outcome);
  void Accept(const ScheduledSequence& scheduled, SampledToken token);
  FinishReason CheckFinish(const Sequence& sequence, int32_t token) const;
  void Retire(Sequence& sequence, FinishReason reason, Status error);
  // |step| failed, and with it those submitted after it.
  void OnStepError(std::unique_ptr<StepUnderWay> step, const Status& error);
  // |missing|: why the step lacked weights, if it did.
  void RollBack(StepUnderWay& step, const Status& missing);
  void CountFailure(const std::vector<RequestId>& requests, const Status& error,
                    const Status& missing);
  void Keep(const StepUnderWay& step, TimeNs step_ns, TimeNs stall_ns);
  void HandleStarvation();
  bool MakeRoomFor(uint64_t blocks);
  // --- link.cc: the backing copy or the link to it fails
  Result<bool> WatchLink();
  void RetryLink();
  Status BringWeightsHome();
  void HoldHome(const Status& why);
  uint64_t RereadBytes() const;
  void LoseLink(const Status& why, const Status& home);
  Status LinkReads();
  bool reads_in_place() const;
  bool MayLeaveHome();
  void ObserveLink(uint64_t bytes, TimeNs stall_ns, TimeNs step_ns);
  // |waited_share|: of the gates passed, those at which the step stood.
  void Observe(const StepBatch& batch, TimeNs step_ns, TimeNs stall_ns, uint64_t streamed,
               double waited_share);

  Driver& driver_;
  Memory& memory_;
  Compute& compute_;
  Policy* policy_;
  CoreOptions options_;
  uint64_t max_request_tokens_ = 0;
  Scheduler scheduler_;
  CostModel cost_;
  LinkWatch link_;
  Status weights_missing_;         // copies failed in so many steps that weights are to come home
  uint64_t reread_told_ = 0;       // bytes read anew that link_ knows of
  TimeNs probed_ns_ = 0;           // when a probe of a good link last succeeded
  uint64_t link_transitions_ = 0;  // of the pager, when a step was last looked at
  RequestWork work_;
  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  std::deque<std::unique_ptr<StepUnderWay>> under_way_;  // oldest first
  std::unique_ptr<StepUnderWay> spare_step_;             // ended, empty
  // Requests whose sampling looks at the token before: no step is submitted ahead while there are.
  uint32_t lockstep_requests_ = 0;
  std::vector<CoreOutput> outputs_;
  std::vector<StepRecord> records_;
  TimeNs step_begin_ns_ = 0;     // of the call of Step under way
  TimeNs recorded_host_ns_ = 0;  // in all records
  bool keep_records_ = false;
  CoreStats stats_;
  QueuedDemand queued_;
  uint64_t idle_steps_ = 0;                    // a policy's clock goes on while nothing runs
  std::optional<EvictionTarget> border_goal_;  // where the policy wants the border; none: there
  EvictionTarget border_from_;                 // where it was when it began to move there
  bool preempt_for_border_ = false;            // PolicyDecision::preempt of that wish
  uint32_t prompt_tokens_ = 0;                 // PolicyDecision::prompt_tokens, the last one
  // Sequences were preempted for it and it could not be moved to all the same: none is again until
  // the border has moved, or the policy wants another.
  std::optional<EvictionTarget> preempted_in_vain_;
  Status last_border_error_;
  RequestId next_id_ = 1;
  uint32_t failed_in_a_row_ = 0;
  uint32_t missing_in_a_row_ = 0;  // of those: steps that lacked weights, with no other since
  uint32_t starved_in_a_row_ = 0;
  bool keep_border_ = false;  // for a step: it was made for a request that fits nowhere else
  uint64_t starved_blocks_ = 0;
  double smoothed_step_ns_ = 0;
  double smoothed_stall_ns_ = 0;
  double smoothed_compute_ns_ = 0;  // steps without their stalls
  double last_compute_ns_ = 0;      // the last one
  uint64_t recorded_pointers_ = 0;  // S1: the digest taken at start
  uint64_t decisions_ = 0;
  PressureLevel traced_pressure_ = PressureLevel::kNone;
};

}  // namespace weir
