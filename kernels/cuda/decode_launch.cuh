// What decode_attention.h's kernel is told, and how its shared memory is laid out.
#pragma once

#include <cmath>

#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/decode_walk.h"
#include "kernels/cuda/hopper.cuh"

namespace weir::cuda::decode {

constexpr int kHeads = kMaxDecodeGroup;  // columns of a product
static_assert(kHeads == 8 && kBlockTokens == 16);

struct DecodeLaunch {
  const Bf16* q;
  int64_t q_stride;
  Bf16* out;
  const Bf16* k;  // the layer's K slab of block 0
  int64_t block_stride, token_stride, head_stride;
  int64_t v_offset;  // from a key to its value
  const int32_t* blocks;
  const int32_t* page_indptr;
  const int32_t* last_page_len;
  float* pieces;       // [2 * clusters][kHeads * dim + 2 * kHeads]
  uint32_t* arrivals;  // [clusters]; 0 between launches
  float scale;         // of the scores, to the base 2
  int32_t sequences, kv_heads, group;
};

template <int kDim>
struct Shape {
  static constexpr int kWarps = kDim <= 128 ? 8 : 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kTileBytes = kBlockTokens * kDim * 2;  // a page's keys, or values
  // Enough under way to keep memory busy while the warps of a block meet.
  static constexpr int kStages = 128 * 1024 / (kWarps * 2 * kTileBytes);
  static constexpr int kValues = kHeads * kDim;  // of an output; value i: head i % 8, i / 8
  static constexpr int kRingBytes = kWarps * kStages * 2 * kTileBytes;
  static constexpr int kTableBytes = 2 * (kMaxDecodeSequences + 1) * 4;
  static constexpr int kReceivedBytes = (kValues + kMaxDecodeCluster * 2 * kHeads) * 4;
  static constexpr int kBytes =
      kRingBytes + 2 * kWarps * (kValues + 2 * kHeads) * 4 + kReceivedBytes + kTableBytes + 24;
  static_assert(kStages >= 2 && kThreads % kHeads == 0);
};
constexpr int kPieceFloats(int dim) {
  return kHeads * dim + 2 * kHeads;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr float kNothing = -INFINITY;  // the largest score of no tokens

// Softmax-weighted sums over some tokens, not yet divided: values, and by head the largest score
// (kNothing: no tokens) and the sum of the weights.
template <int kDim>
struct Piece {
  float value[Shape<kDim>::kValues];
  float max[kHeads];
  float sum[kHeads];
};

// What the blocks of a cluster send to one of them: |part| = kValues / ranks values each, of those
// that the block adds up, and by head the largest scores and the sums of the weights.
template <int kDim>
struct Received {
  float value[Shape<kDim>::kValues];  // [ranks][part]
  float max_and_sum[kMaxDecodeCluster][2 * kHeads];
};

template <int kDim>
struct Shared {
  using S = Shape<kDim>;
  uint8_t* ring;       // [warps][stages][keys, values]
  Piece<kDim>* warps;  // [2][warps]
  Received<kDim>* received;
  uint64_t* whole;         // all that the cluster sends for a segment has come
  uint64_t* read;          // every block of the cluster has read what it got
  int32_t* page_indptr;    // [sequences + 1]
  int32_t* last_page_len;  // [sequences]
  uint32_t* last;          // whether this block is the last that comes to a kv head

  __device__ explicit Shared(uint8_t* raw) {
    ring = raw;
    warps = reinterpret_cast<Piece<kDim>*>(ring + S::kRingBytes);
    received = reinterpret_cast<Received<kDim>*>(warps + 2 * S::kWarps);
    whole = reinterpret_cast<uint64_t*>(received + 1);
    read = whole + 1;
    page_indptr = reinterpret_cast<int32_t*>(read + 1);
    last_page_len = page_indptr + kMaxDecodeSequences + 1;
    last = reinterpret_cast<uint32_t*>(last_page_len + kMaxDecodeSequences + 1);
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace weir::cuda::decode
