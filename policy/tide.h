// tide: moves the border between weights and KV to where it gives the most tokens per second.
//
// For every amount of eviction it predicts how many sequences would run, what their steps would
// cost with the prompts of new and preempted requests in them, and takes the best that keeps the
// latency targets; docs/policies.md works an example. The bound it lives under (what a link can
// give at all) is in the same page.
#pragma once

#include <vector>

#include "policy/params.h"
#include "policy/policy.h"

namespace weir {

struct TideConfig {
  // Targets, milliseconds; 0: none. The mean time per output token (what steps take, stalls
  // included) comes first: a border that is predicted to break it is taken only where every one is.
  double tpot_ms = 0;
  // Time to first token of the last request waiting now. Given up while no border can keep it.
  double ttft_ms = 0;
  // Between tokens, likewise: prompts take no step beyond it (policy/prompt_limit.h), and a border
  // with which steps take longer even so is one that breaks it.
  double itl_ms = 0;
  // A smaller eviction is taken if it loses at most this share of the best tokens/s. [0, 0.5]; 0:
  // always the best.
  double tolerance = 0.005;
  // Relative gain in tokens/s for which a move is worth it. [0, 10]; 0: any gain.
  double min_gain = 0.01;
  // Steps' worth of tokens that a move back costs. They must be gained in as many steps as have
  // passed since the move before: at most so much is lost to wandering. [0, 1e6]; 0: nothing.
  double move_cost = 4;
  // Steps in which a move must gain what it makes to be computed, the prompts of those there is
  // room for after it or of those preempted for it. As many as KV has been short for (to move back:
  // since the last move), if those are more. [1, 1e9].
  double payback_steps = 1024;
  // KV that must remain beyond current use and expected demand before weights come home, as a
  // factor. [1, 10].
  double headroom = 1.15;
  // Steps after a move before an opposite one. [0, 1e6]; 0: no hold-off.
  uint64_t hold_steps = 64;
  // Steps after a move before another in the same direction. [0, 1e6].
  uint64_t settle_steps = 8;
  // Targets are multiples of so many granules per layer, besides the largest. [0, 2^32-1]; 0: a
  // 64th of the most a layer can give, rounded up.
  uint64_t quantum = 0;
  // 1: the embedding, of which a step reads a row for each of its tokens, is read in place of the
  // backing copy for good, and KV has its room whatever the border. [0, 1].
  uint64_t embedding_in_place = 1;
  ParamTable Params();
};

// Represents the border's position as wished so far. State: the last target, when it was set and
// in which direction, and since when KV has been short; Decide() depends on the snapshot and on
// that alone.
class TidePolicy final : public Policy {
 public:
  explicit TidePolicy(const TideConfig& config = {}) : config_(config) {}
  std::string_view name() const override { return "tide"; }
  PolicyDecision Decide(const PolicySnapshot& snapshot) override;
  bool lookup_in_place() const override { return config_.embedding_in_place != 0; }
  std::vector<std::pair<std::string, std::string>> Parameters() const override;

  // What tide expects of one target while requests keep coming as they do; public for tests and
  // for tools that explain decisions.
  struct Prospect {
    uint32_t granules_per_layer = 0;
    double kv_blocks = 0;
    double running = 0;       // sequences that would run
    double step_ns = 0;       // mean, stalls included
    double full_step_ns = 0;  // with as many prompt tokens as a step may have
    double tokens_per_s = 0;  // generated; 0 when the step cost is unknown
    double ttft_ns = 0;       // of the last request waiting now
  };
  Prospect Predict(const PolicySnapshot& snapshot, uint32_t granules_per_layer) const;

 private:
  enum class Direction : int8_t { kNone = 0, kEvict = 1, kRestore = -1 };
  struct Choice {
    uint32_t target = 0;
    std::string reason;
    bool preempt = false;  // the KV at |target| is worth more than the sequences it has no room for
  };

  uint64_t Quantum(uint32_t most) const;
  // Every multiple of the quantum, |current| and the most, ascending.
  std::vector<Prospect> Candidates(const PolicySnapshot& snapshot, uint32_t current) const;
  bool KeepsBetweenTokens(const Prospect& prospect) const;  // tpot_ms and itl_ms
  const Prospect& Best(const PolicySnapshot& snapshot,
                       const std::vector<Prospect>& candidates) const;
  Choice Choose(const PolicySnapshot& snapshot, uint32_t current) const;
  Choice MakeRoom(const PolicySnapshot& snapshot, uint32_t current) const;
  // Whether a move from |now| to |target| gains enough for what it costs.
  bool Pays(const PolicySnapshot& snapshot, const Prospect& now, const Prospect& target) const;
  bool MayMove(uint64_t step, Direction direction) const;

  TideConfig config_;
  bool started_ = false;
  uint32_t target_ = 0;
  bool preempt_ = false;
  uint64_t pressed_since_ = 0;  // more has been asked for than KV has room for
  uint64_t moved_at_ = 0;
  Direction moved_ = Direction::kNone;
};

}  // namespace weir
