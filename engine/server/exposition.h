// Prometheus exposition format 0.0.4, and the counters behind it.
//
// Own code, not prometheus-cpp: Debian's package of it has no static library and installs with a
// web server and curl's headers, for what is this file.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weir::server {

// Represents a number that only grows. Any thread.
class Counter {
 public:
  void Add(uint64_t n = 1) { value_.fetch_add(n, std::memory_order_relaxed); }
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

// Represents how often values fell at or below each of some bounds. Observe: one thread at a time;
// reading: any thread. A reader may see an observation in a bucket before it is in the sum.
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds);  // rising
  void Observe(double value);
  std::span<const double> bounds() const { return bounds_; }
  // Of bucket |i|, not cumulative; i == bounds().size(): above the last bound.
  uint64_t count(size_t i) const { return counts_[i].load(std::memory_order_relaxed); }
  double sum() const { return sum_.load(std::memory_order_relaxed); }

 private:
  std::vector<double> bounds_;
  std::unique_ptr<std::atomic<uint64_t>[]> counts_;
  std::atomic<double> sum_{0};
};

// 1, 2, 5, 10, 20, 50 ... up to |most|.
std::vector<double> OneTwoFive(double most);

using Labels = std::vector<std::pair<std::string, std::string>>;

// Represents the text under construction. Each family's samples follow its Family call.
class Exposition {
 public:
  // Labels that every sample has.
  explicit Exposition(Labels common) : common_(std::move(common)) {}

  enum class Type : uint8_t { kCounter, kGauge, kHistogram };
  void Family(std::string_view name, Type type, std::string_view help);
  void Sample(const Labels& labels, double value);
  void Sample(double value) { Sample(Labels(), value); }
  void Sample(const Histogram& histogram);

  std::string Take() { return std::move(text_); }

 private:
  void Line(std::string_view suffix, const Labels& labels, const Labels& more, double value);

  Labels common_;
  std::string name_;
  std::string text_;
};

}  // namespace weir::server
