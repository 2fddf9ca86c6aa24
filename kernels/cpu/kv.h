#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/thread_pool.h"

namespace weir::cpu {

inline constexpr int64_t kBlockTokens = 16;

enum class KvDtype { kBf16, kF32 };

// How one KV block, 16 consecutive tokens of one sequence in all layers, lies in memory.
// Contiguous:
//   for each layer:  K slab [kv_heads][head_dim][16 tokens], then
//                    V slab [kv_heads][16 tokens][padded_head_dim]
// K is transposed so that 16 tokens' scores are one vector; V is not, so that a token's values are
// consecutive. padded_head_dim is head_dim rounded up to 16; the padding is never written and never
// influences a result. One (layer, kv head) therefore reads 2 contiguous runs of a block.
struct KvLayout {
  int64_t layers = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;  // a multiple of 8, 8 .. 256
  KvDtype dtype = KvDtype::kBf16;

  constexpr int64_t ElementBytes() const { return dtype == KvDtype::kBf16 ? 2 : 4; }
  constexpr int64_t PaddedHeadDim() const { return (head_dim + 15) / 16 * 16; }
  constexpr int64_t KHeadBytes() const { return head_dim * kBlockTokens * ElementBytes(); }
  constexpr int64_t VHeadBytes() const { return PaddedHeadDim() * kBlockTokens * ElementBytes(); }
  constexpr int64_t LayerBytes() const { return kv_heads * (KHeadBytes() + VHeadBytes()); }
  constexpr int64_t BlockBytes() const { return layers * LayerBytes(); }
  // Offsets from the start of a block.
  constexpr int64_t KOffset(int64_t layer, int64_t kv_head) const {
    return layer * LayerBytes() + kv_head * KHeadBytes();
  }
  constexpr int64_t VOffset(int64_t layer, int64_t kv_head) const {
    return layer * LayerBytes() + kv_heads * KHeadBytes() + kv_head * VHeadBytes();
  }
  constexpr bool Valid() const {
    return layers > 0 && kv_heads > 0 && head_dim >= 8 && head_dim <= 256 && head_dim % 8 == 0;
  }
};

// Block b of the pool starts at base + b * block_stride_bytes. The stride is at least BlockBytes();
// base and stride are multiples of 2 (bf16) or 4 (f32), and 64 is fastest.
struct KvPool {
  void* base = nullptr;
  int64_t block_stride_bytes = 0;
  KvLayout layout;
};

// Writes the keys and values of m tokens for one layer, rounding to nearest even for bf16. Token i
// goes to slots[i] = block * 16 + offset; a negative slot is skipped (padding). Slots are distinct.
struct KvAppendParams {
  const float* k = nullptr;  // token i, kv head h at k + i * row_stride + h * head_dim
  const float* v = nullptr;  // likewise
  int64_t row_stride = 0;    // floats between tokens (the fused qkv width)
  int64_t m = 0;
  int64_t layer = 0;
  const int64_t* slots = nullptr;  // [m]
};
void KvAppend(const KvPool& kv, const KvAppendParams& params, ThreadPool& pool);

}  // namespace weir::cpu
