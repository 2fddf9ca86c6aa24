// The gated activation of the MLP.
#pragma once

#include <cstdint>

#include "kernels/cuda/gates.h"
#include "kernels/cuda/launch.h"

namespace weir::cuda {

// y[i, j] = silu(gate_up[i, j]) * gate_up[i, f + j], silu(g) = g / (1 + exp(-g)): in float, rounded
// to bf16 once. The GPU's fast exp and division: silu has a relative error below 2^-16, and may be
// 0 where it is below 2^-118.
struct SiluMulParams {
  const Bf16* gate_up = nullptr;  // [m, 2 f], contiguous, 16-byte aligned
  Bf16* y = nullptr;              // [m, f], contiguous, 16-byte aligned; not inside gate_up
  int64_t m = 0;
  int64_t f = 0;  // a multiple of 8
  GatePoint gate;
};
LaunchStatus SiluMul(const SiluMulParams& params, const Launch& launch);

}  // namespace weir::cuda
