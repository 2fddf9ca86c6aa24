// How skinny_gemm.h's kernel puts tiles of Y together and writes them. Internal.
#pragma once

#include "kernels/cuda/skinny_share.cuh"
#include "kernels/cuda/warp_mma.cuh"

namespace weir::cuda::skinny {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Where in Y a thread adds up four values of a piece: (m, n) to (m, n + 3). All lie inside or none,
// since Y's rows are whole fours.
template <typename S>
struct FourAt {
  int32_t n, m;
  __device__ FourAt(uint32_t tile, uint32_t piece, uint32_t first_row = 0)
      : n(static_cast<int32_t>(tile * S::kTileRows + piece % S::kWarps * 16 +
                               threadIdx.x % 4 * 4)),
        m(static_cast<int32_t>(first_row + piece / S::kWarps * 8 + threadIdx.x % 32 / 4)) {}
  __device__ bool Inside(const Arguments& p) const { return n < p.n && m < p.m; }
  template <typename Out>
  __device__ Out* In(const Arguments& p) const {
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

// |old|: what is there, where that is added to.
template <typename Out, typename S>
__device__ __forceinline__ void PutFour(const Arguments& p, FourAt<S> at, float4 v, uint2 old) {
  if (!at.Inside(p)) return;
  if (p.bias != nullptr) Add(*reinterpret_cast<const uint2*>(p.bias + at.n), &v);
  if constexpr (std::is_same_v<Out, float>) {
    *reinterpret_cast<float4*>(at.template In<float>(p)) = v;
  } else {
    if (p.accumulate) Add(old, &v);
    const __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(v.x, v.y),
                                     __floats2bfloat162_rn(v.z, v.w)};
    *reinterpret_cast<uint2*>(at.template In<Bf16>(p)) = reinterpret_cast<const uint2&>(pairs);
  }
}

// Gives every block of the cluster its pieces of what this one has of tile |round| of the share,
// and waits for what it gets.
template <typename S>
__device__ __forceinline__ void Exchange(const Shared<S>& s, const Share& share,
                                         uint32_t own_pieces, uint32_t round,
                                         const float (&d)[S::kM / 2]) {
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
  for (int i = 0; i < S::kM / 8; ++i) {
    const uint32_t piece = i * S::kWarps + warp;
    const uint32_t to = piece * share.cluster / S::kPieces;
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
template <typename S>
__device__ __forceinline__ void AskForOld(const Arguments& p, const Shared<S>& s, uint32_t first,
                                          uint32_t pieces, uint32_t tile) {
#pragma unroll 1
  for (uint32_t i = threadIdx.x / 32; i < pieces; i += S::kWarps) {
    const FourAt<S> at(tile, first + i);
    if (at.Inside(p)) warp::CopyAsync8(s.old + i * 32 + threadIdx.x % 32, at.template In<Bf16>(p));
  }
  warp::CommitCopies();
}

// Adds up this block's pieces of the tile, in the order of the ranks.
template <typename Out, typename S>
__device__ __forceinline__ void AddUp(const Arguments& p, const Shared<S>& s, const Share& share,
                                      uint32_t first, uint32_t pieces, uint32_t tile) {
  if (p.accumulate) warp::AwaitCopies<0>();
#pragma unroll 1
  for (uint32_t i = threadIdx.x / 32; i < pieces; i += S::kWarps) {
    float4 sum = {0, 0, 0, 0};
#pragma unroll 1
    for (uint32_t rank = 0; rank < share.cluster; ++rank) {
      const float4 v = FourOf(s.sent + (rank * pieces + i) * kWarpBytes);
      sum = {sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
    }
    PutFour<Out>(p, FourAt<S>(tile, first + i), sum, s.old[i * 32 + threadIdx.x % 32]);
  }
}

// A tile that this block has alone. Every warp turns its own pieces, one after the other.
template <typename Out, typename S>
__device__ __forceinline__ void PutWhole(const Arguments& p, const Shared<S>& s, uint32_t tile,
                                         const float (&d)[S::kM / 2]) {
  const uint32_t warp = threadIdx.x / 32;
  uint8_t* piece = s.sent + warp * kWarpBytes;
#pragma unroll
  for (int i = 0; i < S::kM / 8; ++i) {
    reinterpret_cast<float4*>(piece)[threadIdx.x % 32] = {d[4 * i], d[4 * i + 1], d[4 * i + 2],
                                                          d[4 * i + 3]};
    __syncwarp();
    const FourAt<S> at(tile / p.passes, i * S::kWarps + warp, tile % p.passes * S::kM);
    uint2 old = {};
    if (p.accumulate && at.Inside(p)) {
      old = *reinterpret_cast<const uint2*>(at.template In<Bf16>(p));
    }
    PutFour<Out>(p, at, FourOf(piece), old);
    __syncwarp();
  }
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace weir::cuda::skinny
