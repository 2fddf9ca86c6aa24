#include "policy/stress_random.h"

#include <algorithm>
#include <iterator>

namespace weir {
namespace {

// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

uint32_t MostGranules(const WeightsView& w, Placement placement) {
  return placement == Placement::kInPlace ? w.max_in_place_per_layer : w.max_granules_per_layer;
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
  const WeightsView& w = snapshot.weights;
  const uint32_t slots = std::max(2u, w.ring_slots);
  if (!started_) {
    started_ = true;
    target_.placement = w.placement;
    target_.ring_slots = slots;
    (w.placement == Placement::kLayer ? target_.layers : target_.granules_per_layer) =
        w.placement == Placement::kLayer ? w.layers_away : w.granules_per_layer;
    moved_at_ = snapshot.step;
  } else if (snapshot.step >= moved_at_ && snapshot.step - moved_at_ >= config_.hold_steps) {
    const uint64_t draw = Mix(config_.seed ^ Mix(++moves_));
    const double share = static_cast<double>(draw >> 11) * 0x1p-53;
    const uint64_t pick = Mix(draw);
    constexpr Placement kDrawn[] = {Placement::kStripe, Placement::kStripe, Placement::kLayer,
                                    Placement::kInPlace};
    target_ = {
        .placement = kDrawn[Mix(pick) % std::size(kDrawn)], .ring_slots = slots, .reason = {}};
    if (share < config_.home_share) {
      // Nothing away, in any placement's words.
    } else if (target_.placement != Placement::kLayer) {
      target_.granules_per_layer =
          static_cast<uint32_t>(pick % (uint64_t{MostGranules(w, target_.placement)} + 1));
    } else {
      if (Mix(pick + 1) % 2 == 0) target_.ring_slots = 1;
      target_.layers = static_cast<uint32_t>(pick % (uint64_t{w.max_layers_away} + 1));
    }
    moved_at_ = snapshot.step;
  }
  target_.granules_per_layer =
      std::min(target_.granules_per_layer, MostGranules(w, target_.placement));
  target_.layers = std::min(target_.layers, w.max_layers_away);
  if (target_.layers <= target_.ring_slots) target_.layers = 0;
  PolicyDecision decision = target_;
  decision.reason = "random target " + std::to_string(target_.amount()) +
                    (target_.placement == Placement::kLayer ? " layers" : " granules/layer");
  return decision;
}

std::vector<std::pair<std::string, std::string>> StressRandomPolicy::Parameters() const {
  StressRandomConfig copy = config_;
  return copy.Params().Values();
}

}  // namespace weir
