#include <algorithm>

#include "kernels/compressed_weights.h"
#include "kernels/cuda/compressed_block.cuh"
#include "kernels/cuda/enqueue.cuh"
#include "kernels/cuda/gates.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/skinny_gemm.h"
#include "kernels/cuda/warp_mma.cuh"

namespace weir::cuda {
namespace {

constexpr int kTileRows = 128;  // of W, two warpgroups
constexpr int kBlockK = 64;     // 128 bytes, the width of a swizzled box
constexpr int kConsumers = 256;
constexpr int kWarps = kConsumers / 32;
static_assert(kTileRows == compressed::kRows && kBlockK == compressed::kCols &&
              kConsumers == compressed::kThreads);
constexpr int kWarpBytes = 32 * sizeof(float4);  // four values of each thread of a warp
constexpr int kAlignment = 1024;                 // of swizzled boxes
constexpr int kBarrierBytes = 320;
// A block takes so much that a multiprocessor holds one, but for kernels that need none: blocks
// that are launched early spread evenly.
constexpr int kSharedBytes = 222 * 1024;

// How W lies in memory.
enum class Form : uint8_t { kPlain, kCompressed };

// A tile has kM * kWarpBytes of values: piece i * kWarps + w are the values 4 i to 4 i + 3 of warp
// w (hopper::Product). Of a cluster's block |rank| adds up the pieces from first_piece[rank] on.
//
// Behind the reading of W instructions are in no cache: what is done once a tile stands in short
// loops (unrolled, 64 rows: 2 % of a step more).
template <int kM, Form kForm>
struct Shape {
  // So many rows that registers are short: more for those who add up, and blocks that share no
  // tile.
  static constexpr bool kWide = kM > kMaxSharedRows;
  // The last warp, or of wide shapes warpgroup, asks for copies.
  static constexpr int kThreads = kConsumers + (kWide ? 128 : 32);
  static constexpr int kWeightBytes =
      kForm == Form::kCompressed ? compressed::kBlockBytes : kTileRows * kBlockK * 2;
  // Where a stage's X begins, since boxes are aligned.
  static constexpr int kWeightSpace = (kWeightBytes + kAlignment - 1) / kAlignment * kAlignment;
  static constexpr int kInputBytes = kM * kBlockK * 2;
  static constexpr int kStageBytes = kWeightSpace + kInputBytes;
  // What the blocks of a cluster send to one of them; rounding adds a piece each at most.
  static constexpr int kSentBytes = kWide ? 0 : (kM + kMaxSkinnyCluster) * kWarpBytes;
  // bf16; two blocks or more share
  static constexpr int kOldBytes = kWide ? 0 : kM / 2 * kWarpBytes / 2;
  static constexpr int kRest = kAlignment + kBarrierBytes + kSentBytes + kOldBytes;
  static constexpr int kStages = (kSharedBytes - kRest) / kStageBytes;
  static constexpr int kBytes = kRest + kStages * kStageBytes;
  static_assert(kInputBytes % kAlignment == 0);
  static_assert((2 * kStages + 2) * 8 + (kMaxSkinnyCluster + 1) * 4 <= kBarrierBytes);
};

struct SkinnyLaunch {
  CUtensorMap weights;        // [n, k], boxes of [kTileRows, kBlockK]; plain ones
  CUtensorMap x;              // [m, k], boxes of [kM, kBlockK]
  const uint8_t* compressed;  // the others
  void* y;
  const Bf16* bias;
  WeightGate gate;
  int32_t m, n;
  uint32_t tiles;
  uint32_t k_blocks;
  bool accumulate;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int kM, Form kForm>
struct Shared {
  uint8_t* weights;       // [stages][kWeightSpace]
  uint8_t* x;             // [stages][kInputBytes]
  uint8_t* sent;          // [cluster][pieces][kWarpBytes]
  uint2* old;             // [pieces][32]: of Y, what the tile's own pieces are added to
  uint64_t* full;         // [stages]
  uint64_t* empty;        // [stages]
  uint64_t* whole;        // all that the cluster sends for a tile has come
  uint64_t* read;         // every block of the cluster has read it
  uint32_t* first_piece;  // [cluster + 1]

  __device__ explicit Shared(uint8_t* raw) {
    using S = Shape<kM, kForm>;
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
  uint32_t rank = hopper::ClusterRank();
  uint32_t cluster = hopper::ClusterSize();
  uint32_t first_tile = blockIdx.x / cluster;
  uint32_t clusters = gridDim.x / cluster;
  uint32_t first, end;

  __device__ explicit Share(const SkinnyLaunch& p)
      : first(p.k_blocks * rank / cluster), end(p.k_blocks * (rank + 1) / cluster) {}
};

// The blocks of k that a share reads, tile by tile.
struct Walk {
  uint32_t tile, block;
  __device__ explicit Walk(const Share& share) : tile(share.first_tile), block(share.first) {}
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

// One thread: asks for the whole share, as stages become free.
template <int kM, Form kForm>
__device__ void Produce(const SkinnyLaunch& p, const Shared<kM, kForm>& s, const Share& share) {
  using S = Shape<kM, kForm>;
  const uint64_t once = hopper::PolicyEvictFirst();
  const uint64_t again = hopper::PolicyEvictLast();
  const auto copy_weights = [&](uint32_t tile, uint32_t block, uint32_t stage) {
    hopper::ArriveExpecting(&s.full[stage], S::kWeightBytes + S::kInputBytes);
    uint8_t* to = s.weights + stage * S::kWeightSpace;
    if constexpr (kForm == Form::kCompressed) {
      const uint64_t from = (uint64_t{tile} * p.k_blocks + block) * S::kWeightBytes;
      hopper::CopyBytes(to, p.compressed + from, S::kWeightBytes, &s.full[stage], once);
    } else {
      hopper::CopyBox(to, &p.weights, static_cast<int32_t>(block * kBlockK),
                      static_cast<int32_t>(tile * kTileRows), &s.full[stage], once);
    }
  };
  const auto copy_x = [&](uint32_t block, uint32_t stage) {
    hopper::CopyBox(s.x + stage * S::kInputBytes, &p.x, static_cast<int32_t>(block * kBlockK), 0,
                    &s.full[stage], again);
  };
  // Before the wait nothing of a predecessor may be touched.
  const bool early = MayReadWeights(p.gate);
  if (!early) WaitForPredecessor();
  Walk next(share);
  uint32_t ahead = 0;
  for (; ahead < S::kStages && next.tile < p.tiles; ++ahead, next.Next(share)) {
    copy_weights(next.tile, next.block, ahead);
  }
  if (early) WaitForPredecessor();
  Walk x(share);
  for (uint32_t stage = 0; stage < ahead; ++stage, x.Next(share)) copy_x(x.block, stage);
  uint32_t stage = 0, parity = 0;  // where there is more, all stages are in use
  for (; next.tile < p.tiles; next.Next(share)) {
    hopper::Await(&s.empty[stage], parity);
    copy_weights(next.tile, next.block, stage);
    copy_x(next.block, stage);
    if (++stage == S::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
}

// One value of Y.
template <typename Out>
__device__ __forceinline__ void Put(const SkinnyLaunch& p, int32_t n, int32_t m, float value) {
  if (n >= p.n || m >= p.m) return;
  Out* at = static_cast<Out*>(p.y) + int64_t{m} * p.n + n;
  if (p.bias != nullptr) value += __bfloat162float(p.bias[n]);
  if constexpr (std::is_same_v<Out, float>) {
    *at = value;
  } else {
    if (p.accumulate) value += __bfloat162float(*at);
    *at = __float2bfloat16_rn(value);
  }
}

// A piece of a tile that one block has whole, as hopper::Product left it.
template <typename Out>
__device__ __forceinline__ void PutPiece(const SkinnyLaunch& p, uint32_t tile, uint32_t piece,
                                         float4 v) {
  const uint32_t lane = threadIdx.x % 32;
  const auto n = static_cast<int32_t>(tile * kTileRows + piece % kWarps * 16 + lane / 4);
  const auto m = static_cast<int32_t>(piece / kWarps * 8 + 2 * (lane % 4));
  Put<Out>(p, n, m, v.x);
  Put<Out>(p, n, m + 1, v.y);
  Put<Out>(p, n + 8, m, v.z);
  Put<Out>(p, n + 8, m + 1, v.w);
}

// Where in Y a thread adds up four values of a piece: (m, n) to (m, n + 3). All lie inside or none,
// since Y's rows are whole fours.
struct FourAt {
  int32_t n, m;
  __device__ FourAt(uint32_t tile, uint32_t piece)
      : n(static_cast<int32_t>(tile * kTileRows + piece % kWarps * 16 + threadIdx.x % 4 * 4)),
        m(static_cast<int32_t>(piece / kWarps * 8 + threadIdx.x % 32 / 4)) {}
  __device__ bool Inside(const SkinnyLaunch& p) const { return n < p.n && m < p.m; }
  template <typename Out>
  __device__ Out* In(const SkinnyLaunch& p) const {
    return static_cast<Out*>(p.y) + int64_t{m} * p.n + n;
  }
};

// The four values of a piece as hopper::Product left it: lane 4 (n % 8) + m / 2 had (n, m),
// (n, m + 1), (n + 8, m) and (n + 8, m + 1), for even m.
__device__ __forceinline__ float4 FourOf(const uint8_t* piece) {
  const uint32_t n = threadIdx.x % 4 * 4;
  const uint32_t m = threadIdx.x % 32 / 4;
  const float* from =
      reinterpret_cast<const float*>(piece) + (n % 8 * 4 + m / 2) * 4 + n / 8 * 2 + m % 2;
  return {from[0], from[16], from[32], from[48]};
}

// Four bf16 values.
__device__ __forceinline__ void Add(uint2 values, float4* to) {
  const float2 low = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(values.x));
  const float2 high = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(values.y));
  *to = {to->x + low.x, to->y + low.y, to->z + high.x, to->w + high.y};
}

template <typename Out>
__device__ __forceinline__ void PutFour(const SkinnyLaunch& p, FourAt at, float4 v,
                                        const uint2* old) {
  if (!at.Inside(p)) return;
  if (p.bias != nullptr) Add(*reinterpret_cast<const uint2*>(p.bias + at.n), &v);
  if constexpr (std::is_same_v<Out, float>) {
    *reinterpret_cast<float4*>(at.In<float>(p)) = v;
  } else {
    if (p.accumulate) Add(*old, &v);
    const __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(v.x, v.y),
                                     __floats2bfloat162_rn(v.z, v.w)};
    *reinterpret_cast<uint2*>(at.In<Bf16>(p)) = reinterpret_cast<const uint2&>(pairs);
  }
}

// Gives every block of the cluster its pieces of what this one has of tile |round| of the share,
// and waits for what it gets.
template <int kM, Form kForm>
__device__ __forceinline__ void Exchange(const Shared<kM, kForm>& s, const Share& share,
                                         uint32_t own_pieces, uint32_t round,
                                         const float (&d)[kM / 2]) {
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32;
  if (round == 0) {
    hopper::ClusterWait();  // the barriers of all are initialised
  } else {
    hopper::AwaitCluster(s.read, (round - 1) & 1);
  }
  if (threadIdx.x == 0) {
    hopper::ArriveExpecting(s.whole, share.cluster * own_pieces * kWarpBytes);
  }
#pragma unroll
  for (int i = 0; i < kM / 8; ++i) {
    const uint32_t piece = i * kWarps + warp;
    const uint32_t to = piece * share.cluster / kM;
    const uint32_t first = s.first_piece[to];
    const uint32_t pieces = s.first_piece[to + 1] - first;
    const uint8_t* at =
        s.sent + (share.rank * pieces + piece - first) * kWarpBytes + lane * sizeof(float4);
    hopper::StoreAt(hopper::InBlock(at, to), d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3],
                    hopper::InBlock(s.whole, to));
  }
  hopper::AwaitCluster(s.whole, round & 1);
}

// Asks for what this block's pieces of the tile are added to; AddUp waits for it.
template <int kM, Form kForm>
__device__ __forceinline__ void AskForOld(const SkinnyLaunch& p, const Shared<kM, kForm>& s,
                                          uint32_t first, uint32_t pieces, uint32_t tile) {
#pragma unroll 1
  for (uint32_t i = threadIdx.x / 32; i < pieces; i += kWarps) {
    const FourAt at(tile, first + i);
    if (at.Inside(p)) warp::CopyAsync8(s.old + i * 32 + threadIdx.x % 32, at.In<Bf16>(p));
  }
  warp::CommitCopies();
}

// Adds up this block's pieces of the tile, in the order of the ranks.
template <int kM, Form kForm, typename Out>
__device__ __forceinline__ void AddUp(const SkinnyLaunch& p, const Shared<kM, kForm>& s,
                                      const Share& share, uint32_t first, uint32_t pieces,
                                      uint32_t tile) {
  if (p.accumulate) warp::AwaitCopies<0>();
#pragma unroll 1
  for (uint32_t i = threadIdx.x / 32; i < pieces; i += kWarps) {
    float4 sum = {0, 0, 0, 0};
#pragma unroll 1
    for (uint32_t rank = 0; rank < share.cluster; ++rank) {
      const float4 v = FourOf(s.sent + (rank * pieces + i) * kWarpBytes);
      sum = {sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
    }
    PutFour<Out>(p, FourAt(tile, first + i), sum, s.old + i * 32 + threadIdx.x % 32);
  }
}

// Which stage is next, and the parity of its barrier's phase.
template <int kStages>
struct Turn {
  uint32_t stage = 0, parity = 0;
  __device__ __forceinline__ void Next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// d += what the next |blocks| stages bring.
template <int kM>
__device__ __forceinline__ void AddPlain(const Shared<kM, Form::kPlain>& s, uint32_t blocks,
                                         Turn<Shape<kM, Form::kPlain>::kStages>* turn,
                                         float (&d)[kM / 2]) {
  using S = Shape<kM, Form::kPlain>;
  const uint32_t half = threadIdx.x / 128 * (S::kWeightBytes / 2);
  for (uint32_t block = 0; block < blocks; ++block) {
    hopper::Await(&s.full[turn->stage], turn->parity);
    const uint64_t a = hopper::SwizzledOperand(s.weights + turn->stage * S::kWeightSpace + half);
    const uint64_t b = hopper::SwizzledOperand(s.x + turn->stage * S::kInputBytes);
    hopper::ProductFence();
#pragma unroll
    for (int k = 0; k < kBlockK / 16; ++k) {
      hopper::Product<kM>(d, a + 2 * k, b + 2 * k);
    }
    hopper::ProductCommit();
    hopper::ProductWait();
    if (threadIdx.x % 32 == 0) hopper::Arrive(&s.empty[turn->stage]);
    turn->Next();
  }
}

// The same of compressed weights, which go from shared memory into registers as operand A. A block
// is unpacked while the one before it is multiplied: two sets of registers in turn.
template <int kM>
__device__ __forceinline__ void AddCompressed(const Shared<kM, Form::kCompressed>& s,
                                              uint32_t blocks,
                                              Turn<Shape<kM, Form::kCompressed>::kStages>* turn,
                                              float (&d)[kM / 2]) {
  using S = Shape<kM, Form::kCompressed>;
  const auto unpack = [&](uint32_t (&a)[16]) {
    hopper::Await(&s.full[turn->stage], turn->parity);
    Unpack(s.weights + turn->stage * S::kWeightSpace, a);
  };
  const auto multiply = [&](const uint32_t (&a)[16], uint32_t (&next)[16], bool more) {
    const uint32_t stage = turn->stage;
    const uint64_t b = hopper::SwizzledOperand(s.x + stage * S::kInputBytes);
    hopper::ProductFence();
#pragma unroll
    for (int k = 0; k < kBlockK / 16; ++k) hopper::Product<kM>(d, a + 4 * k, b + 2 * k);
    hopper::ProductCommit();
    turn->Next();
    if (more) unpack(next);
    hopper::ProductWait();
    if (threadIdx.x % 32 == 0) hopper::Arrive(&s.empty[stage]);
  };
  uint32_t even[16], odd[16];
  unpack(even);
  for (uint32_t block = 0; block < blocks; block += 2) {
    multiply(even, odd, block + 1 < blocks);
    if (block + 1 < blocks) multiply(odd, even, block + 2 < blocks);
  }
}

template <int kM, Form kForm, typename Out>
__device__ void Consume(const SkinnyLaunch& p, const Shared<kM, kForm>& s, const Share& share) {
  using S = Shape<kM, kForm>;
  const uint32_t thread = threadIdx.x;
  const uint32_t first_piece = s.first_piece[share.rank];
  const uint32_t pieces = s.first_piece[share.rank + 1] - first_piece;
  WaitForPredecessor();
  Turn<S::kStages> turn;
  uint32_t round = 0;
  for (uint32_t tile = share.first_tile; tile < p.tiles; tile += share.clusters, ++round) {
    float d[kM / 2];
#pragma unroll
    for (int i = 0; i < kM / 2; ++i) d[i] = 0;
    if (!S::kWide && share.cluster > 1 && p.accumulate) {
      AskForOld(p, s, first_piece, pieces, tile);
    }
    if constexpr (kForm == Form::kPlain) {
      AddPlain<kM>(s, share.end - share.first, &turn, d);
    } else {
      AddCompressed<kM>(s, share.end - share.first, &turn, d);
    }
    if (S::kWide || share.cluster == 1) {  // the tile is whole, and there is nobody to send to
#pragma unroll
      for (int i = 0; i < kM / 8; ++i) {
        PutPiece<Out>(p, tile, static_cast<uint32_t>(i * kWarps) + thread / 32,
                      {d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]});
      }
      __syncwarp();
      continue;
    }
    if constexpr (!S::kWide) {
      Exchange(s, share, pieces, round, d);
      AddUp<kM, kForm, Out>(p, s, share, first_piece, pieces, tile);
    }
    // Nobody sends to a block that has what it waits for of the last tile, and nobody tells it
    // anything: it may end before the others of its cluster.
    if (tile + share.clusters >= p.tiles) break;
    __syncwarp();
    if (thread % 32 < share.cluster) hopper::ArriveAt(hopper::InBlock(s.read, thread % 32));
    __syncwarp();
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <int kM, Form kForm, typename Out>
__global__ void __launch_bounds__(Shape<kM, kForm>::kThreads, 1)
    SkinnyGemmKernel(const __grid_constant__ SkinnyLaunch p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using S = Shape<kM, kForm>;
  extern __shared__ uint8_t raw[];
  const Shared<kM, kForm> s(raw);
  const Share share(p);
  if (threadIdx.x == kConsumers) {
    for (int i = 0; i < S::kStages; ++i) {
      hopper::InitBarrier(&s.full[i], 1);
      hopper::InitBarrier(&s.empty[i], kWarps);
    }
    hopper::InitBarrier(s.whole, 1);
    hopper::InitBarrier(s.read, kWarps * share.cluster);
    hopper::FenceBarrierInit();
    if (kForm == Form::kPlain) hopper::PrefetchMap(&p.weights);
    hopper::PrefetchMap(&p.x);
  }
  const uint32_t rank = threadIdx.x - (kConsumers + 1);
  if (threadIdx.x > kConsumers && rank <= share.cluster) {
    s.first_piece[rank] = (kM * rank + share.cluster - 1) / share.cluster;
  }
  TriggerDependents();
  __syncthreads();
  const bool alone = share.cluster == 1;  // cluster barriers are for clusters of two or more
  // Barriers are behind their fence, and W need not be asked for behind another.
  if (!alone) hopper::ClusterArriveRelaxed();
  if (threadIdx.x < kConsumers) {
    if constexpr (S::kWide) hopper::TakeRegisters<232>();
    Consume<kM, kForm, Out>(p, s, share);
  } else {
    if constexpr (S::kWide) hopper::GiveRegisters<40>();
    if (threadIdx.x == kConsumers) Produce(p, s, share);
    __syncwarp();
    if (!alone) hopper::ClusterWait();
  }
#endif
}

int64_t TilesOf(const GemmKind& kind) {
  return (kind.n + kTileRows - 1) / kTileRows;
}
int64_t KBlocksOf(const GemmKind& kind) {
  return (kind.k + kBlockK - 1) / kBlockK;
}

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                 const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                 const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// A row-major bf16 matrix [rows, k], in boxes of [box_rows, kBlockK]; what a box has outside reads
// as zero.
LaunchStatus MakeMap(EncodeTiled encode, const void* matrix, int64_t rows, int64_t k, int box_rows,
                     CUtensorMap* map) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(k) * sizeof(Bf16)};
  const cuuint32_t box[2] = {kBlockK, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(matrix), sizes, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return {};
  return LaunchStatus::Invalid("skinny gemm: a tensor map of [" + std::to_string(rows) + ", " +
                               std::to_string(k) + "]: error " +
                               std::to_string(static_cast<int>(result)));
}

template <int kM, Form kForm, typename Out>
LaunchStatus Start(const SkinnyLaunch& p, int blocks, int cluster, const Launch& launch) {
  using S = Shape<kM, kForm>;
  constexpr auto kernel = SkinnyGemmKernel<kM, kForm, Out>;
  const cudaError_t set =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes);
  if (set != cudaSuccess) return LaunchStatus::Of(set, "skinny gemm: shared memory");
  return Enqueue("skinny gemm", kernel, blocks, S::kThreads, launch, p, S::kBytes,
                 static_cast<unsigned>(cluster));
}

template <typename Out>
LaunchStatus StartPlain(const SkinnyLaunch& p, int rows, int blocks, int cluster,
                        const Launch& launch) {
  constexpr Form kForm = Form::kPlain;
  switch (rows) {
    case 8: return Start<8, kForm, Out>(p, blocks, cluster, launch);
    case 16: return Start<16, kForm, Out>(p, blocks, cluster, launch);
    case 32: return Start<32, kForm, Out>(p, blocks, cluster, launch);
    default: return Start<64, kForm, Out>(p, blocks, cluster, launch);
  }
}

LaunchStatus StartCompressed(const SkinnyLaunch& p, int rows, int blocks, int cluster,
                             const Launch& launch) {
  constexpr Form kForm = Form::kCompressed;
  switch (rows) {
    case 8: return Start<8, kForm, Bf16>(p, blocks, cluster, launch);
    case 16: return Start<16, kForm, Bf16>(p, blocks, cluster, launch);
    case 32: return Start<32, kForm, Bf16>(p, blocks, cluster, launch);
    case 64: return Start<64, kForm, Bf16>(p, blocks, cluster, launch);
    case 96: return Start<96, kForm, Bf16>(p, blocks, cluster, launch);
    case 128: return Start<128, kForm, Bf16>(p, blocks, cluster, launch);
    case 160: return Start<160, kForm, Bf16>(p, blocks, cluster, launch);
    case 192: return Start<192, kForm, Bf16>(p, blocks, cluster, launch);
    default: return Start<256, kForm, Bf16>(p, blocks, cluster, launch);
  }
}

}  // namespace

LaunchStatus SkinnyGemm::Create(SkinnyGemm* skinny) {
  constexpr auto kernel = SkinnyGemmKernel<8, Form::kPlain, Bf16>;
  cudaFuncAttributes attributes = {};
  // A build without sm_90a has kernels with nothing in them.
  if (DeviceArchitecture() != 90 || cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess ||
      attributes.binaryVersion != 90) {
    return {cudaErrorNotSupported,
            "skinny gemm: needs a GPU of compute capability 9.0 and a build for 90a"};
  }
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&skinny->processors_, cudaDevAttrMultiProcessorCount, device);
  }
  // Clusters lie within one group of multiprocessors, and groups differ in size.
  constexpr int kAlone = 120 * 1024;  // more than half of a multiprocessor's shared memory
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kAlone);
  }
  for (int size = 1; size <= kMaxSkinnyCluster && error == cudaSuccess; ++size) {
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(size * skinny->processors_));
    config.blockDim = dim3(Shape<8, Form::kPlain>::kThreads);
    config.dynamicSmemBytes = kAlone;
    config.attrs = &cluster;
    config.numAttrs = 1;
    error = cudaOccupancyMaxActiveClusters(&skinny->clusters_[static_cast<size_t>(size)], kernel,
                                           &config);
  }
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  if (error == cudaSuccess) {
    error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &skinny->encode_, 12000,
                                             cudaEnableDefault, &found);
  }
  if (error == cudaSuccess && found != cudaDriverEntryPointSuccess) {
    error = cudaErrorSymbolNotFound;
  }
  if (error != cudaSuccess) {
    *skinny = {};
    return LaunchStatus::Of(error, "skinny gemm");
  }
  return {};
}

// By the time that blocks take if memory bounds them where all multiprocessors read, and they
// themselves do otherwise. It does not know of what is read before the kernel before has ended, nor
// that some multiprocessors read a tenth faster than others: sizes close to the best one are worth
// a try.
std::vector<int> SkinnyGemm::Clusters(const GemmKind& kind, int64_t m) const {
  if (m > kMaxSharedRows) return {1};
  constexpr double kAlone = 1.35;  // a block reads so much faster than its share
  constexpr double kAddUp = 1;     // blocks of k that are read in the time a tile is added up in
  constexpr double kClose = 1.3;
  const int64_t tiles = TilesOf(kind);
  const int64_t k_blocks = KBlocksOf(kind);
  std::vector<std::pair<double, int>> found;
  for (int size = 1; size <= kMaxSkinnyCluster && size <= k_blocks; ++size) {
    const int held = clusters_[static_cast<size_t>(size)];
    if (held == 0) continue;
    const auto round = [&](int64_t clusters) {
      const double busy = static_cast<double>(clusters * size) / processors_;
      return std::max(busy, 1 / kAlone);
    };
    const int64_t rest = tiles % held;
    const double rounds =
        static_cast<double>(tiles / held) * round(held) + (rest == 0 ? 0 : round(rest));
    const double time = rounds * (static_cast<double>((k_blocks + size - 1) / size) + kAddUp);
    found.emplace_back(time, size);
  }
  std::sort(found.begin(), found.end());
  std::vector<int> sizes;
  for (const auto& [time, size] : found) {
    if (time <= kClose * found.front().first) sizes.push_back(size);
  }
  return sizes;
}

LaunchStatus SkinnyGemm::Run(const GemmParams& params, int cluster, const Launch& launch) const {
  const int rows = SkinnyRows(params.m);
  SkinnyLaunch p{};
  const auto encode = reinterpret_cast<EncodeTiled>(encode_);
  if (params.kind.compressed) {
    p.compressed = reinterpret_cast<const uint8_t*>(params.weights);
  } else if (LaunchStatus s = MakeMap(encode, params.weights, params.kind.n, params.kind.k,
                                      kTileRows, &p.weights);
             !s.ok()) {
    return s;
  }
  if (LaunchStatus s = MakeMap(encode, params.x, params.m, params.kind.k, rows, &p.x); !s.ok()) {
    return s;
  }
  p.y = params.y;
  p.bias = params.bias;
  p.gate = params.gate;
  p.m = static_cast<int32_t>(params.m);
  p.n = static_cast<int32_t>(params.kind.n);
  p.tiles = static_cast<uint32_t>(TilesOf(params.kind));
  p.k_blocks = static_cast<uint32_t>(KBlocksOf(params.kind));
  p.accumulate = params.kind.output == GemmOutput::kAccumulate;
  const int blocks = cluster * static_cast<int>(std::min<int64_t>(
                                   p.tiles, clusters_[static_cast<size_t>(cluster)]));
  if (params.kind.compressed) return StartCompressed(p, rows, blocks, cluster, launch);
  return params.kind.type == GemmOutputType::kF32
             ? StartPlain<float>(p, rows, blocks, cluster, launch)
             : StartPlain<Bf16>(p, rows, blocks, cluster, launch);
}

}  // namespace weir::cuda
