// What the card can do, measured with code that does nothing else.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include "bench/kernels/cuda_timing.h"
#include "engine/model/model_config.h"

namespace weir::bench {

struct CudaCeilings {
  struct Line {
    std::string what;
    std::string unit;  // "GB/s", "TFLOP/s" or "us"
    double median = 0, least = 0, most = 0;
  };
  std::vector<Line> lines;  // everything that was measured, in order
  double read = 0;          // bytes/s: the best median
  double flops = 0;         // bf16 matrix operations/s: the best median
  double launch_gap = 0;    // seconds from one empty kernel to the next in a graph
};

// |arena|: device memory of at least 2 GiB, holding normal numbers; its content is lost. Sizes that
// do not fit are left out. |config|: of the prefill product.
Result<CudaCeilings> MeasureCudaCeilings(std::byte* arena, uint64_t arena_bytes,
                                         const ModelConfig& config, uint32_t rounds,
                                         cudaStream_t stream);

}  // namespace weir::bench
