#include "policy/resident.h"

#include <algorithm>
#include <cmath>

namespace weir {
namespace {

// Keeps |wanted| granules of each layer away whatever the load, as far as layers can give.
PolicyDecision HoldStripes(const WeightsView& weights, uint64_t wanted) {
  const uint32_t most = weights.max_granules_per_layer;
  PolicyDecision decision{
      .granules_per_layer = static_cast<uint32_t>(std::min<uint64_t>(wanted, most)),
      .ring_slots = std::max(2u, weights.ring_slots)};
  decision.reason = "fixed at " + std::to_string(decision.granules_per_layer) + " granules/layer";
  if (decision.granules_per_layer < wanted) decision.reason += ", the most a layer can give";
  return decision;
}

// Keeps |wanted| whole layers away whatever the load.
PolicyDecision HoldLayers(const WeightsView& weights, uint32_t wanted, uint32_t slots) {
  PolicyDecision decision{.placement = Placement::kLayer,
                          .layers = std::min(wanted, weights.max_layers_away),
                          .ring_slots = slots};
  if (decision.layers == 0) {
    decision.reason = wanted == 0 ? "all weights stay resident" : "no layer can leave";
  } else if (decision.layers > slots) {
    decision.reason = "fixed at " + std::to_string(decision.layers) + " of " +
                      std::to_string(weights.layers) + " layers";
  } else {
    decision.reason = "fixed at no layer: " + std::to_string(decision.layers) +
                      " would free nothing with " + std::to_string(slots) + " ring slots";
    decision.layers = 0;
  }
  return decision;
}

PolicyDecision HoldShare(const WeightsView& weights, double share, bool whole_layers) {
  const uint32_t most = whole_layers ? weights.max_layers_away : weights.max_granules_per_layer;
  const auto wanted = static_cast<uint32_t>(std::lround(share * most));
  return whole_layers ? HoldLayers(weights, wanted, std::max(2u, weights.ring_slots))
                      : HoldStripes(weights, wanted);
}

}  // namespace

PolicyDecision ResidentPolicy::Decide(const PolicySnapshot& snapshot) {
  return {.granules_per_layer = 0,
          .ring_slots = std::max(2u, snapshot.weights.ring_slots),
          .reason = "all weights stay resident"};
}

ParamTable FixedConfig::Params() {
  ParamTable table;
  table.Bind("granules_per_layer", &granules_per_layer, 0, 0xffffffffu,
             "granules to keep away from each layer, clipped to what a layer can give; 0: none");
  return table;
}

PolicyDecision FixedPolicy::Decide(const PolicySnapshot& snapshot) {
  return HoldStripes(snapshot.weights, config_.granules_per_layer);
}

std::vector<std::pair<std::string, std::string>> FixedPolicy::Parameters() const {
  FixedConfig copy = config_;
  return copy.Params().Values();
}

ParamTable StaticConfig::Params() {
  ParamTable table;
  table.Bind("fraction", &fraction, 0, 1, "share of the most that may leave; 0: nothing is away");
  table.Bind("whole_layers", &whole_layers, 0, 1,
             "1: whole layers, evenly spaced; 0: a stripe of every layer");
  return table;
}

PolicyDecision StaticPolicy::Decide(const PolicySnapshot& snapshot) {
  return HoldShare(snapshot.weights, config_.fraction, config_.whole_layers != 0);
}

std::vector<std::pair<std::string, std::string>> StaticPolicy::Parameters() const {
  StaticConfig copy = config_;
  return copy.Params().Values();
}

PolicyDecision ZeroInferencePolicy::Decide(const PolicySnapshot& snapshot) {
  return HoldLayers(snapshot.weights, snapshot.weights.max_layers_away,
                    std::max(2u, snapshot.weights.ring_slots));
}

}  // namespace weir
