// The kernel of decode_attention.h, for one head size.
//
// A warp computes on its own: it copies its pages into its part of a ring in shared memory, some
// pages ahead of its products and across segments, and meets the other warps only where a segment
// ends. The products take tokens (of K) and dimensions (of V) as rows and the query heads of the kv
// head, padded to eight, as columns, so that a group of four or eight wastes little:
//   scores[16 tokens, 8 heads] = K[16, dim] · Qᵀ      out[dim, 8 heads] += Vᵀ[dim, 16] · P[16, 8]
#pragma once

#include <cmath>

#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/enqueue.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/warp_mma.cuh"

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
      kRingBytes + kWarps * (kValues + 2 * kHeads) * 4 + kReceivedBytes + kTableBytes + 24;
  static_assert(kStages >= 2 && kThreads % kHeads == 0);
};
constexpr int kPieceFloats(int dim) {
  return kHeads * dim + 2 * kHeads;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)

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
  Piece<kDim>* warps;  // [warps]
  Received<kDim>* received;
  uint64_t* whole;         // all that the cluster sends for a segment has come
  uint64_t* read;          // every block of the cluster has read what it got
  int32_t* page_indptr;    // [sequences + 1]
  int32_t* last_page_len;  // [sequences]
  uint32_t* last;          // whether this block is the last that comes to a kv head

  __device__ explicit Shared(uint8_t* raw) {
    ring = raw;
    warps = reinterpret_cast<Piece<kDim>*>(ring + S::kRingBytes);
    received = reinterpret_cast<Received<kDim>*>(warps + S::kWarps);
    whole = reinterpret_cast<uint64_t*>(received + 1);
    read = whole + 1;
    page_indptr = reinterpret_cast<int32_t*>(read + 1);
    last_page_len = page_indptr + kMaxDecodeSequences + 1;
    last = reinterpret_cast<uint32_t*>(last_page_len + kMaxDecodeSequences + 1);
  }
};

// What a cluster does: units [begin, end). The units of a sequence are those of its kv heads, one
// head after the other.
struct Share {
  uint32_t rank, ranks, cluster;
  uint32_t begin, end;
  uint32_t even;  // units of a share, where kv heads are cut

  template <int kWarps>
  __device__ static Share Of(const DecodeLaunch& p, const int32_t* page_indptr) {
    // In units, what it costs that a kv head's pieces meet in device memory.
    constexpr uint32_t kMeeting = 8;
    Share s;
    s.rank = hopper::ClusterRank();
    s.ranks = hopper::ClusterSize();
    s.cluster = blockIdx.x / s.ranks;
    const uint32_t clusters = gridDim.x / s.ranks;
    const auto kv_heads = static_cast<uint32_t>(p.kv_heads);
    const uint32_t units = static_cast<uint32_t>(page_indptr[p.sequences]) * kv_heads;
    s.even = max((units + clusters - 1) / clusters, s.ranks * kWarps);
    if (static_cast<uint32_t>(p.sequences) * kv_heads <= clusters) {
      int32_t longest = 0;
      for (int32_t i = 0; i < p.sequences; ++i) {
        longest = max(longest, page_indptr[i + 1] - page_indptr[i]);
      }
      if (static_cast<uint32_t>(longest) <= s.even + kMeeting * s.ranks) {
        const uint32_t sequence = s.cluster / kv_heads;
        if (sequence >= static_cast<uint32_t>(p.sequences)) {
          s.begin = s.end = units;
          return s;
        }
        const auto first = static_cast<uint32_t>(page_indptr[sequence]);
        const uint32_t pages = static_cast<uint32_t>(page_indptr[sequence + 1]) - first;
        s.begin = first * kv_heads + s.cluster % kv_heads * pages;
        s.end = s.begin + pages;
        return s;
      }
    }
    s.begin = min(s.cluster * s.even, units);
    s.end = min(s.begin + s.even, units);
    return s;
  }
};

// Pages [first, end) of the |pages| of a sequence, of one kv head.
struct Segment {
  int32_t sequence, head, pages, first, end;

  // The one that begins with |unit|, in a share that ends at |share_end|.
  __device__ static Segment At(const DecodeLaunch& p, const int32_t* page_indptr, uint32_t unit,
                               uint32_t share_end) {
    const auto kv_heads = static_cast<uint32_t>(p.kv_heads);
    const auto page = static_cast<int32_t>(unit / kv_heads);
    int32_t low = 0;  // page_indptr[low] <= page < page_indptr[high]
    int32_t high = p.sequences;
    while (high - low > 1) {
      const int32_t middle = (low + high) / 2;
      if (page_indptr[middle] <= page) {
        low = middle;
      } else {
        high = middle;
      }
    }
    const auto pages = static_cast<uint32_t>(page_indptr[low + 1] - page_indptr[low]);
    const uint32_t in = unit - static_cast<uint32_t>(page_indptr[low]) * kv_heads;
    const uint32_t first = in % pages;
    return {low, static_cast<int32_t>(in / pages), static_cast<int32_t>(pages),
            static_cast<int32_t>(first),
            static_cast<int32_t>(min(pages, first + share_end - unit))};
  }
  __device__ uint32_t units() const { return static_cast<uint32_t>(end - first); }
};

// Represents the pages of a share that one warp computes, and asks for them in that order.
template <int kDim>
class Loader {
  using S = Shape<kDim>;

 public:
  __device__ Loader(const DecodeLaunch& p, const Shared<kDim>& s, const Share& share)
      : p_(p),
        s_(s),
        unit_(share.begin),
        end_(share.end),
        worker_(static_cast<int32_t>(share.rank * S::kWarps + threadIdx.x / 32)),
        workers_(static_cast<int32_t>(share.ranks * S::kWarps)) {
    if (unit_ < end_) Enter();
    Look();
    Settle();
  }

  // Whether the next page is a sequence's last, which this step writes.
  __device__ bool AtLastPage() const {
    return at_ < now_.count && now_.page + at_ * workers_ == now_.pages - 1;
  }

  // Asks for the next page, if there is one, and commits.
  __device__ void Load(uint8_t* stage) {
    if (at_ < now_.count) {
      const int32_t block = __shfl_sync(~0u, now_.block, at_);
      const bool last = AtLastPage();
      Copy(stage, p_.k + block * p_.block_stride + now_.head * p_.head_stride,
           last ? s_.last_page_len[now_.sequence] : kBlockTokens);
      ++at_;
      Settle();
    }
    warp::CommitCopies();
  }

 private:
  // Up to 32 pages of a segment, whose blocks are known: lane i has that of page |page| +
  // i * workers. They are looked up a run ahead.
  struct Run {
    int32_t sequence = 0, head = 0, pages = 0, page = 0, count = 0;
    int32_t block = 0;
  };

  __device__ void Enter() {
    segment_ = Segment::At(p_, s_.page_indptr, unit_, end_);
    page_ = segment_.first + worker_;
  }

  // Finds the run behind |next_|.
  __device__ void Look() {
    next_.count = 0;
    while (unit_ < end_) {
      if (page_ < segment_.end) {
        const int32_t count = min(32, (segment_.end - page_ + workers_ - 1) / workers_);
        const auto lane = static_cast<int32_t>(threadIdx.x % 32);
        const int32_t first = s_.page_indptr[segment_.sequence] + page_;
        next_ = {segment_.sequence,
                 segment_.head,
                 segment_.pages,
                 page_,
                 count,
                 lane < count ? p_.blocks[first + lane * workers_] : 0};
        page_ += count * workers_;
        return;
      }
      unit_ += segment_.units();
      if (unit_ < end_) Enter();
    }
  }

  __device__ void Settle() {
    if (at_ < now_.count) return;
    now_ = next_;
    at_ = 0;
    Look();
  }

  // The tile's row r has its 16-byte piece c at c ^ r % 8, so that eight rows' pieces of one column
  // lie in different banks.
  __device__ void Copy(uint8_t* stage, const Bf16* k, int32_t tokens) {
    constexpr int kPieces = kDim / 8;    // of a row
    constexpr int kRows = 32 / kPieces;  // that the warp copies at once
    const auto lane = static_cast<int32_t>(threadIdx.x % 32);
    const int32_t piece = lane % kPieces;
#pragma unroll
    for (int slab = 0; slab < 2; ++slab) {
#pragma unroll
      for (int row0 = 0; row0 < kBlockTokens; row0 += kRows) {
        const int32_t row = row0 + lane / kPieces;
        const Bf16* from = k + slab * p_.v_offset + row * p_.token_stride + piece * 8;
        warp::CopyAsync(stage + slab * S::kTileBytes + (row * kPieces + (piece ^ row % 8)) * 16,
                        from, row < tokens);
      }
    }
  }

  const DecodeLaunch& p_;
  const Shared<kDim>& s_;
  uint32_t unit_;  // where segment_ begins
  const uint32_t end_;
  const int32_t worker_, workers_;
  Segment segment_ = {};
  int32_t page_ = 0;  // of segment_, behind next_
  Run now_, next_;
  int32_t at_ = 0;  // in now_
};

// What a warp has of a segment. The lane has of its heads 2 (lane % 4) and one more; of the values
// what warp::Product says.
template <int kDim>
struct WarpPiece {
  float out[kDim / 16][4] = {};
  float max[2] = {kNothing, kNothing};  // the same in all lanes of the heads
  float sum[2] = {};                    // over the lane's own tokens
};

// Query heads as columns: of each 16 dimensions a product's b. Columns beyond the group are zero.
template <int kDim>
struct Queries {
  uint32_t b[kDim / 16][2];

  __device__ Queries(const DecodeLaunch& p, const Segment& segment) {
    const auto lane = static_cast<int32_t>(threadIdx.x % 32);
    const int32_t head = lane / 4;
    const Bf16* q = p.q + segment.sequence * p.q_stride +
                    int64_t{segment.head * p.group + head} * kDim + 2 * (lane % 4);
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      b[i][0] = b[i][1] = 0;
      if (head >= p.group) continue;
      b[i][0] = *reinterpret_cast<const uint32_t*>(q + 16 * i);
      b[i][1] = *reinterpret_cast<const uint32_t*>(q + 16 * i + 8);
    }
  }
};

// Adds the first |tokens| tokens of a page.
template <int kDim>
__device__ __forceinline__ void AddPage(const uint8_t* stage, int32_t tokens, float scale,
                                        const Queries<kDim>& queries, WarpPiece<kDim>* piece) {
  constexpr int kPieces = kDim / 8;
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  float scores[2][4] = {};  // two sums, so that one product need not wait for the one before
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    const int32_t row = lane % 16;
    uint32_t a[4];
    warp::LoadMatrices(stage + (row * kPieces + ((2 * i + lane / 16) ^ row % 8)) * 16, a);
    warp::Product(scores[i % 2], a, queries.b[i][0], queries.b[i][1]);
  }
  // Score j is of token lane / 4 + 8 (j / 2) and head 2 (lane % 4) + j % 2.
  float s[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const bool seen = lane / 4 + 8 * (j / 2) < tokens;
    s[j] = seen ? (scores[0][j] + scores[1][j]) * scale : kNothing;
  }
  float old[2], shrink[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float most = fmaxf(s[h], s[h + 2]);
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
    }
    old[h] = piece->max[h];
    piece->max[h] = fmaxf(old[h], most);
    shrink[h] = warp::Exp2(old[h] - piece->max[h]);
    s[h] = warp::Exp2(s[h] - piece->max[h]);
    s[h + 2] = warp::Exp2(s[h + 2] - piece->max[h]);
    piece->sum[h] = piece->sum[h] * shrink[h] + (s[h] + s[h + 2]);
  }
  if (__any_sync(~0u, old[0] != piece->max[0] || old[1] != piece->max[1])) {
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) piece->out[i][j] *= shrink[j % 2];
    }
  }
  const uint32_t b0 = warp::Transposed(warp::PackPair(s[0], s[1]));
  const uint32_t b1 = warp::Transposed(warp::PackPair(s[2], s[3]));
  const uint8_t* values = stage + Shape<kDim>::kTileBytes;
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    const int32_t row = lane % 8 + lane / 16 * 8;
    uint32_t a[4];
    warp::LoadTransposed(values + (row * kPieces + ((2 * i + lane / 8 % 2) ^ row % 8)) * 16, a);
    warp::Product(piece->out[i], a, b0, b1);
  }
}

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
  __device__ Target(const DecodeLaunch& p, const Share& share, const Segment& segment,
                    uint32_t unit)
      : p_(p),
        out_(p.out + (int64_t{segment.sequence} * p.kv_heads + segment.head) * p.group * kDim),
        split_(segment.first != 0 || segment.end != segment.pages) {
    const uint32_t begin = unit - static_cast<uint32_t>(segment.first);
    // Of the pieces of a kv head only the first is not the first of its cluster.
    first_cluster_ = begin / share.even;
    last_cluster_ = (begin + static_cast<uint32_t>(segment.pages) - 1) / share.even;
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
// then. Segment |met| of the share; |more|: it is not the last.
template <int kDim>
__device__ void Meet(const Shared<kDim>& s, const Share& share, const Target<kDim>& target,
                     uint32_t met, bool more) {
  using S = Shape<kDim>;
  const uint32_t head = threadIdx.x % kHeads;  // of all values that this thread takes
  Merged block;
  float weight[S::kWarps];
#pragma unroll
  for (int w = 0; w < S::kWarps; ++w) block.max = fmaxf(block.max, s.warps[w].max[head]);
  const float from = block.max == kNothing ? 0.0f : block.max;
#pragma unroll
  for (int w = 0; w < S::kWarps; ++w) {
    weight[w] = warp::Exp2(s.warps[w].max[head] - from);
    block.sum += weight[w] * s.warps[w].sum[head];
  }
  const auto value = [&](uint32_t i) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < S::kWarps; ++w) sum += weight[w] * s.warps[w].value[i];
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
  const Share share = Share::Of<S::kWarps>(p, s.page_indptr);
  const auto warp = static_cast<int32_t>(threadIdx.x / 32);
  const auto worker = static_cast<int32_t>(share.rank) * S::kWarps + warp;
  const auto workers = static_cast<int32_t>(share.ranks) * S::kWarps;
  uint8_t* ring = s.ring + warp * (S::kStages * 2 * S::kTileBytes);

  // KV of earlier steps is there; this step's is the predecessor's.
  Loader<kDim> loader(p, s, share);
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
  for (uint32_t unit = share.begin; unit < share.end; ++met) {
    const Segment segment = Segment::At(p, s.page_indptr, unit, share.end);
    const Queries<kDim> queries(p, segment);
    WarpPiece<kDim> piece;
    for (int32_t page = segment.first + worker; page < segment.end; page += workers) {
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
    __syncthreads();  // all warps have read the pieces of the segment before
    Store(piece, &s.warps[warp]);
    __syncthreads();
    const Target<kDim> target(p, share, segment, unit);
    unit += segment.units();
    Meet(s, share, target, met, unit < share.end);
    if (target.split()) target.Meet(s, share.ranks);
  }
  if (!alone && met == 0) hopper::ClusterWait();
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace weir::cuda::decode
