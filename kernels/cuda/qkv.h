// What happens between the fused QKV product and attention: head norms, rotary embedding, KV store.
#pragma once

#include <cstdint>

#include "kernels/cuda/kv.h"
#include "kernels/cuda/launch.h"

namespace weir::cuda {

// For each of m rows [q heads | k heads | v heads], each head padded to kv.layout.head_dim values:
//   q, k: values [0, head_dim) are normalised as in norm.h if a weight is given, then rotated as in
//     kernels/cpu/rope.h over all of head_dim (value i is paired with i + head_dim/2);
//   q is written back in place; k and v go to slot slots[i] of the pool. k and v of |qkv| stay.
// All in float, rounded to bf16 once at the end. Values past head_dim must be 0 in |qkv|; q's are
// not touched, the pool gets zeros for k and whatever |qkv| has for v.
struct QkvParams {
  Bf16* qkv = nullptr;  // [m, (q_heads + 2 * kv_heads) * kv.layout.head_dim], row stride ldqkv
  int64_t ldqkv = 0;    // elements, a multiple of 8
  int64_t m = 0;
  int32_t q_heads = 0;            // kv_heads are kv.layout.kv_heads
  int32_t head_dim = 0;           // real size: a multiple of 16, at most kv.layout.head_dim
  const float* q_norm = nullptr;  // null, or [head_dim]
  const float* k_norm = nullptr;  // null, or [head_dim]
  float eps = 0;                  // of the norms
  const float* cos = nullptr;     // [max_positions, head_dim / 2]
  const float* sin = nullptr;     // likewise
  int32_t max_positions = 0;
  const int32_t* positions = nullptr;  // [m]; clamped to [0, max_positions)
  // [m]; block * 16 + offset; negative: a padding row, of which nothing is stored (its q is still
  // rotated). Others are distinct.
  const int32_t* slots = nullptr;
  KvPool kv;
  int32_t layer = 0;
};
// Pointers are 16-byte aligned (positions, slots: 4).
LaunchStatus FinishQkv(const QkvParams& params, const Launch& launch);

}  // namespace weir::cuda
