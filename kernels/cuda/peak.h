// Measured ceilings, for benchmarks to be compared with.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.h"

namespace weir::cuda {

// Reads |bytes| once, as fast as this GPU reads device memory, and xors all their 32-bit words into
// *checksum. Time it over well more than the L2 cache.
struct ReadBandwidthParams {
  const void* src = nullptr;     // 16-byte aligned
  int64_t bytes = 0;             // a multiple of 16
  uint32_t* checksum = nullptr;  // device memory; the caller zeroes it
};
LaunchStatus ReadBandwidth(const ReadBandwidthParams& params, const Launch& launch);

}  // namespace weir::cuda
