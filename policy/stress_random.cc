#include "policy/stress_random.h"

#include <algorithm>

namespace weir {
namespace {

// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

}  // namespace

ParamTable StressRandomConfig::Params() {
  ParamTable table;
  table.Bind("seed", &seed, 0, UINT64_MAX, "same seed and steps, same decisions");
  table.Bind("hold_steps", &hold_steps, 0, 1'000'000,
             "steps between two moves; 0: a move at every step");
  table.Bind("home_share", &home_share, 0, 1, "share of the moves that bring all weights home");
  return table;
}

PolicyDecision StressRandomPolicy::Decide(const PolicySnapshot& snapshot) {
  const uint32_t most = snapshot.weights.max_granules_per_layer;
  if (!started_) {
    started_ = true;
    target_ = snapshot.weights.granules_per_layer;
    moved_at_ = snapshot.step;
  } else if (snapshot.step >= moved_at_ && snapshot.step - moved_at_ >= config_.hold_steps) {
    const uint64_t draw = Mix(config_.seed ^ Mix(++moves_));
    const double share = static_cast<double>(draw >> 11) * 0x1p-53;
    target_ = share < config_.home_share
                  ? 0
                  : static_cast<uint32_t>(Mix(draw) % (static_cast<uint64_t>(most) + 1));
    moved_at_ = snapshot.step;
  }
  target_ = std::min(target_, most);
  return {.granules_per_layer = target_,
          .ring_slots = std::max(2u, snapshot.weights.ring_slots),
          .reason = "random target " + std::to_string(target_) + " granules/layer"};
}

std::vector<std::pair<std::string, std::string>> StressRandomPolicy::Parameters() const {
  StressRandomConfig copy = config_;
  return copy.Params().Values();
}

}  // namespace weir
