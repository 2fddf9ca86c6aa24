// What the parts of weir_border_bench share: its arguments, and steps of a steady load.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "engine/engine.h"

namespace weir::bench {

struct BorderArgs {
  EngineOptions engine;
  uint32_t batch = 64;
  uint32_t context = 1024;
  uint32_t steps = 40;
  uint32_t prefill = 0;     // tokens of prompts a step; 0: decode steps of the batch
  uint32_t transition = 0;  // granules a layer; 0: rows of steady borders
  std::vector<uint32_t> granules{0, 1, 2, 4};
  Placement placement = Placement::kStripe;
};

// Steps of one kind, for as long as they are wanted: of one batch that decodes, or of prompts, of
// which there are always enough to fill a step.
class SteadyLoad {
 public:
  SteadyLoad(Engine& engine, const BorderArgs& args) : engine_(engine), args_(args) {}
  // Until every step is of the kind wanted.
  Status Begin();
  Status Step();

 private:
  Status Submit(uint32_t max_tokens);

  Engine& engine_;
  const BorderArgs& args_;
  std::mt19937 random_{1};
  uint64_t unfinished_ = 0;
};

double Percentile(std::vector<double> v, double p);

// A row for each of |args.granules|.
Status RunRows(Engine& engine, const BorderArgs& args, SteadyLoad& load);
// All at home, args.transition granules a layer away, home again.
Status RunTransitions(Engine& engine, const BorderArgs& args, SteadyLoad& load);

}  // namespace weir::bench
