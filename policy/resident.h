// The baselines: weights never move, or a border chosen by hand, as the published offloading
// engines with a static plan have it.
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
  bool follows_load() const override { return false; }
  std::vector<std::pair<std::string, std::string>> Parameters() const override { return {}; }
};

struct FixedConfig {
  // Granules to keep away from each layer, whatever the load; clipped to what a layer can give.
  // 0 evicts nothing.
  uint64_t granules_per_layer = 0;
  Placement placement = Placement::kStripe;  // or kInPlace
  uint64_t embedding_in_place = 0;           // as TideConfig has it
  double itl_ms = 0;                         // likewise
  ParamTable Params();
};

// Represents a border set once at start-up, in granules; what a moving border is to be compared
// with. Stateless.
class FixedPolicy final : public Policy {
 public:
  explicit FixedPolicy(const FixedConfig& config) : config_(config) {}
  std::string_view name() const override { return "fixed"; }
  PolicyDecision Decide(const PolicySnapshot& snapshot) override;
  bool follows_load() const override { return false; }
  bool lookup_in_place() const override { return config_.embedding_in_place != 0; }
  std::vector<std::pair<std::string, std::string>> Parameters() const override;

 private:
  FixedConfig config_;
};

struct StaticConfig {
  double fraction = 0;  // of the most that may leave; [0, 1]
  Placement placement = Placement::kLayer;
  ParamTable Params();
};

// Represents a fixed share of the weights away, as vLLM's prefetch offloading has it (vLLM pull
// request 29941: the last M of each group of N layers are streamed through a static pool of slots).
// The share stands for M / N; layers that do not exceed the ring's slots stay, since evicting them
// would free nothing. In place: as engines do whose kernels read offloaded weights through mapped
// host memory. The same as FixedPolicy but for the unit. Stateless.
class StaticPolicy final : public Policy {
 public:
  explicit StaticPolicy(const StaticConfig& config) : config_(config) {}
  std::string_view name() const override { return "static"; }
  PolicyDecision Decide(const PolicySnapshot& snapshot) override;
  bool follows_load() const override { return false; }
  std::vector<std::pair<std::string, std::string>> Parameters() const override;

 private:
  StaticConfig config_;
};

struct ZeroInferenceConfig {
  ParamTable Params() { return {}; }
};

// Represents full offloading: every layer is streamed in every step through two slots (two fetches
// outstanding at most), and all the HBM that this frees goes to the batch (ZeRO-Inference;
// Aminabadi et al., "DeepSpeed Inference", SC 2022). StaticPolicy at a fraction of one. Stateless.
class ZeroInferencePolicy final : public Policy {
 public:
  explicit ZeroInferencePolicy(const ZeroInferenceConfig& = {}) {}
  std::string_view name() const override { return "zero-inference"; }
  PolicyDecision Decide(const PolicySnapshot& snapshot) override;
  bool follows_load() const override { return false; }
  std::vector<std::pair<std::string, std::string>> Parameters() const override { return {}; }
};

}  // namespace weir
