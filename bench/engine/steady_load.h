// SteadyLoad: steps of one kind, for as long as they are wanted. Of one batch that decodes, or of
// prompts, of which there are always enough to fill a step.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "engine/engine.h"

namespace weir::bench {

struct SteadyLoadOptions {
  uint32_t batch = 64;      // sequences
  uint32_t context = 1024;  // tokens of their prompts
  uint32_t shared = 0;      // of them, the first so many, which are the same in all prompts
  uint32_t prefill = 0;     // tokens of prompts a step; 0: decode steps of the batch
};

class SteadyLoad {
 public:
  // |engine| outlives the load.
  SteadyLoad(Engine& engine, const SteadyLoadOptions& options);
  // Steps until each is of the kind wanted. Again: the sequences end and the same prompts begin
  // anew, so that contexts are what they were; what the prefix cache has of them is not computed
  // again. Nothing changes for prompts, which are always new.
  Status Begin();
  Status Step();
  // Tokens in KV of a running sequence, mean.
  double context() const { return engine_.core().scheduler().mean_running_tokens(); }
  // Of the prompts of the last Begin: what the prefix cache had, in [0, 1].
  double cached_share() const { return cached_share_; }

 private:
  std::vector<int32_t> Prompt();
  Status Submit(std::vector<int32_t> prompt, uint32_t max_tokens);
  Status End();

  Engine& engine_;
  SteadyLoadOptions options_;
  std::mt19937 random_{1};
  std::vector<int32_t> shared_;
  std::vector<std::vector<int32_t>> prompts_;  // of the batch that decodes
  std::vector<RequestId> running_;             // its requests
  uint64_t unfinished_ = 0;
  double cached_share_ = 0;
};

}  // namespace weir::bench
