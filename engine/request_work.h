// RequestWork: what a request takes, as measured: KV while it runs, prompt tokens computed for it
// (again after a preemption), tokens it generates.
//
// Represents running means over recent steps and recently ended requests, for policies to predict
// with; a request's max_tokens says little about where it ends. Engine thread only.
#pragma once

#include <algorithm>
#include <cstdint>

namespace weir {

class RequestWork {
 public:
  // A request ended by itself: cancelled and failed ones say nothing about lengths.
  void ObserveEnd(double prefill_tokens, double output_tokens) {
    ended_ = std::min(ended_ + 1, kMemoryRequests);
    prefill_ += (prefill_tokens - prefill_) / ended_;
    output_ += (output_tokens - output_) / ended_;
  }
  // A step ended with |running| sequences that hold |used_blocks|.
  void ObserveStep(uint32_t used_blocks, uint32_t running) {
    if (running == 0) return;
    steps_ = std::min(steps_ + 1, kMemorySteps);
    blocks_ += (static_cast<double>(used_blocks) / running - blocks_) / steps_;
  }

  // 0 until something was observed.
  double blocks_per_seq() const { return blocks_; }
  double prefill_per_request() const { return prefill_; }
  double output_per_request() const { return output_; }

 private:
  static constexpr double kMemoryRequests = 128;
  static constexpr double kMemorySteps = 64;
  double ended_ = 0, prefill_ = 0, output_ = 0;
  double steps_ = 0, blocks_ = 0;
};

}  // namespace weir
