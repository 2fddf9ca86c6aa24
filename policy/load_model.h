// A steady load as tide expects it at a border: what its requests need, and what its steps are made
// of. Pure arithmetic; docs/policies.md, "How tide thinks".
#pragma once

#include <algorithm>
#include <cmath>

#include "policy/policy.h"

namespace weir {

// Blocks the scheduler keeps free for each running sequence to grow into, about.
inline constexpr double kSpareBlocks = 1;

inline bool Known(double value) {
  return std::isfinite(value) && value > 0;
}

// What is known of the requests, from measurements where there are some. Until requests have ended
// it follows from what they asked for.
struct LoadDemand {
  double may_run = 0;        // running and waiting, as far as the scheduler's cap goes
  double blocks_each = 1;    // held by a running sequence, over its life
  double prompt_share = 0;   // of them, of the prompt that is computed for it
  double context_each = 1;   // tokens
  double prefill_each = 0;   // prompt tokens to compute for a request
  double output_each = 1;    // tokens it generates
  double blocks_at_end = 0;  // of all that may run
  // At the end of a prompt, with what of it is cached.
  double attended_each() const { return std::max(prefill_each, context_each); }
};

LoadDemand DemandOf(const PolicySnapshot& snapshot);

// Steps of a steady load: each decodes |decoding| sequences, and the prompts of the requests that
// take the place of those that end are spread over them in chunks.
struct StepMix {
  double decoding = 0;
  double chunk = 0;  // prompt tokens
  double most = 0;   // chunks in one step
  double each = 0;   // chunks a step, mean
  double full = 1;   // prompt tokens a step has room for
};

// With |running| sequences holding KV while |bytes| of weights are streamed a step. |itl_ns|: what
// no prompt shall make a step longer than; 0: no matter.
StepMix MixOf(const PolicySnapshot& snapshot, const LoadDemand& demand, double running,
              double bytes, double itl_ns);

// The mean over steps with 0, 1, ... chunks of prompts in them, binomially distributed: a short
// step may wait for the link and a long one not, so the step of mean size says too little.
double MeanStepNs(const StepCost& cost, const LoadDemand& demand, const StepMix& mix, double bytes);

}  // namespace weir
