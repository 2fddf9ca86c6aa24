// skinny_gemm.h's kernel: products of what a block's stages bring. Internal.
#pragma once

#include "kernels/cuda/compressed_block.cuh"
#include "kernels/cuda/hopper_product.cuh"
#include "kernels/cuda/skinny_sum.cuh"

namespace weir::cuda::skinny {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

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
  const uint32_t half = threadIdx.x / 128 * (S::kWeightBytes / 2);
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

// The same of compressed weights, which go from shared memory into registers as operand A. Products
// with A in registers keep their warp waiting: what unpacks meanwhile is other warpgroups.
//
// |own|: which of a stage's blocks is this thread's. Of the last tile it may be outside, and what
// lies there then is no block.
template <typename S>
__device__ __forceinline__ void AddCompressed(const Shared<S>& s, uint32_t blocks, uint32_t own,
                                              bool outside, Turn<S::kStages>* turn,
                                              float (&d)[S::kM / 2]) {
  const auto pass = [&] {
    if (threadIdx.x % 32 == 0) hopper::Arrive(&s.empty[turn->stage]);
    turn->Next();
  };
  if (outside) {
    for (uint32_t block = 0; block < blocks; ++block) {
      hopper::Await(&s.full[turn->stage], turn->parity);
      pass();
    }
    return;
  }
  for (uint32_t block = 0; block < blocks; ++block) {
    uint32_t a[compressed::kWeightsPerThread / 2];
    hopper::Await(&s.full[turn->stage], turn->parity);
    Unpack(s.weights + turn->stage * S::kWeightSpace + own * compressed::kBlockBytes, a);
    const uint64_t b = hopper::SwizzledOperand(s.x + turn->stage * S::kInputBytes);
    hopper::ProductFence();
#pragma unroll
    for (int k = 0; k < kBlockK / 16; ++k) hopper::Product<S::kM>(d, a + 4 * k, b + 2 * k);
    hopper::ProductCommit();
    hopper::ProductWait();
    pass();
  }
}

template <typename Out, typename S>
__device__ void Consume(const Arguments& p, const Shared<S>& s, const Share& share) {
  const uint32_t thread = threadIdx.x;
  const uint32_t first_piece = s.first_piece[share.rank];
  const uint32_t pieces = s.first_piece[share.rank + 1] - first_piece;
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
      const uint32_t own = thread / compressed::kThreads;
      const bool outside = tile * S::kCompressedBlocks + own >= p.compressed_tiles;
      AddCompressed(s, share.end - share.first, own, outside, &turn, d);
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
  const Share share(p);
  if (threadIdx.x == S::kConsumers) {
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
  const uint32_t rank = threadIdx.x - (S::kConsumers + 1);
  if (threadIdx.x > S::kConsumers && rank <= share.cluster) {
    s.first_piece[rank] = (S::kPieces * rank + share.cluster - 1) / share.cluster;
  }
  TriggerDependents();
  __syncthreads();
  const bool alone = share.cluster == 1;  // cluster barriers are for clusters of two or more
  // Barriers are behind their fence, and W need not be asked for behind another.
  if (!alone) hopper::ClusterArriveRelaxed();
  if (threadIdx.x < S::kConsumers) {
    if constexpr (S::kShort) hopper::TakeRegisters<S::kConsumerRegisters>();
    Consume<Out>(p, s, share);
  } else {
    if constexpr (S::kShort) hopper::GiveRegisters<S::kProducerRegisters>();
    if (threadIdx.x == S::kConsumers) Produce(p, s, share);
    __syncwarp();
    if (!alone) hopper::ClusterWait();
  }
#endif
}

}  // namespace weir::cuda::skinny
