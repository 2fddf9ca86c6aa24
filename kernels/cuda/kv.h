// Paged keys and values in device memory: the layout that attention reads and qkv.h writes.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.h"

namespace weir::cuda {

inline constexpr int32_t kBlockTokens = 16;

// The order inside the K (or V) slab of one layer of a block.
enum class KvOrder : uint8_t {
  kTokenHead,  // [16 tokens][kv_head][head_dim]
  kHeadToken,  // [kv_head][16 tokens][head_dim]
};

// One block holds 16 consecutive tokens of one sequence in all layers, contiguously:
//   for each layer:  K slab, V slab, each of 16 * kv_heads * head_dim bf16.
struct KvLayout {
  int32_t layers = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;  // 64, 128 or 256 (attention.h)
  KvOrder order = KvOrder::kTokenHead;

  // In elements.
  constexpr int64_t SlabElements() const { return int64_t{kBlockTokens} * kv_heads * head_dim; }
  constexpr int64_t BlockElements() const { return 2 * layers * SlabElements(); }
  constexpr int64_t BlockBytes() const { return 2 * BlockElements(); }
  constexpr int64_t TokenStride() const {
    return order == KvOrder::kTokenHead ? int64_t{kv_heads} * head_dim : int64_t{head_dim};
  }
  constexpr int64_t HeadStride() const {
    return order == KvOrder::kTokenHead ? int64_t{head_dim} : int64_t{kBlockTokens} * head_dim;
  }
  constexpr int64_t KOffset(int32_t layer) const { return 2 * layer * SlabElements(); }
  constexpr int64_t VOffset(int32_t layer) const { return KOffset(layer) + SlabElements(); }
};

// Block b starts at base + b * block_stride elements. The stride is at least BlockElements(), below
// 2^32 and a multiple of 8; base is 16-byte aligned.
struct KvPool {
  Bf16* base = nullptr;
  int64_t block_stride = 0;
  KvLayout layout;
};

// Ok, or which rule above |pool| breaks. |layer| is in [0, layers).
LaunchStatus CheckKvPool(const KvPool& pool, int32_t layer);

}  // namespace weir::cuda
