// How decode_attention.h's kernel puts together what warps, blocks and clusters have of a kv head.
#pragma once

#include "kernels/cuda/decode_pages.cuh"

namespace weir::cuda::decode {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What a warp has, where the others of its block can read it.
template <int kDim>
__device__ __forceinline__ void Store(const WarpPiece<kDim>& piece, Piece<kDim>* to) {
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const int32_t head = 2 * (lane % 4);
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      const int32_t dim = 16 * i + lane / 4 + 4 * j;
      *reinterpret_cast<float2*>(&to->value[dim * kHeads + head]) = {piece.out[i][j],
                                                                     piece.out[i][j + 1]};
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = piece.sum[h];
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    if (lane < 4) {
      to->max[head + h] = piece.max[h];
      to->sum[head + h] = sum;
    }
  }
}

// Adds up pieces of one head, in the order of the calls.
struct Merged {
  float max = kNothing;
  float sum = 0;

  // Takes a piece in; a value v of all so far becomes v * |old| + |added| * that of the piece.
  __device__ __forceinline__ void Add(float other_max, float other_sum, float* old, float* added) {
    const float most = fmaxf(max, other_max);
    const float from = most == kNothing ? 0.0f : most;  // nothing and nothing is nothing
    *old = warp::Exp2(max - from);
    *added = warp::Exp2(other_max - from);
    sum = sum * *old + other_sum * *added;
    max = most;
  }
};

// Where the values of a segment go: to the output if the segment is the whole of a kv head, or to
// the cluster's place in device memory.
template <int kDim>
class Target {
  using S = Shape<kDim>;

 public:
  __device__ Target(const DecodeLaunch& p, const Share& share, const Segment& segment)
      : p_(p),
        out_(p.out + (int64_t{segment.sequence} * p.kv_heads + segment.head) * p.group * kDim),
        split_(!segment.whole()),
        // Of the pieces of a kv head only the first is not the first of its cluster.
        first_cluster_(share.FirstClusterOf(segment)),
        last_cluster_(share.LastClusterOf(segment)) {
    place_ = PlaceOf(share.cluster);
  }

  __device__ bool split() const { return split_; }

  // Value |i|, of head i % kHeads.
  __device__ void Put(uint32_t i, float value, const Merged& merged) const {
    const uint32_t head = i % kHeads;
    if (!split_) {
      if (head < static_cast<uint32_t>(p_.group)) {
        out_[head * kDim + i / kHeads] = __float2bfloat16_rn(value / merged.sum);
      }
      return;
    }
    place_->value[i] = value;
    if (i < kHeads) {
      place_->max[head] = merged.max;
      place_->sum[head] = merged.sum;
    }
  }

  // All threads of the block, behind their Puts. The last of the blocks that have pieces of the kv
  // head adds them up.
  __device__ void Meet(const Shared<kDim>& s, uint32_t ranks) const {
    uint32_t* arrivals = p_.arrivals + first_cluster_;
    __syncthreads();
    if (threadIdx.x == 0) {
      const uint32_t all = (last_cluster_ - first_cluster_ + 1) * ranks;
      *s.last = hopper::AddInTurn(arrivals, 1) + 1 == all;
    }
    __syncthreads();
    if (*s.last == 0) return;
    if (threadIdx.x == 0) *arrivals = 0;
    const uint32_t head = threadIdx.x % kHeads;
    Merged merged;
    float value[S::kValues / S::kThreads] = {};
#pragma unroll 4
    for (uint32_t cluster = first_cluster_; cluster <= last_cluster_; ++cluster) {
      const Piece<kDim>* piece = PlaceOf(cluster);
      float old, added;
      merged.Add(__ldcg(&piece->max[head]), __ldcg(&piece->sum[head]), &old, &added);
#pragma unroll
      for (int i = 0; i < S::kValues / S::kThreads; ++i) {
        value[i] = value[i] * old + added * __ldcg(&piece->value[i * S::kThreads + threadIdx.x]);
      }
    }
    if (head >= static_cast<uint32_t>(p_.group)) return;
#pragma unroll
    for (int i = 0; i < S::kValues / S::kThreads; ++i) {
      const uint32_t dim = (i * S::kThreads + threadIdx.x) / kHeads;
      out_[head * kDim + dim] = __float2bfloat16_rn(value[i] / merged.sum);
    }
  }

 private:
  __device__ Piece<kDim>* PlaceOf(uint32_t cluster) const {
    return reinterpret_cast<Piece<kDim>*>(p_.pieces) + 2 * cluster +
           (cluster == first_cluster_ ? 1 : 0);
  }

  const DecodeLaunch& p_;
  Bf16* out_;
  const bool split_;
  uint32_t first_cluster_, last_cluster_;  // that have pieces of the kv head, where it is split
  Piece<kDim>* place_;
};

// Gives every block of the cluster its part of the values that |value(i)| computes.
template <int kDim, typename ValueFn>
__device__ __forceinline__ void Send(const Shared<kDim>& s, const Share& share, const Merged& block,
                                     ValueFn value) {
  using S = Shape<kDim>;
  const uint32_t part = S::kValues / share.ranks;
  for (uint32_t i = threadIdx.x; i < S::kValues; i += S::kThreads) {
    const uint32_t to = i * share.ranks / S::kValues;
    hopper::StoreAt(hopper::InBlock(&s.received->value[i + (share.rank - to) * part], to), value(i),
                    hopper::InBlock(s.whole, to));
  }
  // |block| is of the head of all this thread's values.
  constexpr uint32_t kBoth = 2 * kHeads;
  static_assert(S::kThreads >= kMaxDecodeCluster * 2 * kHeads);
  const uint32_t to = threadIdx.x / kBoth;
  const uint32_t which = threadIdx.x % kBoth;
  if (to < share.ranks) {
    hopper::StoreAt(hopper::InBlock(&s.received->max_and_sum[share.rank][which], to),
                    which < kHeads ? block.max : block.sum, hopper::InBlock(s.whole, to));
  }
  __syncwarp();
}

// Adds up this block's part of the values, in the order of the ranks.
template <int kDim>
__device__ __forceinline__ void AddUp(const Shared<kDim>& s, const Share& share,
                                      const Target<kDim>& target) {
  using S = Shape<kDim>;
  const uint32_t head = threadIdx.x % kHeads;
  const uint32_t part = S::kValues / share.ranks;
  for (uint32_t i = threadIdx.x; i < part; i += S::kThreads) {
    Merged merged;
    float value = 0;
    for (uint32_t rank = 0; rank < share.ranks; ++rank) {
      const float* max_and_sum = s.received->max_and_sum[rank];
      float old, added;
      merged.Add(max_and_sum[head], max_and_sum[kHeads + head], &old, &added);
      value = value * old + added * s.received->value[rank * part + i];
    }
    target.Put(share.rank * part + i, value, merged);
  }
}

// The warps of a block meet, then the blocks of a cluster, each of which has a part of the values
// then. |pieces|: of the warps, for segment |met| of the share; |more|: it is not the last.
template <int kDim>
__device__ void Meet(const Shared<kDim>& s, const Piece<kDim>* pieces, const Share& share,
                     const Target<kDim>& target, uint32_t met, bool more) {
  using S = Shape<kDim>;
  const uint32_t head = threadIdx.x % kHeads;  // of all values that this thread takes
  Merged block;
  float weight[S::kWarps];
#pragma unroll
  for (int w = 0; w < S::kWarps; ++w) block.max = fmaxf(block.max, pieces[w].max[head]);
  const float from = block.max == kNothing ? 0.0f : block.max;
#pragma unroll
  for (int w = 0; w < S::kWarps; ++w) {
    weight[w] = warp::Exp2(pieces[w].max[head] - from);
    block.sum += weight[w] * pieces[w].sum[head];
  }
  const auto value = [&](uint32_t i) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < S::kWarps; ++w) sum += weight[w] * pieces[w].value[i];
    return sum;
  };
  if (share.ranks == 1) {
    for (uint32_t i = threadIdx.x; i < S::kValues; i += S::kThreads) target.Put(i, value(i), block);
    return;
  }
  if (met == 0) {
    hopper::ClusterWait();  // the barriers of all are initialised
  } else {
    hopper::AwaitCluster(s.read, (met - 1) & 1);
  }
  if (threadIdx.x == 0) {
    hopper::ArriveExpecting(s.whole, (S::kValues + share.ranks * 2 * kHeads) * sizeof(float));
  }
  __syncwarp();
  Send(s, share, block, value);
  hopper::AwaitCluster(s.whole, met & 1);
  AddUp(s, share, target);
  __syncwarp();
  // Nobody sends to a block that has ended: behind the last segment there is nobody to tell.
  if (more && threadIdx.x % 32 < share.ranks) {
    hopper::ArriveAt(hopper::InBlock(s.read, threadIdx.x % 32));
  }
  __syncwarp();
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace weir::cuda::decode
