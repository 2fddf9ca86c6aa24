// What calls take where the GPU runs without a pause, and the energy that it uses for them. A GPU
// at its power limit lowers its clocks: there, time is energy over that limit.
#pragma once

#include <cstdint>
#include <functional>

#include <cuda_runtime_api.h>

#include "bench/kernels/cuda_timing.h"
#include "vmm/status.h"

namespace weir::bench {

// Represents the counter of energy of one GPU (NVML). It moves ten times a second.
class EnergyCounter {
 public:
  // |device|: of CUDA. kUnsupported: no NVML here, or no counter in it.
  static Result<EnergyCounter> Open(int device);
  // Since the driver was loaded, of everything that ran.
  Result<double> Joules() const;

 private:
  using Read = int (*)(void* device, unsigned long long* millijoules);
  Read read_ = nullptr;
  void* device_ = nullptr;
};

// Of one call.
struct Sustained {
  double seconds = 0;
  double joules = 0;
};

// The graph of TimeCalls, replayed until clocks have settled, then over several of the counter's
// periods: some 0.9 s in all.
Result<Sustained> SustainCalls(cudaStream_t stream, const TimingOptions& options,
                               const EnergyCounter& energy,
                               const std::function<Status(uint32_t)>& enqueue);

}  // namespace weir::bench
