// The two baselines: weights never move, and a border chosen by hand.
#pragma once

#include "policy/params.h"
#include "policy/policy.h"

namespace weir {

struct ResidentConfig {
  ParamTable Params() { return {}; }
};

// Represents a conventional engine: all weights stay in HBM. Stateless.
class ResidentPolicy final : public Policy {
 public:
  explicit ResidentPolicy(const ResidentConfig& = {}) {}
  std::string_view name() const override { return "resident"; }
  PolicyDecision Decide(const PolicySnapshot& snapshot) override;
  std::vector<std::pair<std::string, std::string>> Parameters() const override { return {}; }
};

struct FixedConfig {
  // Granules to keep away from each layer, whatever the load; clipped to what a layer can give.
  // 0 evicts nothing.
  uint64_t granules_per_layer = 0;
  ParamTable Params();
};

// Represents a border set once at start-up, as the published offloading engines have it; what a
// moving border is to be compared with. Stateless.
class FixedPolicy final : public Policy {
 public:
  explicit FixedPolicy(const FixedConfig& config) : config_(config) {}
  std::string_view name() const override { return "fixed"; }
  PolicyDecision Decide(const PolicySnapshot& snapshot) override;
  std::vector<std::pair<std::string, std::string>> Parameters() const override;

 private:
  FixedConfig config_;
};

}  // namespace weir
