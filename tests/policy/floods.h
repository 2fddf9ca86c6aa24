// What the closed-loop tests of tide have in common: loads, and fixed borders to compare with.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "policy/resident.h"
#include "tests/policy/simulated_gpu.h"

namespace weir {

inline constexpr Load kChat{.prompt = {161, 1.2}, .output = {338, 0.8}};  // ShareGPT-like
inline constexpr Load kFourK{.prompt = {4096, 0.2}, .output = {200, 0.5}};
inline constexpr Load kLongOutputs{.prompt = {300, 0.5}, .output = {1000, 0.5}};

struct FixedRate {
  uint32_t granules_per_layer = 0;
  double tokens_per_s = 0;
};

// Every border where one granule matters, and every eighth where it is a small share.
inline std::vector<uint32_t> Borders(const ServerShape& shape) {
  std::vector<uint32_t> borders;
  for (uint32_t e = 0; e <= shape.granules_per_layer - 2; e += e < 16 ? 1 : 8) borders.push_back(e);
  return borders;
}

// In the later three quarters of |seconds|.
inline ServerResult Steady(const ServerShape& shape, Policy& policy, const Load& load,
                           double seconds) {
  SimulatedServer server(shape, policy);
  (void)server.Flood(load, 1, seconds / 4);
  return server.Flood(load, 1, seconds * 3 / 4);
}

inline FixedRate SteadyFixed(const ServerShape& shape, uint32_t granules_per_layer,
                             const Load& load, double seconds, double itl_ms = 0) {
  FixedPolicy policy(FixedConfig{.granules_per_layer = granules_per_layer, .itl_ms = itl_ms});
  return {granules_per_layer, Steady(shape, policy, load, seconds).tokens_per_s};
}

inline FixedRate BestFixed(const ServerShape& shape, const Load& load, double seconds,
                           double itl_ms = 0) {
  FixedRate best;
  for (const uint32_t e : Borders(shape)) {
    const FixedRate rate = SteadyFixed(shape, e, load, seconds, itl_ms);
    if (rate.tokens_per_s > best.tokens_per_s) best = rate;
  }
  return best;
}

}  // namespace weir
