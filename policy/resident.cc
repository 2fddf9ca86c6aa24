#include "policy/resident.h"

#include <algorithm>

namespace weir {

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
  const uint32_t most = snapshot.weights.max_granules_per_layer;
  const uint32_t target =
      static_cast<uint32_t>(std::min<uint64_t>(config_.granules_per_layer, most));
  std::string reason = "fixed at " + std::to_string(target) + " granules/layer";
  if (target < config_.granules_per_layer) reason += ", the most a layer can give";
  return {.granules_per_layer = target,
          .ring_slots = std::max(2u, snapshot.weights.ring_slots),
          .reason = std::move(reason)};
}

std::vector<std::pair<std::string, std::string>> FixedPolicy::Parameters() const {
  FixedConfig copy = config_;
  return copy.Params().Values();
}

}  // namespace weir
