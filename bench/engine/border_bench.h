// What the parts of weir_border_bench share.
#pragma once

#include <cstdint>
#include <vector>

#include "bench/engine/steady_load.h"
#include "engine/engine.h"
#include "policy/resident.h"

namespace weir::bench {

struct BorderArgs {
  EngineOptions engine;
  SteadyLoadOptions load;
  uint32_t steps = 40;
  uint32_t transition = 0;  // granules a layer; 0: rows of steady borders
  std::vector<uint32_t> granules{0, 1, 2, 4};
  Placement placement = Placement::kStripe;
};

// Steps between the beginning of a load and what is measured of it.
inline constexpr uint32_t kSettlingSteps = 3;
// Most steps that a move of the border may take.
inline constexpr uint32_t kMoveSteps = 256;

double Percentile(std::vector<double> v, double p);

// A row for each of |args.granules|.
Status RunRows(Engine& engine, const BorderArgs& args, SteadyLoad& load);
// All at home, args.transition granules a layer away, home again.
Status RunTransitions(Engine& engine, const BorderArgs& args, SteadyLoad& load);

}  // namespace weir::bench
