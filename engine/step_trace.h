// StepTrace: the begin and the end of one step in the trace.
#pragma once

#include <utility>

#include "engine/compute.h"
#include "vmm/driver.h"
#include "vmm/trace.h"

namespace weir {

// Represents one step; made before WeightPager::BeginStep. |number| counts the pager's rounds:
// those that have ended and those under way. Failed or Ended is called once. |batch| and |driver|
// outlive it.
class StepTrace {
 public:
  StepTrace(StepKind kind, const StepBatch& batch, Driver& driver, uint64_t number)
      : kind_(static_cast<uint8_t>(kind)),
        batch_(batch),
        driver_(driver),
        number_(number),
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
    TraceEmit(TraceType::kStepBegin, kind_, number_, batch.sequences.size(), batch.rows(), prompt,
              context);
  }

  // Passes |status| on.
  Status Failed(Status status) const {
    TraceEmit(TraceType::kStepFailed, kind_, number_, status.code(), driver_.Now() - start_ns_);
    return status;
  }
  void Ended(TimeNs step_ns, TimeNs stall_ns, uint64_t bytes_copied) const {
    TraceEmit(TraceType::kStepEnd, kind_, number_, batch_.sequences.size(), batch_.rows(), step_ns,
              stall_ns, bytes_copied);
  }
  // Where a device ran it; before Ended or Failed, and before the pager is told of its end.
  void Ran(const StepOutcome& outcome) const {
    if (outcome.begin_ns == 0) return;
    TraceEmit(TraceType::kDeviceStep, kind_, number_, outcome.begin_ns, outcome.end_ns,
              outcome.clock_error_ns);
  }
  TimeNs start_ns() const { return start_ns_; }

 private:
  const uint8_t kind_;
  const StepBatch& batch_;
  Driver& driver_;
  const uint64_t number_;
  const TimeNs start_ns_;
};

}  // namespace weir
