// Scheduler: which sequences take part in the next step, with how many tokens each.
//
// Continuous batching with chunked prefill (Orca, OSDI'22; Sarathi-Serve, OSDI'24; the token-budget
// form of vLLM V1): running sequences first, in order of admission, then waiting ones while token
// budget, sequence slots and KV blocks last. A sequence that cannot get the blocks of its next
// tokens preempts the last admitted one; a preempted sequence is recomputed. Where that happens
// again and again, admission keeps some blocks free for those already running to grow into.
// A step's room for changed logits is reserved at admission, for all that a sequence may ever need.
// Blocks are allocated here, before the step is submitted: a running sequence cannot run out of KV
// in the middle of a step. Engine thread only; pure bookkeeping.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <boost/intrusive/list.hpp>

#include "engine/block_manager.h"
#include "engine/kv_demand.h"
#include "engine/sequence.h"
#include "vmm/status.h"

namespace weir {

struct SchedulerOptions {
  uint32_t max_batched_tokens = 512;
  uint32_t max_sequences = 64;
  uint32_t max_prefill_chunk = 512;  // most prompt tokens of one sequence in a step
  // ComputeLimits::max_logit_edits: what of them running sequences may come to need, all together.
  // One sequence always may. 0: any number.
  uint64_t max_logit_edits = 0;
};

struct ScheduledSequence {
  Sequence* sequence = nullptr;
  uint32_t tokens = 0;  // [end - tokens, end) of the sequence
  uint32_t end = 0;
  uint32_t preemptions = 0;  // of the sequence until then
  // Whether the step's KV still belongs to the sequence.
  bool current() const {
    return sequence->state == SequenceState::kRunning && sequence->preemptions == preemptions;
  }
};

struct SchedulerStats {
  uint64_t preemptions = 0;
  uint64_t recomputed_tokens = 0;  // KV thrown away by preemption
};

class Scheduler {
 public:
  // |grow(n)| is asked for |n| more free blocks before cached ones are evicted; it may map KV
  // extents and hand them to the block manager.
  using GrowFn = std::function<void(uint32_t blocks)>;
  Scheduler(BlockManager& blocks, const SchedulerOptions& options, GrowFn grow)
      : blocks_(blocks),
        options_(options),
        grow_(std::move(grow)),
        demand_(blocks.prefix_caching() ? KvDemand::Sharing::kPrefixes : KvDemand::Sharing::kNone) {
  }

  // Queues a kWaiting sequence by priority, then arrival.
  void Add(Sequence* sequence);
  // Takes |sequence| out of its queue and releases its blocks; its state becomes kFinished.
  void Finish(Sequence* sequence);

  // Fills |batch|, which is empty, with the next step's; it stays so when nothing can run.
  // |prompt_tokens|: at most so many beside the one token that each decoding sequence goes on with;
  // 0: as many as fit.
  void Schedule(std::vector<ScheduledSequence>* batch, uint32_t prompt_tokens = 0);
  // The step over |batch| is on its way: the next one goes on behind it.
  void OnSubmitted(const std::vector<ScheduledSequence>& batch);
  // It has written its KV, in the order of submission: registers full blocks in the index.
  void OnComputed(const std::vector<ScheduledSequence>& batch);
  // It failed, in the reverse order: the blocks stay reserved and are written by a later step.
  void OnFailed(const std::vector<ScheduledSequence>& batch);

  // Tells the trace the known requests and the blocks they hold.
  void TraceState() const;

  // Preempts the running sequence admitted last, for a policy; there is one.
  void PreemptLast();
  // Preempts every running sequence: what is in KV is not to be trusted.
  void PreemptAll();
  // Old block ids have moved: patches every block table.
  void PatchBlocks(const std::vector<BlockMoveRequest>& moves);

  bool idle() const { return waiting_.empty() && running_.empty(); }
  uint32_t running() const { return static_cast<uint32_t>(running_.size()); }
  uint32_t waiting() const { return static_cast<uint32_t>(waiting_.size()); }
  // The sequence admitted first of those that run; where none runs, the first waiting one, or null.
  const Sequence* first_in_turn() const {
    const Queue& queue = running_.empty() ? waiting_ : running_;
    return queue.empty() ? nullptr : &queue.front();
  }
  // The first waiting sequence, or null.
  Sequence* front_waiting() { return waiting_.empty() ? nullptr : &waiting_.front(); }
  // See KvDemand.
  uint64_t waiting_blocks() const { return demand_.waiting_blocks(); }
  uint64_t expected_blocks() const { return demand_.expected_blocks(); }
  // Mean max_tokens of the known sequences; 0 without one.
  double mean_asked_tokens() const {
    const auto known = static_cast<double>(running_.size() + waiting_.size());
    return known > 0 ? static_cast<double>(demand_.asked_tokens()) / known : 0;
  }
  // Of the running ones, past their prompt.
  uint32_t decoding() const;
  double mean_running_tokens() const;
  uint64_t running_output_tokens() const;
  const SchedulerStats& stats() const { return stats_; }
  const SchedulerOptions& options() const { return options_; }

 private:
  using Queue = boost::intrusive::list<
      Sequence, boost::intrusive::member_hook<Sequence, boost::intrusive::list_member_hook<>,
                                              &Sequence::queue_hook>>;

  void Enqueue(Sequence* sequence);
  // Tokens that a step has room for still.
  struct Budget {
    uint32_t tokens = 0;
    uint32_t prompt_tokens = 0;  // of them not for decoding
  };
  void ScheduleRunning(Budget* budget, std::vector<ScheduledSequence>* batch);
  void AdmitWaiting(Budget* budget, std::vector<ScheduledSequence>* batch);
  bool LogitEditsFit(const Sequence& next) const;
  // Blocks for tokens [0, length); false, nothing taken, when there are too few.
  bool ReserveBlocks(Sequence& sequence, uint32_t length);
  void Preempt(Sequence* sequence);
  void ReleaseBlocks(Sequence& sequence);
  // Tokens of |sequence| in the step, taken from |budget| by Spend; may be 0.
  uint32_t ChunkOf(const Sequence& sequence, const Budget& budget) const;
  static void Spend(const Sequence& sequence, uint32_t chunk, Budget* budget);

  BlockManager& blocks_;
  SchedulerOptions options_;
  GrowFn grow_;
  KvDemand demand_;
  // Blocks to be left free at an admission, for each running sequence: rises with every preemption
  // and falls with every step.
  double headroom_ = 0;
  Queue waiting_;
  Queue running_;  // in order of admission
  struct FilledBlock {
    BlockId block;
    BlockContent content;
  };
  std::vector<FilledBlock> filled_;  // by the step just computed; its memory serves the next
  SchedulerStats stats_;
};

}  // namespace weir
