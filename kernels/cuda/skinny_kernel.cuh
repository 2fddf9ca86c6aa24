// skinny_gemm.h's kernel: products of what a block's stages bring. Internal.
#pragma once

#include "kernels/cuda/compressed_block.cuh"
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
// is unpacked behind the products of the one before it, into the other of two sets of registers.
// That hides little: products with A in registers keep their warp waiting (docs/gpu.md).
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
__device__ void Consume(const Arguments& p, const Shared<kM, kForm>& s, const Share& share) {
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
    Kernel(const __grid_constant__ Arguments p) {
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

}  // namespace weir::cuda::skinny
