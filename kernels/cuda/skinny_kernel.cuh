// skinny_gemm.h's kernel: products of what a block's stages bring. Internal.
#pragma once

#include "kernels/cuda/compressed_block.cuh"
#include "kernels/cuda/hopper_product.cuh"
#include "kernels/cuda/skinny_sum.cuh"

namespace weir::cuda::skinny {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// |value|, which is the same for all threads of a warp, so that the compiler knows. Where it does
// not, descriptors of products go into uniform registers one by one, each before its product.
__device__ __forceinline__ uint32_t UniformOf(uint32_t value) {
  return __shfl_sync(0xffffffffu, value, 0);
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
template <typename S>
__device__ __forceinline__ void AddPlain(const Shared<S>& s, uint32_t blocks,
                                         Turn<S::kStages>* turn, float (&d)[S::kM / 2]) {
  const uint32_t half = UniformOf(threadIdx.x / 128) * (S::kWeightBytes / 2);
  for (uint32_t block = 0; block < blocks; ++block) {
    hopper::Await(&s.full[turn->stage], turn->parity);
    const uint64_t a = hopper::SwizzledOperand(s.weights + turn->stage * S::kWeightSpace + half);
    const uint64_t b = hopper::SwizzledOperand(s.x + turn->stage * S::kInputBytes);
    hopper::ProductFence();
#pragma unroll
    for (int k = 0; k < kBlockK / 16; ++k) {
      hopper::Product<S::kM>(d, a + 2 * k, b + 2 * k);
    }
    hopper::ProductCommit();
    hopper::ProductWait();
    if (threadIdx.x % 32 == 0) hopper::Arrive(&s.empty[turn->stage]);
    turn->Next();
  }
}

// A block alone whose warps ask for copies in turn, one during the products of each block of k: for
// what takes the place of the block before, which nearly all have done with by then. |at|, |turn|:
// the block that is being multiplied.
template <typename S>
__device__ __forceinline__ void AskInTurn(const Arguments& p, const Shared<S>& s,
                                          const Share& share, Walk at,
                                          const Turn<S::kStages>& turn) {
  if (threadIdx.x == at.block % S::kWarps * 32 &&
      (at.block > 0 || at.tile != share.first_tile)) {
    const bool wraps = turn.stage == 0;
    const uint32_t stage = wraps ? S::kStages - 1 : turn.stage - 1;
    for (at.block += S::kStages - 1; at.block >= p.k_blocks; at.block -= p.k_blocks) {
      at.tile += share.clusters;
    }
    if (at.tile < p.tiles) {
      hopper::Await(&s.empty[stage], turn.parity ^ (wraps ? 1 : 0));
      CopyWeights(p, s, at, stage);
      CopyX(p, s, at, stage);
    }
  }
  __syncwarp();
}

// The same of compressed weights, which go from shared memory into registers as operand A. Products
// with A in registers keep their warp waiting: what unpacks meanwhile is other warpgroups.
template <typename S>
__device__ __forceinline__ void AddCompressed(const Arguments& p, const Shared<S>& s,
                                              const Share& share, uint32_t tile,
                                              Turn<S::kStages>* turn, float (&d)[S::kM / 2]) {
  const uint32_t own = threadIdx.x / compressed::kThreads * compressed::kBlockBytes;
  for (uint32_t block = share.first; block < share.end; ++block) {
    hopper::Await(&s.full[turn->stage], turn->parity);
    const PackedWeights packed(s.weights + turn->stage * S::kWeightSpace + own);
    const uint64_t b = hopper::SwizzledOperand(s.x + turn->stage * S::kInputBytes);
    if constexpr (S::kByQuarters) {
      // Of four warpgroups two quarters at most are being multiplied. If nothing waited for the one
      // before, the compiler, short of registers, would have every product waited for.
      constexpr int kQuarters = kBlockK / 16;
      constexpr int kUnderWay = S::kGroups == 4 ? 2 : kQuarters;
      uint32_t a[kUnderWay][PackedWeights::kQuarterWords];
#pragma unroll
      for (int k = 0; k < kQuarters; ++k) {
        if (k >= kUnderWay) hopper::ProductWait<kUnderWay - 1>();
        packed.Unpack(PackedWeights::kQuarterWords * k, a[k % kUnderWay]);
        hopper::ProductFence();
        hopper::Product<S::kM>(d, a[k % kUnderWay], b + 2 * k);
        if (k + 1 < kQuarters) hopper::ProductCommit();
      }
    } else {
      uint32_t a[PackedWeights::kWords];
      packed.Unpack(0, a);
      hopper::ProductFence();
#pragma unroll
      for (int k = 0; k < kBlockK / 16; ++k) {
        hopper::Product<S::kM>(d, a + PackedWeights::kQuarterWords * k, b + 2 * k);
      }
    }
    hopper::ProductCommit();
    if constexpr (S::kInTurn) AskInTurn(p, s, share, {tile, block}, *turn);
    hopper::ProductWait();
    if (threadIdx.x % 32 == 0) hopper::Arrive(&s.empty[turn->stage]);
    turn->Next();
  }
}

template <typename Out, typename S>
__device__ void Consume(const Arguments& p, const Shared<S>& s, const Share& share) {
  const uint32_t thread = threadIdx.x;
  const uint32_t first_piece = s.first_piece[share.rank];
  const uint32_t pieces = s.first_piece[share.rank + 1] - first_piece;
  if constexpr (S::kInTurn) {
    if (thread == 0) (void)AskForFirst(p, s, share);
    __syncwarp();
  }
  WaitForPredecessor();
  Turn<S::kStages> turn;
  uint32_t round = 0;
  for (uint32_t tile = share.first_tile; tile < p.tiles; tile += share.clusters, ++round) {
    float d[S::kM / 2];
#pragma unroll
    for (int i = 0; i < S::kM / 2; ++i) d[i] = 0;
    if (S::kShares && share.cluster > 1 && p.accumulate) {
      AskForOld(p, s, first_piece, pieces, tile);
    }
    if constexpr (S::kForm == Form::kPlain) {
      AddPlain(s, share.end - share.first, &turn, d);
    } else {
      AddCompressed(p, s, share, tile, &turn, d);
    }
    if (!S::kShares || share.cluster == 1) {
      PutWhole<Out>(p, s, tile, d);
      continue;
    }
    if constexpr (S::kShares) {
      Exchange(s, share, pieces, round, d);
      AddUp<Out>(p, s, share, first_piece, pieces, tile);
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

template <typename S, typename Out>
__global__ void __launch_bounds__(S::kThreads, 1) Kernel(const __grid_constant__ Arguments p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t raw[];
  const Shared<S> s(raw);
  const Share share(p, S::kShares);
  constexpr uint32_t kFirst = S::kInTurn ? 0 : S::kConsumers;  // of the threads that ask
  if (threadIdx.x == kFirst) {
    for (int i = 0; i < S::kStages; ++i) {
      hopper::InitBarrier(&s.full[i], 1);
      hopper::InitBarrier(&s.empty[i], S::kWarps);
    }
    hopper::InitBarrier(s.whole, 1);
    hopper::InitBarrier(s.read, S::kWarps * share.cluster);
    hopper::FenceBarrierInit();
    if (S::kForm == Form::kPlain) hopper::PrefetchMap(&p.weights);
    hopper::PrefetchMap(&p.x);
  }
  const uint32_t rank = threadIdx.x - (kFirst + 1);
  if (threadIdx.x > kFirst && rank <= share.cluster) {
    s.first_piece[rank] = (S::kPieces * rank + share.cluster - 1) / share.cluster;
  }
  TriggerDependents();
  __syncthreads();
  const bool alone = share.cluster == 1;  // cluster barriers are for clusters of two or more
  // Barriers are behind their fence, and W need not be asked for behind another.
  if (!alone) hopper::ClusterArriveRelaxed();
  if (S::kInTurn || UniformOf(threadIdx.x / 32) < S::kWarps) {
    if constexpr (S::kShort) hopper::TakeRegisters<S::kConsumerRegisters>();
    Consume<Out>(p, s, share);
  } else {
    if constexpr (S::kShort) hopper::GiveRegisters<S::kProducerRegisters>();
    if (threadIdx.x == kFirst) Produce(p, s, share);
    __syncwarp();
    if (!alone) hopper::ClusterWait();
  }
#endif
}

}  // namespace weir::cuda::skinny
