// RequestWork: what a request takes, as measured: KV while it runs, prompt tokens computed for it
// (again after a preemption), tokens it generates.
//
// Represents running means over recent steps and recently ended requests, for policies to predict
// with; a request's max_tokens says little about where it ends. Those that end first after a start
// are the short ones, so the tokens of a request are counted as those of everybody from one end to
// the next. Engine thread only.
#pragma once

#include <algorithm>
#include <cstdint>

namespace weir {

class RequestWork {
 public:
  // A step ended that gave |output_tokens|; |running| sequences hold |used_blocks|.
  void ObserveStep(uint32_t used_blocks, uint32_t running, uint64_t output_tokens) {
    since_end_ += static_cast<double>(output_tokens);
    if (running == 0) return;
    steps_ = std::min(steps_ + 1, kMemorySteps);
    blocks_ += (static_cast<double>(used_blocks) / running - blocks_) / steps_;
  }
  // A request ended, for which |prefill_tokens| were computed in all.
  void ObserveEnd(uint64_t prefill_tokens) {
    ended_ = std::min(ended_ + 1, kMemoryRequests);
    prefill_ += (static_cast<double>(prefill_tokens) - prefill_) / ended_;
    output_ += (since_end_ - output_) / ended_;
    since_end_ = 0;
  }

  // 0 until enough was observed.
  double blocks_per_seq() const { return blocks_; }
  double prefill_per_request() const { return ended_ < kLeastRequests ? 0 : prefill_; }
  double output_per_request() const { return ended_ < kLeastRequests ? 0 : output_; }

 private:
  static constexpr double kLeastRequests = 16;
  static constexpr double kMemoryRequests = 256;
  static constexpr double kMemorySteps = 1024;
  double ended_ = 0, prefill_ = 0, output_ = 0, since_end_ = 0;
  double steps_ = 0, blocks_ = 0;
};

}  // namespace weir
