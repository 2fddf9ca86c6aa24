#pragma once

#include <cstdint>

#include "kernels/cpu/thread_pool.h"

namespace weir::cpu {

// Rotary position embedding (Su et al. 2021) in Hugging Face's half-rotation form: value i of a
// head is paired with value i + rotary_dim/2.

// inv_freq[i] = theta^(-2i / rotary_dim), i < rotary_dim/2: computed in double, rounded once.
void DefaultInvFreq(double theta, int64_t rotary_dim, float* inv_freq);

// Fills rows [pos_begin, pos_end) of the tables cos, sin [max_pos][half]:
//   angle = inv_freq[i] * float(pos)  (one binary32 product, as transformers does);
//   cos[pos][i] = float(std::cos(double(angle)) * attention_scale), sin likewise.
void FillRopeTable(const float* inv_freq, int64_t half, int64_t pos_begin, int64_t pos_end,
                   double attention_scale, float* cos, float* sin);

// Rotates in place `heads` consecutive heads at the start of each of m rows (of a fused qkv buffer:
// q_heads + kv_heads, so q and k in one call). With c, s from row positions[i] of the tables:
//   x1' = fma(x1, c, -(x2 * s));   x2' = fma(x2, c, x1 * s)
// Values of a head past rotary_dim are left alone. Every position must be a filled row.
struct RopeParams {
  float* x = nullptr;
  int64_t row_stride = 0;  // floats between tokens
  int64_t m = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;              // even, <= head_dim
  const int32_t* positions = nullptr;  // [m]
  const float* cos = nullptr;          // [max_pos][rotary_dim/2]
  const float* sin = nullptr;
};
void ApplyRope(const RopeParams& params, ThreadPool& pool);

}  // namespace weir::cpu
