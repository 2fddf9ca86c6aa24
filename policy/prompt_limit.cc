#include "policy/prompt_limit.h"

#include <algorithm>
#include <cmath>

namespace weir {
namespace {

// The largest x of [0, |most|] for which |cost|(x), which never falls, is at most |limit|, or less
// by a thousandth; 0 where not even cost(0) is. False position, which takes few steps where |cost|
// is nearly a line, and halves the interval now and then for where it is not.
template <typename Cost>
double MostWithin(double most, double limit, Cost cost) {
  double high_cost = cost(most);
  if (!(high_cost > limit)) return most;
  double low = 0, low_cost = cost(low), high = most;
  if (low_cost > limit) return 0;
  for (int i = 0; i < 40 && limit - low_cost > 1e-3 * limit && high - low > 1e-6 * most; ++i) {
    const double line = (limit - low_cost) / (high_cost - low_cost);
    const double x = low + (high - low) * (i % 3 < 2 ? line : 0.5);
    const double at = cost(x);
    (at > limit ? high : low) = x;
    (at > limit ? high_cost : low_cost) = at;
  }
  return low;
}

// What the border in force has steps stream or read in place.
double AwayBytes(const PolicySnapshot& s) {
  const WeightsView& w = s.weights;
  const double granules =
      w.placement == Placement::kLayer
          ? static_cast<double>(w.layers_away) * static_cast<double>(w.granules_per_whole_layer)
          : static_cast<double>(w.granules_per_layer) * static_cast<double>(w.layers);
  return granules * static_cast<double>(s.granule_bytes);
}

}  // namespace

double BesidePrompts::StepNs(const StepCost& cost, double prompt_tokens) const {
  const double tokens = decoding + prompt_tokens;
  const double end = prompt_tokens > 0 ? std::max(prompt, prompt_tokens) : 0;
  return cost.StepNs(tokens, context + end, prompt_tokens * (end - prompt_tokens / 2),
                     streamed_bytes) +
         cost.InPlaceNs(tokens, in_place_bytes);
}

double PromptTokensWithin(const StepCost& cost, const BesidePrompts& step, double most,
                          double limit_ns) {
  return MostWithin(most, limit_ns, [&](double tokens) { return step.StepNs(cost, tokens); });
}

double DecodingWithin(const StepCost& cost, const BesidePrompts& step, double a_token,
                      double limit_ns) {
  const double each = step.decoding > 0 ? step.context / step.decoding : 0;
  return MostWithin(step.decoding, limit_ns, [&](double decoding) {
    BesidePrompts fewer = step;
    fewer.decoding = decoding;
    fewer.context = decoding * each;
    return fewer.StepNs(cost, decoding * a_token);
  });
}

uint32_t PromptTokensFor(const PolicySnapshot& s, double itl_ms) {
  const DemandView& d = s.demand;
  if (!(itl_ms > 0) || d.decoding == 0) return 0;
  BesidePrompts step{.decoding = static_cast<double>(d.decoding),
                     .context = d.tokens_per_seq * d.decoding,
                     .prompt = std::max(d.tokens_per_seq, d.prefill_per_request)};
  const bool in_place = s.weights.placement == Placement::kInPlace;
  (in_place ? step.in_place_bytes : step.streamed_bytes) = AwayBytes(s);
  const double most = d.max_batched_tokens > 0 ? d.max_batched_tokens : 1e6;
  const double within = PromptTokensWithin(s.cost, step, most, itl_ms * 1e6);
  if (!(within < most)) return 0;
  return static_cast<uint32_t>(std::max(kLeastPromptTokens, within));
}

}  // namespace weir
