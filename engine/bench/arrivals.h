// Arrivals: when each request of a workload is sent.
#pragma once

#include <cstdint>
#include <vector>

#include "vmm/status.h"
#include "vmm/types.h"

namespace weir::bench {

enum class RampUp : uint8_t { kNone, kLinear, kExponential };

struct ArrivalOptions {
  double request_rate = 0;  // requests a second; 0: all at once
  // Shape of the gamma-distributed gaps: 1 is a Poisson process, less comes in bursts, more is
  // evener. Above 0.
  double burstiness = 1;
  // Over the requests the rate goes from |ramp_start| to |ramp_end| instead; both above 0.
  RampUp ramp_up = RampUp::kNone;
  double ramp_start = 0;
  double ramp_end = 0;
  uint64_t seed = 0;
};

// kInvalidArgument names the option.
Status ValidateArrivals(const ArrivalOptions& options);

// Nanoseconds from the start, ascending. Without a ramp the gaps are scaled so that the last
// request comes at requests / rate exactly, as in vLLM's benchmark: runs of equal rate last equally
// long.
std::vector<TimeNs> ArrivalTimes(size_t requests, const ArrivalOptions& options);

}  // namespace weir::bench
