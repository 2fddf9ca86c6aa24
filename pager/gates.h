// StepGates: what a recorded step calls before it reads a segment of weights and after it has read
// it.
//
// The whole protocol is two monotonic counters: `produced` (chunks that have arrived, written by
// the copy stream) and `consumed` (chunks no longer needed, written by the compute). A table says
// which gates are armed; it may change between steps without re-recording anything (S1).
#pragma once

#include <cstdint>
#include <span>

#include "vmm/status.h"
#include "vmm/types.h"

namespace weir {

// What kernels need to pass the gates of one step by themselves (kernels/cuda/gates.h).
struct DeviceGates {
  VirtAddr produced = 0;  // gate words; 0: gates are passed by the host
  VirtAddr consumed = 0;
  uint64_t pass_base = 0;  // chunk i of this step has the number pass_base + i
  uint64_t timeout_ns = 0;
  std::span<const int32_t> chunk_of_gate;  // -1: open. For this step only
};

// When kernels came to one gate of a step, and when they went on; in the driver's clock. Both 0
// where it was not armed.
struct DeviceGateTimes {
  TimeNs arrive_ns = 0;
  TimeNs pass_ns = 0;
};

// What the kernels of one step found.
struct DeviceGateLog {
  uint32_t passed = 0;       // armed gates left behind; in a failed step opened or not
  uint32_t departed = 0;     // chunks, in order
  uint32_t faults = 0;       // gates reached before their stripe
  int32_t failed_gate = -1;  // waited in vain
  uint64_t stall_ns = 0;
  uint64_t max_stall_ns = 0;
  // For the trace: by gate; empty where nobody asked. A wait is as exact as the device's clock, a
  // time is within |clock_error_ns|.
  std::span<const DeviceGateTimes> times;
  uint64_t clock_error_ns = 0;
};

class StepGates {
 public:
  virtual ~StepGates() = default;
  // Called by the compute thread before the first read of the gate's segment: returns once its
  // stripe has arrived (at once for an open gate). An error fails the step and names the stripe.
  virtual Status Arrive(uint32_t gate) = 0;
  // Called after the last read of the gate's segment has ended.
  virtual void Depart(uint32_t gate) = 0;

  // Instead of Arrive and Depart, where kernels pass the gates: of the step last begun.
  virtual DeviceGates device_gates() const { return {}; }
  // The oldest step has ended; an error names the stripe that did not come.
  virtual Status Report(const DeviceGateLog& log) {
    (void)log;
    return OkStatus();
  }
};

}  // namespace weir
