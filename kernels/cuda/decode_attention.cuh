// The kernel of decode_attention.h, for one head size.
//
// A warp computes on its own and meets the other warps only where a segment of a kv head ends; then
// the blocks of a cluster meet, then the clusters that have pieces of the kv head.
#pragma once

#include "kernels/cuda/decode_meet.cuh"
#include "kernels/cuda/enqueue.cuh"

namespace weir::cuda::decode {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Sequences without pages: padded slots.
template <int kDim>
__device__ void ClearPadding(const DecodeLaunch& p, const int32_t* page_indptr) {
  const int64_t row = int64_t{p.kv_heads} * p.group * kDim / 8;  // in 16-byte pieces
  for (int32_t i = static_cast<int32_t>(blockIdx.x); i < p.sequences;
       i += static_cast<int32_t>(gridDim.x)) {
    if (page_indptr[i] != page_indptr[i + 1]) continue;
    for (int64_t at = threadIdx.x; at < row; at += Shape<kDim>::kThreads) {
      reinterpret_cast<uint4*>(p.out)[i * row + at] = {0, 0, 0, 0};
    }
  }
}

template <int kDim>
__device__ void Run(const DecodeLaunch& p, uint8_t* raw) {
  using S = Shape<kDim>;
  const Shared<kDim> s(raw);
  const bool alone = hopper::ClusterSize() == 1;  // cluster barriers are for two blocks or more
  if (!alone) {
    if (threadIdx.x == 0) {
      hopper::InitBarrier(s.whole, 1);
      hopper::InitBarrier(s.read, S::kWarps * hopper::ClusterSize());
      hopper::FenceBarrierInit();
    }
    __syncwarp();
    hopper::ClusterArriveRelaxed();
  }
  TriggerDependents();
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i <= p.sequences; i += S::kThreads) {
    s.page_indptr[i] = p.page_indptr[i];
    if (i < p.sequences) s.last_page_len[i] = p.last_page_len[i];
  }
  __syncthreads();
  const Line line{s.page_indptr, p.sequences, p.kv_heads};
  const uint32_t ranks = hopper::ClusterSize();
  const Share share = Share::Of(line, hopper::ClusterRank(), ranks, blockIdx.x / ranks,
                                gridDim.x / ranks, S::kWarps);
  const auto warp = static_cast<int32_t>(threadIdx.x / 32);
  const auto worker = static_cast<int32_t>(share.rank) * S::kWarps + warp;
  const auto workers = static_cast<int32_t>(share.ranks) * S::kWarps;
  uint8_t* ring = s.ring + warp * (S::kStages * 2 * S::kTileBytes);

  // KV of earlier steps is there; this step's is the predecessor's.
  Walk walk(line, share);
  Loader<kDim> loader(p, s, share, walk);
  bool waited = false;
  for (int i = 0; i < S::kStages; ++i) {
    if (!waited && loader.AtLastPage()) {
      WaitForPredecessor();
      waited = true;
    }
    loader.Load(ring + i * 2 * S::kTileBytes);
  }
  if (!waited) WaitForPredecessor();
  ClearPadding<kDim>(p, s.page_indptr);

  int stage = 0;
  uint32_t met = 0;
  Queries<kDim> queries;
  if (!walk.done()) queries.Load(p, walk.segment());
  for (; !walk.done(); ++met) {
    const Segment segment = walk.segment();
    const Target<kDim> target(p, share, segment);
    WarpPiece<kDim> piece;
    for (int32_t page = walk.FirstPage(worker, workers); page < segment.end; page += workers) {
      warp::AwaitCopies<S::kStages - 1>();
      __syncwarp();
      uint8_t* at = ring + stage * 2 * S::kTileBytes;
      AddPage<kDim>(at,
                    page == segment.pages - 1 ? s.last_page_len[segment.sequence] : kBlockTokens,
                    p.scale, queries, &piece);
      __syncwarp();  // all lanes have read the stage
      loader.Load(at);
      stage = stage + 1 == S::kStages ? 0 : stage + 1;
    }
    walk.Next();
    if (!walk.done()) queries.Load(p, walk.segment());  // they come while the warps meet
    // All warps have read what they stored two segments ago: they met for the last one since.
    Piece<kDim>* pieces = s.warps + met % 2 * S::kWarps;
    Store(piece, &pieces[warp]);
    __syncthreads();
    Meet(s, pieces, share, target, met, !walk.done());
    if (target.split()) target.Meet(s, share.ranks);
  }
  if (!alone && met == 0) hopper::ClusterWait();
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace weir::cuda::decode
