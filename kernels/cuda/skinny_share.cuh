// What a block of skinny_gemm.h's kernel has in shared memory, what its share of the work is, and
// how that is asked for. Internal.
#pragma once

#include "kernels/compressed_weights.h"
#include "kernels/cuda/enqueue.cuh"
#include "kernels/cuda/gates.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/skinny_gemm.h"

namespace weir::cuda::skinny {

constexpr int kBlockK = 64;                      // 128 bytes, the width of a swizzled box
static_assert(kBlockK == compressed::kCols);
constexpr int kWarpBytes = 32 * sizeof(float4);  // four values of each thread of a warp
constexpr int kAlignment = 1024;                 // of swizzled boxes
constexpr int kBarrierBytes = 320;
// A block takes so much that a multiprocessor holds one, but for kernels that need none: blocks
// that are launched early spread evenly.
constexpr int kSharedBytes = 222 * 1024;

// How W lies in memory.
enum class Form : uint8_t { kPlain, kCompressed };

// A tile has kPieces of values: piece i * kWarps + w are the values 4 i to 4 i + 3 of warp w
// (hopper::Product). Of a cluster's block |rank| adds up the pieces from first_piece[rank] on.
// |kShares|: the blocks of a cluster share tiles; otherwise there are no clusters.
//
// Behind the reading of W instructions are in no cache: what is done once a tile stands in short
// loops (unrolled, 64 rows: 2 % of a step more).
template <int rows, Form form, bool shares>
struct Shape {
  static constexpr int kM = rows;
  static constexpr Form kForm = form;
  static constexpr bool kShares = shares;
  static_assert(kShares || kForm == Form::kCompressed);
  // Warpgroups that multiply, each 64 rows of W. Two that unpack what they multiply are no match
  // for memory (docs/gpu.md). Four are where registers and space for what blocks send each other
  // are enough.
  static constexpr int kGroups = kForm == Form::kCompressed && kM <= (kShares ? 64 : 192) ? 4 : 2;
  static constexpr int kTileRows = 64 * kGroups;  // of W
  static constexpr int kConsumers = 128 * kGroups;
  static constexpr int kWarps = kConsumers / 32;
  static constexpr int kPieces = kM / 8 * kWarps;
  // Of many rows registers are short, and weights are unpacked by quarters, each before its product;
  // of few it is faster at once.
  static constexpr bool kByQuarters = kM > 160;
  // Four warpgroups alone leave no registers for a fifth: their warps ask for copies in turn.
  static constexpr bool kInTurn = kGroups == 4 && kM > 128;
  // So many threads or rows that registers are short: those that multiply get more.
  static constexpr bool kShort = !kInTurn && (kGroups == 4 || kM > 128);
  static constexpr int kConsumerRegisters = kGroups == 4 ? 112 : 232;
  static constexpr int kProducerRegisters = kGroups == 4 ? 32 : 40;
  // The last warp asks for copies; only warpgroups can give registers.
  static constexpr int kThreads = kConsumers + (kInTurn ? 0 : kShort ? 128 : 32);
  static constexpr uint32_t kCompressedBlocks = kTileRows / compressed::kRows;  // of a stage
  static constexpr int kWeightBytes = kForm == Form::kCompressed
                                          ? kCompressedBlocks * compressed::kBlockBytes
                                          : kTileRows * kBlockK * 2;
  // Where a stage's X begins, since boxes are aligned.
  static constexpr int kWeightSpace = (kWeightBytes + kAlignment - 1) / kAlignment * kAlignment;
  static constexpr int kInputBytes = kM * kBlockK * 2;
  static constexpr int kStageBytes = kWeightSpace + kInputBytes;
  // What the blocks of a cluster send to one of them, rounding adds a piece each at most; or a
  // piece of every warp.
  static constexpr int kSentBytes = (kShares ? kPieces + kMaxSkinnyCluster : kWarps) * kWarpBytes;
  // bf16; two blocks or more share
  static constexpr int kOldBytes = kShares ? kPieces / 2 * kWarpBytes / 2 : 0;
  static constexpr int kRest = kAlignment + kBarrierBytes + kSentBytes + kOldBytes;
  static constexpr int kStages = (kSharedBytes - kRest) / kStageBytes;
  static constexpr int kBytes = kRest + kStages * kStageBytes;
  static_assert(kInputBytes % kAlignment == 0);
  static_assert((2 * kStages + 2) * 8 + (kMaxSkinnyCluster + 1) * 4 <= kBarrierBytes);
};

struct Arguments {
  CUtensorMap weights;        // [n, k], boxes of [kTileRows, kBlockK]; plain ones
  CUtensorMap x;              // [m, k], boxes of [kM, kBlockK]
  const uint8_t* compressed;  // the others
  void* y;
  const Bf16* bias;
  WeightGate gate;
  int32_t m, n;
  uint32_t tiles;             // each once for every pass
  uint32_t passes;            // over W, with the next kM rows of X each; of blocks that share 1
  uint32_t compressed_tiles;  // of compressed::kRows
  uint32_t k_blocks;
  bool accumulate;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <typename S>  // a Shape
struct Shared {
  uint8_t* weights;       // [stages][kWeightSpace]
  uint8_t* x;             // [stages][kInputBytes]
  uint8_t* sent;          // [cluster][pieces][kWarpBytes]; of a block alone [warps][kWarpBytes]
  uint2* old;             // [pieces][32]: of Y, what the tile's own pieces are added to
  uint64_t* full;         // [stages]
  uint64_t* empty;        // [stages]
  uint64_t* whole;        // all that the cluster sends for a tile has come
  uint64_t* read;         // every block of the cluster has read it
  uint32_t* first_piece;  // [cluster + 1]

  __device__ explicit Shared(uint8_t* raw) {
    weights = raw + (kAlignment - hopper::SharedAddress(raw) % kAlignment) % kAlignment;
    x = weights + S::kStages * S::kWeightSpace;
    sent = x + S::kStages * S::kInputBytes;
    old = reinterpret_cast<uint2*>(sent + S::kSentBytes);
    full = reinterpret_cast<uint64_t*>(sent + S::kSentBytes + S::kOldBytes);
    empty = full + S::kStages;
    whole = empty + S::kStages;
    read = whole + 1;
    first_piece = reinterpret_cast<uint32_t*>(read + 1);
  }
};

// What a block does: blocks of k [first, end) of every tile of its cluster.
struct Share {
  uint32_t rank, cluster, first_tile, clusters, first, end;

  // |shares|: there are clusters; a block alone is one of one.
  __device__ __forceinline__ Share(const Arguments& p, bool shares)
      : rank(shares ? hopper::ClusterRank() : 0),
        cluster(shares ? hopper::ClusterSize() : 1),
        first_tile(blockIdx.x / cluster),
        clusters(gridDim.x / cluster),
        first(p.k_blocks * rank / cluster),
        end(p.k_blocks * (rank + 1) / cluster) {}
};

// The blocks of k that a share reads, tile by tile. All passes over a tile are next to each other,
// so that its weights come from L2 for all but one.
struct Walk {
  uint32_t tile, block;
  __device__ explicit Walk(const Share& share) : Walk(share.first_tile, share.first) {}
  __device__ Walk(uint32_t tile_, uint32_t block_) : tile(tile_), block(block_) {}
  __device__ void Next(const Share& share) {
    if (++block < share.end) return;
    block = share.first;
    tile += share.clusters;
  }
};

// One thread, which asks for W then: whether it may before the predecessor has ended. The gate's
// table was uploaded before the step's first kernel, which is not launched early.
//
// Bytes of a chunk that has come: the copy that wrote them, be it by a peer's engine, had ended
// before |produced| was written, in the order of their stream. An acquire at system scope that sees
// the counter so far orders them before what this thread reads next; the fence lets that hold for
// bulk copies, which are another proxy. Older bytes can be nowhere: bulk copies read what the L2
// cache has, by physical address, and it is where copies into this device's memory end, under
// whichever of a ring's addresses.
//
// All is asked for at once, so that finding out costs one round trip, armed or not.
__device__ __forceinline__ bool MayReadWeights(const WeightGate& gate) {
  if (gate.chunk == nullptr) return true;
  const uint64_t needed = gates::NeededOf(gate);
  const uint64_t produced = gates::LoadAcquire(gate.produced);
  if (needed == 0) return true;
  if (produced < needed) return false;
  hopper::FenceBulkReads();
  return true;
}

template <typename S>
__device__ __forceinline__ void CopyWeights(const Arguments& p, const Shared<S>& s, Walk at,
                                            uint32_t stage) {
  const uint64_t once = hopper::PolicyEvictFirst();
  uint8_t* to = s.weights + stage * S::kWeightSpace;
  hopper::ArriveExpecting(&s.full[stage], S::kWeightBytes + S::kInputBytes);
  if constexpr (S::kForm == Form::kCompressed) {
#pragma unroll
    for (uint32_t i = 0; i < S::kCompressedBlocks; ++i) {
      // Half of the last tile may be outside. Its other half stands there instead, so that there
      // is one way for all; what comes of it is not written.
      const uint32_t tile =
          min(at.tile / p.passes * S::kCompressedBlocks + i, p.compressed_tiles - 1);
      const uint64_t from = (uint64_t{tile} * p.k_blocks + at.block) * compressed::kBlockBytes;
      hopper::CopyBytes(to + i * compressed::kBlockBytes, p.compressed + from,
                        compressed::kBlockBytes, &s.full[stage], once);
    }
  } else {
    hopper::CopyBox(to, &p.weights, static_cast<int32_t>(at.block * kBlockK),
                    static_cast<int32_t>(at.tile * S::kTileRows), &s.full[stage], once);
  }
}

template <typename S>
__device__ __forceinline__ void CopyX(const Arguments& p, const Shared<S>& s, Walk at,
                                      uint32_t stage) {
  const uint32_t row = S::kShares ? 0 : at.tile % p.passes * S::kM;
  hopper::CopyBox(s.x + stage * S::kInputBytes, &p.x, static_cast<int32_t>(at.block * kBlockK),
                  static_cast<int32_t>(row), &s.full[stage], hopper::PolicyEvictLast());
}

// One thread: asks for the first stages. Gives what is next.
template <typename S>
__device__ __forceinline__ Walk AskForFirst(const Arguments& p, const Shared<S>& s,
                                            const Share& share) {
  // Before the wait nothing of a predecessor may be touched.
  const bool early = MayReadWeights(p.gate);
  if (!early) WaitForPredecessor();
  Walk next(share);
  uint32_t ahead = 0;
  for (; ahead < S::kStages && next.tile < p.tiles; ++ahead, next.Next(share)) {
    CopyWeights(p, s, next, ahead);
  }
  if (early) WaitForPredecessor();
  Walk x(share);
  for (uint32_t stage = 0; stage < ahead; ++stage, x.Next(share)) CopyX(p, s, x, stage);
  return next;
}

// One thread: asks for the whole share, as stages become free.
template <typename S>
__device__ void Produce(const Arguments& p, const Shared<S>& s, const Share& share) {
  uint32_t stage = 0, parity = 0;  // where there is more, all stages are in use
  for (Walk next = AskForFirst(p, s, share); next.tile < p.tiles; next.Next(share)) {
    hopper::Await(&s.empty[stage], parity);
    CopyWeights(p, s, next, stage);
    CopyX(p, s, next, stage);
    if (++stage == S::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace weir::cuda::skinny
