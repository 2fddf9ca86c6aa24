#include "policy/resident.h"

#include <algorithm>
#include <cmath>

#include "policy/prompt_limit.h"

namespace weir {
namespace {

// The most a placement can keep away: granules of each layer, or layers.
uint32_t MostOf(const WeightsView& weights, Placement placement) {
  switch (placement) {
    case Placement::kStripe: return weights.max_granules_per_layer;
    case Placement::kLayer: return weights.max_layers_away;
    case Placement::kInPlace: return weights.max_in_place_per_layer;
  }
  return 0;
}

// Keeps |wanted| granules of each layer away whatever the load, as far as layers can give.
PolicyDecision HoldGranules(const WeightsView& weights, Placement placement, uint64_t wanted) {
  PolicyDecision decision{.placement = placement,
                          .granules_per_layer = static_cast<uint32_t>(
                              std::min<uint64_t>(wanted, MostOf(weights, placement))),
                          .ring_slots = std::max(2u, weights.ring_slots)};
  decision.reason = "fixed at " + std::to_string(decision.granules_per_layer) + " granules/layer";
  if (placement == Placement::kInPlace) decision.reason += " read in place";
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

PolicyDecision HoldShare(const WeightsView& weights, double share, Placement placement) {
  const auto wanted = static_cast<uint32_t>(std::lround(share * MostOf(weights, placement)));
  return placement == Placement::kLayer
             ? HoldLayers(weights, wanted, std::max(2u, weights.ring_slots))
             : HoldGranules(weights, placement, wanted);
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
  table.Bind("placement", &placement, {Placement::kStripe, Placement::kInPlace},
             "copied through the ring, or read where their backing copy is");
  table.Bind("embedding_in_place", &embedding_in_place, 0, 1,
             "1: an embedding that is no lm_head is read in place of the backing copy");
  table.Bind("itl_ms", &itl_ms, 0, 1e9, kItlHelp);
  return table;
}

PolicyDecision FixedPolicy::Decide(const PolicySnapshot& snapshot) {
  PolicyDecision decision =
      HoldGranules(snapshot.weights, config_.placement, config_.granules_per_layer);
  decision.prompt_tokens = PromptTokensFor(snapshot, config_.itl_ms);
  return decision;
}

std::vector<std::pair<std::string, std::string>> FixedPolicy::Parameters() const {
  FixedConfig copy = config_;
  return copy.Params().Values();
}

ParamTable StaticConfig::Params() {
  ParamTable table;
  table.Bind("fraction", &fraction, 0, 1, "share of the most that may leave; 0: nothing is away");
  table.Bind("placement", &placement, {Placement::kStripe, Placement::kLayer, Placement::kInPlace},
             "whole layers, evenly spaced; a stripe of every layer; or that, read in place");
  return table;
}

PolicyDecision StaticPolicy::Decide(const PolicySnapshot& snapshot) {
  return HoldShare(snapshot.weights, config_.fraction, config_.placement);
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
