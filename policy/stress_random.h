// For tests: legal decisions without sense, to shake every path of the pager.
#pragma once

#include "policy/params.h"
#include "policy/policy.h"

namespace weir {

struct StressRandomConfig {
  uint64_t seed = 1;        // same seed and steps, same decisions
  uint64_t hold_steps = 4;  // steps between moves; 0 moves at every step
  // Share of decisions that ask for nothing evicted, so that the way home is exercised; [0, 1].
  double home_share = 0.25;
  ParamTable Params();
};

// Represents a policy that jumps to a random legal target, in a random placement, every hold_steps.
// Its state is the last target and its step.
class StressRandomPolicy final : public Policy {
 public:
  explicit StressRandomPolicy(const StressRandomConfig& config) : config_(config) {}
  std::string_view name() const override { return "stress_random"; }
  PolicyDecision Decide(const PolicySnapshot& snapshot) override;
  bool lookup_in_place() const override { return true; }
  std::vector<std::pair<std::string, std::string>> Parameters() const override;

 private:
  StressRandomConfig config_;
  bool started_ = false;
  uint64_t moved_at_ = 0;
  uint64_t moves_ = 0;
  PolicyDecision target_;  // without its reason
};

}  // namespace weir
