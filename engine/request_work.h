// RequestWork: what a request takes, as measured: KV while it runs, prompt tokens computed for it
// (again after a preemption), tokens it generates.
//
// Represents running means over recent steps and recently ended requests, for policies to predict
// the steady state with that a load will come to; a request's max_tokens says little about where it
// ends. After a start, or when much was admitted at once, means over what runs or has ended
// mislead: all that runs is young, and those that end first are the short ones. So
//   tokens a request  every token counts, whoever generated it, from one end to the next;
//   blocks a request  those beside its output, which are the same at any age. Of its output it
//                     holds on average what running requests have generated at a time:
//                     E[n^2] / 2 E[n] for n tokens, which is E[n] if an end is as likely at any
//                     time.
// Engine thread only.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/block_manager.h"

namespace weir {

class RequestWork {
 public:
  // A step ended that gave |output_tokens|; |running| sequences hold |used_blocks|, and have
  // generated |generated| tokens so far.
  void ObserveStep(uint32_t used_blocks, uint32_t running, uint64_t generated,
                   uint64_t output_tokens) {
    since_end_ += static_cast<double>(output_tokens);
    if (running == 0) return;
    steps_ = std::min(steps_ + 1, kMemorySteps);
    const double beside = static_cast<double>(used_blocks) -
                          static_cast<double>(generated) / static_cast<double>(kBlockTokens);
    beside_ += (std::max(0.0, beside) / running - beside_) / steps_;
  }
  // A request ended that has generated |output_tokens|; |prefill_tokens| were computed for it.
  void ObserveEnd(uint64_t prefill_tokens, uint64_t output_tokens) {
    Count(prefill_tokens, output_tokens, since_end_);
    since_end_ = 0;
  }
  // It was cancelled: so did many at once, perhaps, which says nothing about when requests end. Its
  // own tokens count.
  void ObserveCancelled(uint64_t prefill_tokens, uint64_t output_tokens) {
    const auto own = static_cast<double>(output_tokens);
    Count(prefill_tokens, output_tokens, own);
    since_end_ = std::max(0.0, since_end_ - own);
  }

  // 0 until enough was observed.
  double blocks_beside_output() const { return beside_; }
  // E[n^2] / 2 E[n]^2. The few that ended first are alike: until there are more it is taken to
  // be 1.
  double output_spread() const {
    const double measured = own_ > 0 ? own_squared_ / (2 * own_ * own_) : 1;
    return (kPriorRequests + ended_ * measured) / (kPriorRequests + ended_);
  }
  double prefill_per_request() const { return ended_ < kLeastRequests ? 0 : prefill_; }
  double output_per_request() const { return ended_ < kLeastRequests ? 0 : output_; }

 private:
  static constexpr double kLeastRequests = 16;
  static constexpr double kMemoryRequests = 256;
  static constexpr double kPriorRequests = 32;
  static constexpr double kMemorySteps = 1024;

  void Count(uint64_t prefill_tokens, uint64_t own_tokens, double tokens) {
    ended_ = std::min(ended_ + 1, kMemoryRequests);
    const auto own = static_cast<double>(own_tokens);
    prefill_ += (static_cast<double>(prefill_tokens) - prefill_) / ended_;
    output_ += (tokens - output_) / ended_;
    own_ += (own - own_) / ended_;
    own_squared_ += (own * own - own_squared_) / ended_;
  }

  double ended_ = 0, prefill_ = 0, output_ = 0, since_end_ = 0;
  double own_ = 0, own_squared_ = 0;  // mean output of those that ended, and of its square
  double steps_ = 0, beside_ = 0;     // blocks a sequence beside those of its output
};

}  // namespace weir
