// tide: moves the border between weights and KV to where it gives the most tokens per second.
//
// For every amount of eviction it predicts how many sequences would run and what a step would then
// cost, and takes the best; docs/policies.md works an example. The bound it lives under (what a
// link can give at all) is in the same page.
#pragma once

#include "policy/params.h"
#include "policy/policy.h"

namespace weir {

struct TideConfig {
  // A smaller eviction is taken if it loses at most this share of the best tokens/s. [0, 0.5]; 0:
  // always the best.
  double tolerance = 0.02;
  // The same while requests wait: among targets this near to the best, the one that runs most
  // requests wins, since waiting costs time to first token. [0, 0.5]; 0: throughput only.
  double tie_tolerance = 0.05;
  // Relative gain in tokens/s (or, while requests wait, in running requests) for which a move is
  // worth its cost. [0, 10]; 0: any gain.
  double min_gain = 0.03;
  // Relative gain in tokens/s for which weights come home although the demand then no longer fits:
  // the link got slower, the contexts got longer. [0, 10]; 0: never.
  double restore_gain = 0.10;
  // KV that must remain beyond current use and expected demand before weights come home, as a
  // factor. [1, 10].
  double headroom = 1.15;
  // Steps after a move before an opposite one. [0, 1e6]; 0: no hold-off.
  uint64_t hold_steps = 64;
  // Steps after a move before another in the same direction. [0, 1e6].
  uint64_t settle_steps = 8;
  // Targets are multiples of so many granules per layer, besides the largest. [0, 2^32-1]; 0: a
  // 32nd of the most a layer can give, rounded up.
  uint64_t quantum = 0;
  ParamTable Params();
};

// Represents the border's position as wished so far. State: the last target, when it was set and
// in which direction; Decide() depends on the snapshot and on that alone.
class TidePolicy final : public Policy {
 public:
  explicit TidePolicy(const TideConfig& config = {}) : config_(config) {}
  std::string_view name() const override { return "tide"; }
  PolicyDecision Decide(const PolicySnapshot& snapshot) override;
  std::vector<std::pair<std::string, std::string>> Parameters() const override;

  // What tide expects of one target; public for tests and for tools that explain decisions.
  struct Prospect {
    uint32_t granules_per_layer = 0;
    double kv_blocks = 0;
    double running = 0;  // sequences that would run
    double step_ns = 0;
    double tokens_per_s = 0;  // 0 when the step cost is unknown
  };
  static Prospect Predict(const PolicySnapshot& snapshot, uint32_t granules_per_layer);

 private:
  enum class Direction : int8_t { kNone = 0, kEvict = 1, kRestore = -1 };

  uint32_t Quantum(uint32_t most) const;
  bool MayMove(uint64_t step, Direction direction) const;
  // Both answer |current| with the reason when no move is worth it.
  PolicyDecision ConsiderEvicting(const PolicySnapshot& snapshot, uint32_t current) const;
  PolicyDecision ConsiderRestoring(const PolicySnapshot& snapshot, uint32_t current) const;

  TideConfig config_;
  bool started_ = false;
  uint32_t target_ = 0;
  uint64_t moved_at_ = 0;
  Direction moved_ = Direction::kNone;
};

}  // namespace weir
