// StepTrace: the begin and the end of one step in the trace.
#pragma once

#include <utility>

#include "engine/compute.h"
#include "pager/weight_pager.h"
#include "vmm/trace.h"

namespace weir {

// Represents one step; made before WeightPager::BeginStep, whose round numbers it. Failed or Ended
// is called once. |batch| and the rest outlive it.
class StepTrace {
 public:
  StepTrace(StepKind kind, const StepBatch& batch, Driver& driver, const WeightPager& weights)
      : kind_(static_cast<uint8_t>(kind)),
        batch_(batch),
        driver_(driver),
        weights_(weights),
        before_(weights.stats()),
        start_ns_(driver.Now()) {
    if (!TraceEnabled(TraceType::kStepBegin)) return;
    uint64_t prompt = 0;
    uint64_t context = 0;
    for (const StepSequence& s : batch.sequences) {
      context += s.context;
      // The last row of a sequence that gets logits is its next token; the rest is prompt, or
      // output that a preemption had forgotten.
      prompt += s.rows - (s.wants_logits ? 1 : 0);
    }
    TraceEmit(TraceType::kStepBegin, kind_, before_.steps, batch.sequences.size(), batch.rows(),
              prompt, context);
  }

  // Passes |status| on.
  Status Failed(Status status) const {
    TraceEmit(TraceType::kStepFailed, kind_, before_.steps, status.code(),
              driver_.Now() - start_ns_);
    return status;
  }
  void Ended(TimeNs step_ns) const {
    const WeightPagerStats& now = weights_.stats();
    TraceEmit(TraceType::kStepEnd, kind_, before_.steps, batch_.sequences.size(), batch_.rows(),
              step_ns, now.stall_ns - before_.stall_ns, now.bytes_copied - before_.bytes_copied);
  }

 private:
  const uint8_t kind_;
  const StepBatch& batch_;
  Driver& driver_;
  const WeightPager& weights_;
  const WeightPagerStats before_;
  const TimeNs start_ns_;
};

}  // namespace weir
