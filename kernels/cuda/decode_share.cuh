// What decode_attention.h's kernel is told, how its shared memory is laid out, and which units are
// a cluster's.
#pragma once

#include <cmath>

#include "kernels/cuda/decode_attention.h"
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
      kRingBytes + kWarps * (kValues + 2 * kHeads) * 4 + kReceivedBytes + kTableBytes + 24;
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
  uint32_t even;  // units of a share, where kv heads may be cut
  bool cuts;      // whether they may be

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
          s.cuts = false;
          s.begin = s.end = units;
          return s;
        }
        const auto first = static_cast<uint32_t>(page_indptr[sequence]);
        const uint32_t pages = static_cast<uint32_t>(page_indptr[sequence + 1]) - first;
        s.cuts = false;
        s.begin = first * kv_heads + s.cluster % kv_heads * pages;
        s.end = s.begin + pages;
        return s;
      }
    }
    s.cuts = true;
    s.begin = min(s.cluster * s.even, units);
    s.end = min(s.begin + s.even, units);
    return s;
  }
};

// Pages [first, end) of the |pages| of a sequence, of one kv head.
struct Segment {
  int32_t sequence, head, pages, first, end;

  // The one that begins with |unit|, in units that end at |stop|. A warp looks together.
  __device__ static Segment At(const DecodeLaunch& p, const int32_t* page_indptr, uint32_t unit,
                               uint32_t stop) {
    const auto kv_heads = static_cast<uint32_t>(p.kv_heads);
    const auto page = static_cast<int32_t>(unit / kv_heads);
    // Sequences that end at |page| or before it: first whole runs of them, then within a run.
    const auto lane = static_cast<int32_t>(threadIdx.x % 32);
    const int32_t run = (p.sequences + 31) / 32;
    const auto ended = [&](int32_t sequences) {
      const bool over = sequences <= p.sequences && page_indptr[sequences] <= page;
      return __popc(__ballot_sync(~0u, over));
    };
    int32_t sequence = ended((lane + 1) * run) * run;
    if (run > 1) sequence += ended(lane + 1 < run ? sequence + lane + 1 : p.sequences + 1);
    const auto pages = static_cast<uint32_t>(page_indptr[sequence + 1] - page_indptr[sequence]);
    const uint32_t in = unit - static_cast<uint32_t>(page_indptr[sequence]) * kv_heads;
    const uint32_t head = in / pages;
    const uint32_t first = in - head * pages;
    return {sequence, static_cast<int32_t>(head), static_cast<int32_t>(pages),
            static_cast<int32_t>(first), static_cast<int32_t>(min(pages, first + stop - unit))};
  }
  __device__ uint32_t units() const { return static_cast<uint32_t>(end - first); }
};

// Represents the segments of a share, in the order in which they are computed. A kv head that the
// share's end cuts comes first: its pieces meet while the others are computed.
class Walk {
 public:
  __device__ Walk(const DecodeLaunch& p, const int32_t* page_indptr, const Share& share)
      : p_(p),
        page_indptr_(page_indptr),
        begin_(share.begin),
        unit_(share.begin),
        stop_(share.end) {
    turn_ = begin_;
    if (done()) return;
    if (share.cuts) {
      segment_ = Segment::At(p, page_indptr, stop_ - 1, stop_);
      const uint32_t head_begin = stop_ - 1 - static_cast<uint32_t>(segment_.first);
      if (segment_.end < segment_.pages && head_begin > begin_) {
        segment_.first = 0;
        turn_ = unit_ = head_begin;
        return;
      }
    }
    segment_ = Segment::At(p_, page_indptr_, unit_, stop_);
  }

  __device__ bool done() const { return unit_ == stop_; }
  __device__ const Segment& segment() const { return segment_; }
  __device__ uint32_t unit() const { return unit_; }  // the segment's first

  __device__ void Next() {
    unit_ += segment_.units();
    if (unit_ == stop_ && stop_ != turn_ && turn_ != begin_) {
      unit_ = begin_;
      stop_ = turn_;
      if (!done()) segment_ = Segment::At(p_, page_indptr_, unit_, stop_);
      return;
    }
    if (done()) return;
    if (++segment_.head == p_.kv_heads) {
      segment_.head = 0;
      do {
        ++segment_.sequence;
        segment_.pages = page_indptr_[segment_.sequence + 1] - page_indptr_[segment_.sequence];
      } while (segment_.pages == 0);
    }
    segment_.first = 0;
    segment_.end = min(segment_.pages, static_cast<int32_t>(stop_ - unit_));
  }

 private:
  const DecodeLaunch& p_;
  const int32_t* page_indptr_;
  const uint32_t begin_;
  uint32_t unit_, stop_;
  uint32_t turn_;  // where the cut kv head begins, begin_ if there is none
  Segment segment_ = {};
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace weir::cuda::decode
