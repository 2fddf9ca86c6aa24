// Histogram: counts of durations in buckets of at most 1.6 % width, so percentiles need no sorting.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

namespace weir::trace_tool {

class Histogram {
 public:
  void Add(uint64_t value) {
    const size_t i = Index(value);
    if (counts_.size() <= i) counts_.resize(i + 1);
    ++counts_[i];
    ++count_;
    sum_ += static_cast<double>(value);
    max_ = std::max(max_, value);
  }
  uint64_t count() const { return count_; }
  double sum() const { return sum_; }
  double mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }
  uint64_t max() const { return max_; }
  // The least value that |share| (0..1) of all do not exceed, within 1.6 %; 0 without values.
  uint64_t Percentile(double share) const {
    const double wanted = share * static_cast<double>(count_);
    double seen = 0;
    for (size_t i = 0; i < counts_.size(); ++i) {
      seen += static_cast<double>(counts_[i]);
      if (counts_[i] != 0 && seen >= wanted) return std::min(max_, UpperEdge(i));
    }
    return max_;
  }

 private:
  static constexpr unsigned kBits = 6;  // sub-buckets of an octave
  static size_t Index(uint64_t v) {
    if (v < (1U << kBits)) return static_cast<size_t>(v);
    const auto octave = static_cast<unsigned>(std::bit_width(v)) - 1 - kBits;
    return ((octave + 1) << kBits) + static_cast<size_t>((v >> octave) - (1U << kBits));
  }
  static uint64_t UpperEdge(size_t i) {
    if (i < (1U << kBits)) return i;
    const auto octave = static_cast<unsigned>(i >> kBits) - 1;
    const uint64_t top = (uint64_t{1} << kBits) + (i & ((1U << kBits) - 1));
    return (top << octave) + ((uint64_t{1} << octave) - 1);
  }
  std::vector<uint64_t> counts_;
  uint64_t count_ = 0;
  double sum_ = 0;
  uint64_t max_ = 0;
};

}  // namespace weir::trace_tool
