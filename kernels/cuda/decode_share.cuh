// What decode_attention.h's kernel is told, how its shared memory is laid out, and which units are
// a cluster's.
#pragma once

#include <cmath>

#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/hopper.cuh"

namespace weir::cuda::decode {

constexpr int kHeads = kMaxDecodeGroup;  // columns of a product
// In pages, what a segment costs besides them: where blocks and clusters begin, warps meet, and the
// first products wait. H100, 60 sequences of 1 to 1,024 tokens: 80 us with 0, 55 with 6, 52 with 10
// to 28, as many as with equal contexts.
constexpr uint32_t kSegmentPages = 14;
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
      kRingBytes + 2 * kWarps * (kValues + 2 * kHeads) * 4 + kReceivedBytes + kTableBytes + 24;
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
  Piece<kDim>* warps;  // [2][warps]
  Received<kDim>* received;
  uint64_t* whole;         // all that the cluster sends for a segment has come
  uint64_t* read;          // every block of the cluster has read what it got
  int32_t* page_indptr;    // [sequences + 1]
  int32_t* last_page_len;  // [sequences]
  uint32_t* last;          // whether this block is the last that comes to a kv head

  __device__ explicit Shared(uint8_t* raw) {
    ring = raw;
    warps = reinterpret_cast<Piece<kDim>*>(ring + S::kRingBytes);
    received = reinterpret_cast<Received<kDim>*>(warps + 2 * S::kWarps);
    whole = reinterpret_cast<uint64_t*>(received + 1);
    read = whole + 1;
    page_indptr = reinterpret_cast<int32_t*>(read + 1);
    last_page_len = page_indptr + kMaxDecodeSequences + 1;
    last = reinterpret_cast<uint32_t*>(last_page_len + kMaxDecodeSequences + 1);
  }
};

// What a cluster does: [begin, end) of a line on which every kv head takes kSegmentPages places,
// and behind them one for each of its pages. The kv heads of a sequence lie one behind the other,
// and so do sequences, up to the last one that has pages.
struct Share {
  uint32_t rank, ranks, cluster;
  uint32_t begin, end;
  uint32_t even;  // places of a share, where kv heads may be cut
  bool cuts;      // whether they may be

  // Where sequence |i| begins on the line, divided by the number of kv heads.
  __device__ static uint32_t LineOf(const int32_t* page_indptr, int32_t i) {
    return static_cast<uint32_t>(page_indptr[i]) + static_cast<uint32_t>(i) * kSegmentPages;
  }

  template <int kWarps>
  __device__ static Share Of(const DecodeLaunch& p, const int32_t* page_indptr) {
    // In places, what it costs that a kv head's pieces meet in device memory.
    constexpr uint32_t kMeeting = 8;
    Share s;
    s.rank = hopper::ClusterRank();
    s.ranks = hopper::ClusterSize();
    s.cluster = blockIdx.x / s.ranks;
    const uint32_t clusters = gridDim.x / s.ranks;
    const auto kv_heads = static_cast<uint32_t>(p.kv_heads);
    const int32_t sequences = WithPages(p, page_indptr);
    const uint32_t all = LineOf(page_indptr, sequences) * kv_heads;
    s.even = max((all + clusters - 1) / clusters, s.ranks * kWarps);
    if (static_cast<uint32_t>(sequences) * kv_heads <= clusters) {
      int32_t longest = 0;
      for (int32_t i = 0; i < sequences; ++i) {
        longest = max(longest, page_indptr[i + 1] - page_indptr[i]);
      }
      if (static_cast<uint32_t>(longest) + kSegmentPages <= s.even + kMeeting * s.ranks) {
        s.cuts = false;
        const auto sequence = static_cast<int32_t>(s.cluster / kv_heads);
        if (sequence >= sequences) {
          s.begin = s.end = all;
          return s;
        }
        const uint32_t line = LineOf(page_indptr, sequence);
        const uint32_t places = LineOf(page_indptr, sequence + 1) - line;
        s.begin = line * kv_heads + s.cluster % kv_heads * places;
        s.end = s.begin + places;
        return s;
      }
    }
    s.cuts = true;
    s.begin = min(s.cluster * s.even, all);
    s.end = min(s.begin + s.even, all);
    return s;
  }

 private:
  // Sequences up to the last one with pages. A warp looks together.
  __device__ static int32_t WithPages(const DecodeLaunch& p, const int32_t* page_indptr) {
    int32_t found = 0;
    for (int32_t i = 0; i < p.sequences; i += 32) {
      const int32_t at = i + static_cast<int32_t>(threadIdx.x % 32);
      const bool before = at < p.sequences && page_indptr[at] < page_indptr[p.sequences];
      found += __popc(__ballot_sync(~0u, before));
    }
    return found;
  }
};

// Pages [first, end) of the |pages| of a sequence, of one kv head, which is at |begin| on the line.
struct Segment {
  int32_t sequence, head, pages, first, end;
  uint32_t begin;

  // What the share [from, stop) has of the kv head that |from| lies in: perhaps no page. A warp
  // looks together.
  __device__ static Segment At(const DecodeLaunch& p, const int32_t* page_indptr, uint32_t from,
                               uint32_t stop) {
    const auto kv_heads = static_cast<uint32_t>(p.kv_heads);
    const uint32_t place = from / kv_heads;
    // Sequences that end at |place| or before it: first whole runs of them, then within a run.
    const auto lane = static_cast<int32_t>(threadIdx.x % 32);
    const int32_t run = (p.sequences + 31) / 32;
    const auto ended = [&](int32_t sequences) {
      const bool over = sequences <= p.sequences && Share::LineOf(page_indptr, sequences) <= place;
      return __popc(__ballot_sync(~0u, over));
    };
    int32_t sequence = ended((lane + 1) * run) * run;
    if (run > 1) sequence += ended(lane + 1 < run ? sequence + lane + 1 : p.sequences + 1);
    const uint32_t line = Share::LineOf(page_indptr, sequence);
    const uint32_t places = Share::LineOf(page_indptr, sequence + 1) - line;
    const uint32_t head = (from - line * kv_heads) / places;
    Segment s{.sequence = sequence,
              .head = static_cast<int32_t>(head),
              .pages = static_cast<int32_t>(places - kSegmentPages),
              .begin = line * kv_heads + head * places};
    s.first = s.PagesBefore(from);
    s.end = s.PagesBefore(stop);
    return s;
  }
  __device__ int32_t PagesBefore(uint32_t place) const {
    return min(pages, max(0, static_cast<int32_t>(place - begin - kSegmentPages)));
  }
  __device__ bool empty() const { return first >= end; }
};

// Represents the segments of a share that have pages, in the order in which they are computed. A kv
// head that the share's end cuts comes first: its pieces meet while the others are computed.
class Walk {
 public:
  __device__ Walk(const DecodeLaunch& p, const int32_t* page_indptr, const Share& share)
      : p_(p),
        page_indptr_(page_indptr),
        begin_(share.begin),
        at_(share.begin),
        stop_(share.end),
        turn_(share.begin) {
    if (done()) return;
    if (share.cuts) {
      segment_ = Segment::At(p, page_indptr, stop_ - 1, stop_);
      segment_.first = 0;
      if (segment_.end < segment_.pages && segment_.begin > begin_) {
        if (!segment_.empty()) {
          turn_ = at_ = segment_.begin;
          return;
        }
        stop_ = segment_.begin;
      }
    }
    Enter(begin_);
  }

  __device__ bool done() const { return at_ == stop_; }
  __device__ const Segment& segment() const { return segment_; }
  // The first page of the segment that |worker| of |workers| takes, and then every |workers|th.
  // Pages go round from segment to segment, so that short ones keep all busy.
  __device__ int32_t FirstPage(int32_t worker, int32_t workers) const {
    return segment_.first + ((worker - taken_) & (workers - 1));
  }

  __device__ void Next() {
    taken_ += segment_.end - segment_.first;
    Pass();
    if (done() && stop_ != turn_ && turn_ != begin_) {
      stop_ = turn_;
      Enter(begin_);
    }
  }

 private:
  __device__ void Enter(uint32_t at) {
    at_ = at;
    segment_ = Segment::At(p_, page_indptr_, at_, stop_);
    if (segment_.empty()) Pass();
  }
  // To the next segment with pages.
  __device__ void Pass() {
    do {
      at_ = min(stop_, segment_.begin + static_cast<uint32_t>(segment_.pages) + kSegmentPages);
      if (done()) return;
      if (++segment_.head == p_.kv_heads) {
        segment_.head = 0;
        ++segment_.sequence;
        segment_.pages = page_indptr_[segment_.sequence + 1] - page_indptr_[segment_.sequence];
      }
      segment_.begin = at_;
      segment_.first = 0;
      segment_.end = segment_.PagesBefore(stop_);
    } while (segment_.empty());
  }

  const DecodeLaunch& p_;
  const int32_t* page_indptr_;
  const uint32_t begin_;
  uint32_t at_, stop_;
  uint32_t turn_;      // where the cut kv head begins, begin_ if there is none
  int32_t taken_ = 0;  // pages before the segment
  Segment segment_ = {};
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace weir::cuda::decode
