#include "policy/load_model.h"

#include <algorithm>
#include <cmath>

#include "policy/prompt_limit.h"

namespace weir {
namespace {

// Prompt chunks told apart in one step; more are taken together.
constexpr double kMostChunks = 32;
// What is less likely than this has no part in a mean.
constexpr double kLeastProbability = 1e-9;
// Where a prompt takes several steps, the next ones have to wait for their turn, for requests end
// by chance, and KV has room for them meanwhile: so many times the square root of the sequences
// that there is room for, as simulated (tests/policy/simulated_server.h).
constexpr double kVacant = 0.6;

}  // namespace

LoadDemand DemandOf(const PolicySnapshot& s) {
  const DemandView& d = s.demand;
  const double block_tokens = std::max(1u, s.kv.block_tokens);
  const double used = s.kv.used_blocks;
  const auto waiting_blocks = static_cast<double>(d.waiting_blocks);
  const double now = used + waiting_blocks;
  const double end = std::max(now, static_cast<double>(d.expected_blocks));
  LoadDemand out;
  const auto running = static_cast<double>(d.running), waiting = static_cast<double>(d.waiting);
  const double each = std::max(1.0, running + waiting);
  const double prompt_blocks = waiting > 0 ? waiting_blocks / waiting : now / each;
  // Nobody generates more than what was asked for.
  const double asked = Known(d.asked_per_request)
                           ? std::max(1.0, d.asked_per_request)
                           : std::max(1.0, (end / each - prompt_blocks) * block_tokens);
  const bool measured = Known(d.output_per_request);
  out.output_each = measured ? std::min(d.output_per_request, asked) : asked;
  out.prefill_each = measured && std::isfinite(d.prefill_per_request)
                         ? std::max(0.0, d.prefill_per_request)
                         : prompt_blocks * block_tokens;
  const double beside = Known(d.blocks_beside_output) ? d.blocks_beside_output : prompt_blocks;
  // What a running sequence has generated, and as much is to come, on average.
  const double generated = (Known(d.output_spread) ? d.output_spread : 1) * out.output_each;
  out.blocks_each = beside + generated / block_tokens;
  out.blocks_each = std::max(1.0, out.blocks_each);
  out.prompt_share = std::min(beside, out.prefill_each / block_tokens) / out.blocks_each;
  const double growth = running * generated + waiting * out.output_each;
  out.blocks_at_end = measured ? std::min(end, now + growth / block_tokens) : end;
  const auto most = d.max_running > 0 ? static_cast<double>(d.max_running) : 1e18;
  out.blocks_at_end *= std::min(1.0, most / each);
  // Sequences are old when few of them run and young after many were admitted. In the place of old
  // ones more will run when they end; the contexts now say how much of the KV is shared, not how
  // long they are on average.
  const double instead = std::floor(used / (out.blocks_each + kSpareBlocks));
  out.may_run = std::min(most, std::max(running, instead) + waiting);
  out.context_each = Known(d.tokens_per_seq) && used > 0 && running > 0
                         ? d.tokens_per_seq * out.blocks_each * running / used
                         : out.blocks_each * block_tokens;
  return out;
}

StepMix MixOf(const PolicySnapshot& s, const LoadDemand& demand, double running, double bytes,
              double itl_ns) {
  const double a_token = demand.prefill_each / demand.output_each;
  double room = s.demand.max_batched_tokens;
  if (room <= 0) room = running * (1 + a_token) + demand.prefill_each;  // no cap is known
  StepMix mix;
  // A step full of prompts decodes fewer: the rest is being prefilled.
  mix.decoding = std::min(running, room / (1 + a_token));
  double for_prompts = std::max(1.0, room - mix.decoding);
  if (itl_ns > 0 && a_token > 0) {
    const auto beside = [&](double decoding) {
      return BesidePrompts{decoding, decoding * demand.context_each, demand.attended_each(), bytes};
    };
    const double kept = DecodingWithin(s.cost, beside(mix.decoding), a_token, itl_ns);
    mix.decoding = std::min(mix.decoding, std::max(kept, kLeastPromptTokens / a_token));
    const double within = PromptTokensWithin(s.cost, beside(mix.decoding), for_prompts, itl_ns);
    for_prompts = std::min(for_prompts, std::max(within, kLeastPromptTokens));
    const double further = demand.prefill_each / for_prompts - 1;
    if (further > 0) {  // steps, in which a sequence holds KV and does not decode yet
      const double admitted = running - kVacant * std::sqrt(running) * demand.prompt_share;
      mix.decoding = std::clamp(admitted * demand.output_each / (demand.output_each + further), 0.0,
                                mix.decoding);
    }
  }
  mix.chunk = std::min(demand.prefill_each, for_prompts);
  if (mix.chunk < 1e-9) return mix;
  mix.chunk = std::max(mix.chunk, for_prompts / kMostChunks);
  mix.most = std::max(1.0, std::floor(for_prompts / mix.chunk));
  mix.each = std::min(mix.decoding * a_token / mix.chunk, mix.most);
  mix.full = std::max(1.0, mix.most * mix.chunk);
  return mix;
}

double MeanStepNs(const StepCost& cost, const LoadDemand& demand, const StepMix& mix,
                  double bytes) {
  const double context = mix.decoding * demand.context_each;
  const double prompt = std::max(mix.chunk, demand.prefill_each);
  const auto step = [&](double chunks) {
    const double prompts = chunks * mix.chunk;
    return cost.StepNs(mix.decoding + prompts, context + chunks * prompt / 2, prompts * prompt / 2,
                       bytes);
  };
  if (mix.most <= 0) return step(0);
  const double share = mix.each / mix.most;
  if (share >= 1) return step(mix.most);
  double probability = std::pow(1 - share, mix.most);
  double mean = 0;
  for (double k = 0; k <= mix.most; ++k) {
    if (k > mix.each && probability < kLeastProbability) break;
    mean += probability * step(k);
    probability *= (mix.most - k) / (k + 1) * share / (1 - share);
  }
  return mean;
}

}  // namespace weir
