// StepGates: what a recorded step calls before it reads a segment of weights and after it has read
// it.
//
// The whole protocol is two monotonic counters: `produced` (chunks that have arrived, written by
// the copy stream) and `consumed` (chunks no longer needed, written by the compute). A table says
// which gates are armed; it may change between steps without re-recording anything (S1).
#pragma once

#include <cstdint>

#include "vmm/status.h"

namespace weir {

class StepGates {
 public:
  virtual ~StepGates() = default;
  // Called by the compute thread before the first read of the gate's segment: returns once its
  // stripe has arrived (at once for an open gate). An error fails the step and names the stripe.
  virtual Status Arrive(uint32_t gate) = 0;
  // Called after the last read of the gate's segment has ended.
  virtual void Depart(uint32_t gate) = 0;
};

}  // namespace weir
