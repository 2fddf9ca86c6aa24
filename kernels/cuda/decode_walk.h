// Which pages of which kv heads a cluster of decode_attention.h's kernel computes, and in which
// order. Arithmetic alone: on the device, and on the host for tests.
#pragma once

#include <cstdint>

#include "kernels/cuda/host_device.h"

namespace weir::cuda::decode {

// In pages, what a segment costs besides them: where blocks and clusters begin, warps meet, and the
// first products wait. H100, 60 sequences of 1 to 1,024 tokens: 80 us with 0, 55 with 6, 52 with 10
// to 28, as many as with equal contexts.
constexpr uint32_t kSegmentPages = 14;
// In pages, what it costs that a kv head's pieces meet in device memory.
constexpr uint32_t kMeetingPages = 8;

template <typename T>
WEIR_BOTH constexpr T Least(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
WEIR_BOTH constexpr T Most(T a, T b) {
  return a < b ? b : a;
}

// How many of 32 lanes |holds(lane)| for. On the device each lane of a warp answers for itself, all
// at once.
template <typename HoldsFn>
WEIR_BOTH int32_t CountLanes(HoldsFn holds) {
#if defined(__CUDA_ARCH__)
  return __popc(__ballot_sync(~0u, holds(static_cast<int32_t>(threadIdx.x % 32))));
#else
  int32_t count = 0;
  for (int32_t lane = 0; lane < 32; ++lane) count += holds(lane) ? 1 : 0;
  return count;
#endif
}

// A batch as a line, on which every kv head takes kSegmentPages places, and behind them one for
// each of its pages. The kv heads of a sequence lie one behind the other, and so do sequences.
struct Line {
  const int32_t* page_indptr;  // [sequences + 1]
  int32_t sequences, kv_heads;

  // Where sequence |i| begins, divided by the number of kv heads.
  WEIR_BOTH uint32_t At(int32_t i) const {
    return static_cast<uint32_t>(page_indptr[i]) + static_cast<uint32_t>(i) * kSegmentPages;
  }
  WEIR_BOTH int32_t PagesOf(int32_t i) const { return page_indptr[i + 1] - page_indptr[i]; }

  // Sequences up to the last one with pages.
  WEIR_BOTH int32_t WithPages() const {
    int32_t found = 0;
    for (int32_t i = 0; i < sequences; i += 32) {
      found += CountLanes([&](int32_t lane) {
        return i + lane < sequences && page_indptr[i + lane] < page_indptr[sequences];
      });
    }
    return found;
  }

  // The sequence among whose kv heads |place| * kv_heads is: as many as end there or before.
  WEIR_BOTH int32_t SequenceAt(uint32_t place) const {
    const auto ended = [&](int32_t count) { return count <= sequences && At(count) <= place; };
    // First whole runs of sequences, then within a run.
    const int32_t run = (sequences + 31) / 32;
    const int32_t before = CountLanes([&](int32_t lane) { return ended((lane + 1) * run); }) * run;
    if (run == 1) return before;
    return before +
           CountLanes([&](int32_t lane) { return lane + 1 < run && ended(before + lane + 1); });
  }
};

// Pages [first, end) of the |pages| of a sequence, of one kv head, which is at |begin| on the line.
struct Segment {
  int32_t sequence, head, pages, first, end;
  uint32_t begin;

  // What the share [from, stop) has of the kv head that |from| lies in: perhaps no page.
  WEIR_BOTH static Segment At(const Line& line, uint32_t from, uint32_t stop) {
    const auto kv_heads = static_cast<uint32_t>(line.kv_heads);
    const int32_t sequence = line.SequenceAt(from / kv_heads);
    const uint32_t at = line.At(sequence);
    const uint32_t places = line.At(sequence + 1) - at;
    const uint32_t head = (from - at * kv_heads) / places;
    Segment s{.sequence = sequence,
              .head = static_cast<int32_t>(head),
              .pages = static_cast<int32_t>(places - kSegmentPages),
              .begin = at * kv_heads + head * places};
    s.first = s.PagesBefore(from);
    s.end = s.PagesBefore(stop);
    return s;
  }
  WEIR_BOTH int32_t PagesBefore(uint32_t place) const {
    return Least(pages, Most(0, static_cast<int32_t>(place - begin - kSegmentPages)));
  }
  WEIR_BOTH bool empty() const { return first >= end; }
  WEIR_BOTH bool whole() const { return first == 0 && end == pages; }
};

// What a cluster does: [begin, end) of the line.
struct Share {
  uint32_t rank = 0, ranks = 1, cluster = 0;
  uint32_t begin = 0, end = 0;
  uint32_t even = 1;  // places of a share, where kv heads may be cut
  bool cuts = false;  // whether they may be

  // Of block |rank| of |ranks| in |cluster| of |clusters|; blocks have |warps| warps.
  WEIR_BOTH static Share Of(const Line& line, uint32_t rank, uint32_t ranks, uint32_t cluster,
                            uint32_t clusters, uint32_t warps) {
    Share s;
    s.rank = rank;
    s.ranks = ranks;
    s.cluster = cluster;
    const auto kv_heads = static_cast<uint32_t>(line.kv_heads);
    const int32_t sequences = line.WithPages();
    const uint32_t all = line.At(sequences) * kv_heads;
    s.even = Most((all + clusters - 1) / clusters, ranks * warps);
    if (static_cast<uint32_t>(sequences) * kv_heads <= clusters) {
      int32_t longest = 0;
      for (int32_t i = 0; i < sequences; ++i) longest = Most(longest, line.PagesOf(i));
      if (static_cast<uint32_t>(longest) + kSegmentPages <= s.even + kMeetingPages * ranks) {
        const auto sequence = static_cast<int32_t>(cluster / kv_heads);
        if (sequence >= sequences) {
          s.begin = s.end = all;
          return s;
        }
        const uint32_t at = line.At(sequence);
        const uint32_t places = line.At(sequence + 1) - at;
        s.begin = at * kv_heads + cluster % kv_heads * places;
        s.end = s.begin + places;
        return s;
      }
    }
    s.cuts = true;
    s.begin = Least(cluster * s.even, all);
    s.end = Least(s.begin + s.even, all);
    return s;
  }

  // Where kv heads are cut: the first and the last of the clusters that have pages of |segment|'s
  // kv head. All between them have some.
  WEIR_BOTH uint32_t FirstClusterOf(const Segment& segment) const {
    return (segment.begin + kSegmentPages) / even;
  }
  WEIR_BOTH uint32_t LastClusterOf(const Segment& segment) const {
    return (segment.begin + kSegmentPages + static_cast<uint32_t>(segment.pages) - 1) / even;
  }
};

// Represents the segments of a share that have pages, in the order in which they are computed. A kv
// head that the share's end cuts comes first: its pieces meet while the others are computed.
class Walk {
 public:
  WEIR_BOTH Walk(const Line& line, const Share& share)
      : line_(line), begin_(share.begin), at_(share.begin), stop_(share.end), turn_(share.begin) {
    if (done()) return;
    if (share.cuts) {
      segment_ = Segment::At(line_, stop_ - 1, stop_);
      segment_.first = 0;
      if (!segment_.empty() && !segment_.whole() && segment_.begin > begin_) {
        turn_ = at_ = segment_.begin;
        return;
      }
    }
    Enter(begin_);
  }

  WEIR_BOTH bool done() const { return at_ == stop_; }
  WEIR_BOTH const Segment& segment() const { return segment_; }
  // The first page of the segment that |worker| of |workers| (a power of two) takes, and then every
  // |workers|th. Pages go round from segment to segment, so that short ones keep all busy.
  WEIR_BOTH int32_t FirstPage(int32_t worker, int32_t workers) const {
    return segment_.first + ((worker - taken_) & (workers - 1));
  }

  WEIR_BOTH void Next() {
    taken_ += segment_.end - segment_.first;
    Pass();
    if (done() && stop_ != turn_ && turn_ != begin_) {
      stop_ = turn_;
      Enter(begin_);
    }
  }

 private:
  WEIR_BOTH void Enter(uint32_t at) {
    at_ = at;
    segment_ = Segment::At(line_, at_, stop_);
    if (segment_.empty()) Pass();
  }
  // To the next segment with pages.
  WEIR_BOTH void Pass() {
    do {
      at_ = Least(stop_, segment_.begin + static_cast<uint32_t>(segment_.pages) + kSegmentPages);
      if (done()) return;
      if (++segment_.head == line_.kv_heads) {
        segment_.head = 0;
        ++segment_.sequence;
        segment_.pages = line_.PagesOf(segment_.sequence);
      }
      segment_.begin = at_;
      segment_.first = 0;
      segment_.end = segment_.PagesBefore(stop_);
    } while (segment_.empty());
  }

  const Line line_;
  const uint32_t begin_;
  uint32_t at_, stop_;
  uint32_t turn_;      // where the cut kv head begins, begin_ if there is none
  int32_t taken_ = 0;  // pages before the segment
  Segment segment_ = {};
};

}  // namespace weir::cuda::decode
