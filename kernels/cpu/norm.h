#pragma once

#include <cstdint>

#include "kernels/cpu/thread_pool.h"

namespace weir::cpu {

// Root-mean-square normalisation (Zhang & Sennrich 2019). Exact semantics of one row of h values:
//   s[0..15] = +0;  for i in 0..h-1, increasing:  s[i%16] = fma(x[i], x[i], s[i%16]);
//   sum = Fold16(s);  r = 1 / sqrt(sum / h + eps);  y[i] = (x[i] * r) * weight[i]
// where Fold16 adds lane j+8 to lane j (j < 8), then j+4 (j < 4), then j+2 (j < 2), then j+1.
struct RmsNormParams {
  const float* x = nullptr;  // [m, h], row stride ldx (floats)
  int64_t ldx = 0;
  const float* weight = nullptr;  // [h]
  float eps = 0;
  float* y = nullptr;  // [m, h], row stride ldy; may be x itself
  int64_t ldy = 0;
  int64_t m = 0;
  int64_t h = 0;
};
void RmsNorm(const RmsNormParams& params, ThreadPool& pool);

// The same, in place, for `heads` consecutive heads of head_dim values at the start of every one of
// m rows (QK normalisation: one call for the q part of a fused qkv buffer and one for the k part).
struct HeadRmsNormParams {
  float* x = nullptr;
  int64_t row_stride = 0;         // floats between tokens
  const float* weight = nullptr;  // [head_dim]
  float eps = 0;
  int64_t m = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
};
void HeadRmsNorm(const HeadRmsNormParams& params, ThreadPool& pool);

}  // namespace weir::cpu
