// Root-mean-square normalisation of bf16 rows.
#pragma once

#include <cstdint>

#include "kernels/cuda/gates.h"
#include "kernels/cuda/launch.h"

namespace weir::cuda {

// With x the row rows[i], or i where |rows| is null, in float:
//   r = 1 / sqrt(sum(x^2) / h + eps);  y[i, j] = bf16((x[j] * r) * weight[j])
// The order of the sum depends on h only: a row's bits do not depend on m or on the other rows.
struct RmsNormParams {
  const Bf16* x = nullptr;        // row stride ldx
  int64_t ldx = 0;                // elements, a multiple of 8, at least h
  const int32_t* rows = nullptr;  // null, or [m]: indices of rows of x
  const float* weight = nullptr;  // [h]
  float eps = 0;
  Bf16* y = nullptr;  // [m, h], row stride ldy; may be x itself if rows is null and ldx == ldy
  int64_t ldy = 0;    // as ldx
  int64_t m = 0;
  int64_t h = 0;  // a multiple of 8, 8 .. 16384
  GatePoint gate;
};
// Pointers are 16-byte aligned (rows: 4).
LaunchStatus RmsNorm(const RmsNormParams& params, const Launch& launch);

}  // namespace weir::cuda
