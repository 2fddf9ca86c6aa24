#include "policy/prompt_pace.h"

#include <algorithm>
#include <cmath>

namespace weir {
namespace {

// Empty KV is filled in about as many steps.
constexpr double kFillSteps = 64;

}  // namespace

uint32_t PacedPromptTokens(const PolicySnapshot& s, double pace) {
  const DemandView& d = s.demand;
  const uint64_t free = uint64_t{s.kv.free_blocks} + s.kv.cached_blocks;
  if (!(pace > 0) || d.waiting == 0 || d.waiting_blocks <= free) return 0;
  const double a_token = d.prefill_per_request / d.output_per_request;
  if (!std::isfinite(a_token)) return 0;
  const double replace = pace * a_token * d.running;
  const double fill = static_cast<double>(free) * s.kv.block_tokens / kFillSteps;
  return static_cast<uint32_t>(
      std::min(1e9, std::ceil(std::max({kLeastPromptTokens, replace, fill}))));
}

}  // namespace weir
