#include "policy/tide.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "policy/prompt_limit.h"

namespace weir {
namespace {

constexpr uint64_t kMaxCandidates = 64;  // bounds the work of one decision
// Prompt chunks told apart in one step; more are taken together.
constexpr double kMostChunks = 32;
// What is less likely than this has no part in a mean.
constexpr double kLeastProbability = 1e-9;
// Blocks the scheduler keeps free for each running sequence to grow into, about.
constexpr double kSpareBlocks = 1;
// Where a prompt takes several steps, the next ones have to wait for their turn, for requests end
// by chance, and KV has room for them meanwhile: so many times the square root of the sequences
// that there is room for, as simulated (tests/policy/simulated_server.h).
constexpr double kVacant = 0.6;

bool Known(double value) {
  return std::isfinite(value) && value > 0;
}

// Granules that KV gains when |e| granules of each layer are away: the ring takes some back.
double FreedGranules(const WeightsView& weights, double e) {
  if (e <= 0 || weights.layers <= weights.ring_slots) return 0;
  return e * static_cast<double>(weights.layers - weights.ring_slots);
}

double KvBlocksAt(const PolicySnapshot& s, uint32_t e) {
  const double per_extent = std::max(1u, s.kv.granules_per_extent);
  // Not what a stripe of granules_per_layer frees: whole layers may be away, left by another
  // policy, or the border may be on the way.
  const double granules = static_cast<double>(s.kv.mapped_extents) * per_extent +
                          static_cast<double>(s.pool_free) + FreedGranules(s.weights, e) -
                          static_cast<double>(s.weights.freed_granules);
  const double extents =
      std::clamp(std::floor(granules / per_extent), 0.0, static_cast<double>(s.kv.max_extents));
  return extents * static_cast<double>(s.kv.blocks_per_extent);
}

// What is known of the requests, from measurements where there are some. Until requests have ended
// it follows from what they asked for.
struct Demand {
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

Demand Describe(const PolicySnapshot& s) {
  const DemandView& d = s.demand;
  const double block_tokens = std::max(1u, s.kv.block_tokens);
  const double used = s.kv.used_blocks;
  const auto waiting_blocks = static_cast<double>(d.waiting_blocks);
  const double now = used + waiting_blocks;
  const double end = std::max(now, static_cast<double>(d.expected_blocks));
  Demand out;
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

// Steps of a steady load: each decodes |decoding| sequences, and the prompts of the requests that
// take the place of those that end are spread over them in chunks.
struct Mix {
  double decoding = 0;
  double chunk = 0;  // prompt tokens
  double most = 0;   // chunks in one step
  double each = 0;   // chunks a step, mean
  double full = 1;   // prompt tokens a step has room for
};

// |itl_ns|: what no prompt shall make a step longer than; 0: no matter.
Mix MixOf(const PolicySnapshot& s, const Demand& demand, double running, double bytes,
          double itl_ns) {
  const double a_token = demand.prefill_each / demand.output_each;
  double room = s.demand.max_batched_tokens;
  if (room <= 0) room = running * (1 + a_token) + demand.prefill_each;  // no cap is known
  Mix mix;
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

// The mean over steps with 0, 1, ... chunks of prompts in them, binomially distributed: a short
// step may wait for the link and a long one not, so the step of mean size says too little.
double MeanStepNs(const StepCost& cost, const Demand& demand, const Mix& mix, double bytes) {
  const double context = mix.decoding * demand.context_each;
  const double prompt = std::max(mix.chunk, demand.prefill_each);
  const auto step = [&](double chunks) {
    const double prompts = chunks * mix.chunk;
    return cost.ExpectedStepNs(mix.decoding + prompts, context + chunks * prompt / 2,
                               prompts * prompt / 2, bytes);
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

double Percent(double to, double from) {
  return from > 0 ? (to / from - 1) * 100 : 0;
}

template <typename... Args>
std::string Format(const char* format, Args... args) {
  char text[192];
  std::snprintf(text, sizeof(text), format, args...);
  return text;
}

}  // namespace

ParamTable TideConfig::Params() {
  ParamTable table;
  table.Bind("tpot_ms", &tpot_ms, 0, 1e9,
             "mean time per output token to keep, milliseconds; 0: no target");
  table.Bind("ttft_ms", &ttft_ms, 0, 1e9,
             "time to first token to keep where a border can, milliseconds; 0: no target");
  table.Bind("itl_ms", &itl_ms, 0, 1e9, kItlHelp);
  table.Bind("tolerance", &tolerance, 0, 0.5,
             "share of the best tokens/s given up for a smaller eviction; 0: none");
  table.Bind("min_gain", &min_gain, 0, 10,
             "relative gain in tokens/s for which a move is worth it; 0: any");
  table.Bind("move_cost", &move_cost, 0, 1e6,
             "steps' worth of tokens that a move back costs, to be gained in as many steps as have "
             "passed since the one before; 0: nothing");
  table.Bind("payback_steps", &payback_steps, 1, 1e9,
             "steps, or as many as KV has been short for, in which a move must gain the prompts "
             "that it makes to be computed");
  table.Bind("headroom", &headroom, 1, 10,
             "KV to remain when weights come home, as a factor of use and expected demand");
  table.Bind("hold_steps", &hold_steps, 0, 1'000'000,
             "steps after a move before an opposite one; 0: no hold-off");
  table.Bind("settle_steps", &settle_steps, 0, 1'000'000,
             "steps after a move before another in the same direction");
  table.Bind("quantum", &quantum, 0, 0xffffffffu,
             "targets are multiples of so many granules per layer; 0: a 64th of the most");
  table.Bind("embedding_in_place", &embedding_in_place, 0, 1,
             "1: an embedding that is no lm_head is read in place of the backing copy, if that is "
             "in host or peer memory");
  return table;
}

std::vector<std::pair<std::string, std::string>> TidePolicy::Parameters() const {
  TideConfig copy = config_;
  return copy.Params().Values();
}

TidePolicy::Prospect TidePolicy::Predict(const PolicySnapshot& s, uint32_t e) const {
  const Demand demand = Describe(s);
  Prospect p;
  p.granules_per_layer = e;
  p.kv_blocks = KvBlocksAt(s, e);
  // The spare is part of what those that run hold, not needed where all may run.
  const double each = demand.blocks_each + kSpareBlocks;
  p.running = std::min(demand.may_run, p.kv_blocks / each);
  const double bytes = static_cast<double>(e) * static_cast<double>(s.weights.layers) *
                       static_cast<double>(s.granule_bytes);
  const Mix mix = MixOf(s, demand, p.running, bytes, config_.itl_ms * 1e6);
  p.step_ns = MeanStepNs(s.cost, demand, mix, bytes);
  if (!Known(p.step_ns)) {
    p.step_ns = 0;
    return p;
  }
  p.tokens_per_s = mix.decoding * 1e9 / p.step_ns;
  if (!std::isfinite(p.tokens_per_s)) p.tokens_per_s = 0;

  // Those for whom there is room are prefilled at once, the others as requests end.
  const auto waiting = static_cast<double>(s.demand.waiting);
  const double at_once =
      std::clamp(p.running - static_cast<double>(s.demand.running), 0.0, waiting);
  p.full_step_ns = BesidePrompts{.decoding = mix.decoding,
                                 .context = mix.decoding * demand.context_each,
                                 .prompt = demand.attended_each(),
                                 .streamed_bytes = bytes}
                       .StepNs(s.cost, mix.full);
  const double steps = std::ceil(std::max(1.0, at_once) * demand.prefill_each / mix.full);
  const double ended_per_ns = p.tokens_per_s * 1e-9 / demand.output_each;
  p.ttft_ns = std::max(1.0, steps) * p.full_step_ns;
  if (waiting > at_once) {
    p.ttft_ns = ended_per_ns > 0 ? p.ttft_ns + (waiting - at_once) / ended_per_ns : 1e18;
  }
  return p;
}

uint64_t TidePolicy::Quantum(uint32_t most) const {
  const uint64_t automatic = (most + kMaxCandidates - 1) / kMaxCandidates;
  return std::max({uint64_t{1}, config_.quantum, automatic});
}

std::vector<TidePolicy::Prospect> TidePolicy::Candidates(const PolicySnapshot& s,
                                                         uint32_t current) const {
  const uint32_t most = s.weights.max_granules_per_layer;
  const uint64_t quantum = Quantum(most);
  std::vector<Prospect> all;
  for (uint64_t e = 0; e < most; e += quantum) {
    all.push_back(Predict(s, static_cast<uint32_t>(e)));
    if (current > e && current < e + quantum && current < most) all.push_back(Predict(s, current));
  }
  all.push_back(Predict(s, most));
  return all;
}

bool TidePolicy::KeepsBetweenTokens(const Prospect& p) const {
  return (config_.tpot_ms <= 0 || p.step_ns <= config_.tpot_ms * 1e6) &&
         (config_.itl_ms <= 0 || p.full_step_ns <= config_.itl_ms * 1e6);
}

// The smallest eviction near the most tokens per second, of those that keep the targets.
const TidePolicy::Prospect& TidePolicy::Best(const PolicySnapshot& s,
                                             const std::vector<Prospect>& candidates) const {
  const auto keeps_ttft = [&](const Prospect& p) {
    return config_.ttft_ms <= 0 || s.demand.waiting == 0 || p.ttft_ns <= config_.ttft_ms * 1e6;
  };
  const auto shortest =
      std::min_element(candidates.begin(), candidates.end(),
                       [](const Prospect& a, const Prospect& b) { return a.step_ns < b.step_ns; });
  bool any = false, ttft = false;
  for (const Prospect& p : candidates) {
    any = any || KeepsBetweenTokens(p);
    ttft = ttft || (KeepsBetweenTokens(p) && keeps_ttft(p));
  }
  if (!any) return *shortest;
  const auto allowed = [&](const Prospect& p) {
    return KeepsBetweenTokens(p) && (!ttft || keeps_ttft(p));
  };
  double best = 0;
  for (const Prospect& p : candidates) {
    if (allowed(p)) best = std::max(best, p.tokens_per_s);
  }
  return *std::find_if(candidates.begin(), candidates.end(), [&](const Prospect& p) {
    return allowed(p) && p.tokens_per_s >= best * (1 - config_.tolerance);
  });
}

bool TidePolicy::MayMove(uint64_t step, Direction direction) const {
  if (moved_ == Direction::kNone) return true;
  const uint64_t since = step >= moved_at_ ? step - moved_at_ : 0;
  return since >= (direction == moved_ ? config_.settle_steps : config_.hold_steps);
}

bool TidePolicy::Pays(const PolicySnapshot& s, const Prospect& now, const Prospect& target) const {
  const bool home = target.granules_per_layer < now.granules_per_layer;
  const bool back = moved_ == (home ? Direction::kEvict : Direction::kRestore);
  const auto since = [&](uint64_t step) {
    return s.step > step ? static_cast<double>(s.step - step) : 1;
  };
  double least = config_.min_gain;
  // What was not worth moving for yet is, when the link is no longer the one that was moved for.
  if (!(home && s.link_slow)) {
    if (back) least = std::max(least, config_.move_cost / since(moved_at_));
    // What has lasted may last as long again.
    const uint64_t lasting = back ? std::max(moved_at_, pressed_since_) : pressed_since_;
    const double steps = std::max(config_.payback_steps, since(lasting));
    const double prompt = Describe(s).prefill_each;
    double tokens = 0;
    if (home) {  // what has to go, to be computed again
      tokens = (s.kv.used_blocks - target.kv_blocks) * std::max(1u, s.kv.block_tokens);
    } else {  // the prompts of sequences beyond those that will run here
      const double running = std::max(now.running, static_cast<double>(s.demand.running));
      tokens = (target.running - running) * prompt;
    }
    const double ns = tokens * (s.cost.per_token_ns + s.cost.per_pair_ns * prompt / 2);
    least = std::max(least, ns / (steps * now.step_ns));
  }
  return target.tokens_per_s >= now.tokens_per_s * (1 + least);
}

// S3: the first request runs nowhere else, whatever it costs.
TidePolicy::Choice TidePolicy::MakeRoom(const PolicySnapshot& s, uint32_t current) const {
  const uint32_t most = s.weights.max_granules_per_layer;
  const double need = KvBlocksAt(s, current) + static_cast<double>(s.demand.starved_blocks);
  uint64_t e = std::min<uint64_t>(most, uint64_t{current} + 1);
  const uint64_t quantum = Quantum(most);
  while (e < most && KvBlocksAt(s, static_cast<uint32_t>(e)) < need) {
    e = std::min<uint64_t>(most, e + quantum);
  }
  return {static_cast<uint32_t>(e),
          Format("the first request lacks %llu blocks: %u -> %llu granules/layer",
                 static_cast<unsigned long long>(s.demand.starved_blocks), current,
                 static_cast<unsigned long long>(e))};
}

TidePolicy::Choice TidePolicy::Choose(const PolicySnapshot& s, uint32_t current) const {
  const std::vector<Prospect> candidates = Candidates(s, current);
  const Prospect& now = *std::find_if(candidates.begin(), candidates.end(), [&](const Prospect& p) {
    return p.granules_per_layer == current;
  });
  // Covers everything known: the smallest such eviction, and there is no better.
  const Demand demand = Describe(s);
  for (const Prospect& p : candidates) {
    if (p.granules_per_layer >= current) break;
    if (p.kv_blocks < demand.blocks_at_end * config_.headroom) continue;
    return {p.granules_per_layer,
            Format("%.0f of %.0f blocks expected, load fits: %u -> %u granules/layer",
                   demand.blocks_at_end, p.kv_blocks, current, p.granules_per_layer)};
  }
  if (!Known(s.cost.link_bytes_per_ns) || !Known(now.step_ns)) {
    return {current, "step cost or link speed not measured yet"};
  }
  const auto move = [&](const Prospect& to) {
    return Format("%u waiting: %+.0f %% tokens/s, %.0f -> %.0f running for %u -> %u granules/layer",
                  s.demand.waiting, Percent(to.tokens_per_s, now.tokens_per_s), now.running,
                  to.running, current, to.granules_per_layer);
  };
  std::vector<Prospect> worth;
  for (const Prospect& p : candidates) {
    if (p.granules_per_layer == current || Pays(s, now, p)) worth.push_back(p);
  }
  const Prospect& to = Best(s, worth);
  if (to.granules_per_layer != current) return {to.granules_per_layer, move(to), true};
  const Prospect& best = Best(s, candidates);
  if (best.granules_per_layer == current) {
    return {current, Format("%u waiting, %u granules/layer is best: %.0f tokens/s, %.0f running",
                            s.demand.waiting, current, now.tokens_per_s, now.running)};
  }
  // Worse for tokens/s or hardly better: only a latency target asks for it.
  const bool slow =
      !KeepsBetweenTokens(now) && (KeepsBetweenTokens(best) || best.step_ns < now.step_ns);
  const bool late = config_.ttft_ms > 0 && s.demand.waiting > 0 && KeepsBetweenTokens(best) &&
                    now.ttft_ns > config_.ttft_ms * 1e6 && best.ttft_ns <= config_.ttft_ms * 1e6;
  if (slow || late) {
    const bool mean = config_.tpot_ms > 0 && now.step_ns > config_.tpot_ms * 1e6;
    return {best.granules_per_layer,
            Format("%s target: ", !slow  ? "ttft_ms"
                                  : mean ? "tpot_ms"
                                         : "itl_ms") +
                move(best),
            true};
  }
  return {current, Format("%u waiting, no target is worth moving from %u granules/layer",
                          s.demand.waiting, current)};
}

PolicyDecision TidePolicy::Decide(const PolicySnapshot& snapshot) {
  PolicySnapshot s = snapshot;
  s.weights.ring_slots = std::max(2u, s.weights.ring_slots);
  const uint32_t most = s.weights.max_granules_per_layer;
  if (!started_) {
    started_ = true;
    target_ = s.weights.granules_per_layer;
  }
  target_ = std::min(target_, most);
  const auto answer = [&](std::string reason) {
    return PolicyDecision{.granules_per_layer = target_,
                          .ring_slots = s.weights.ring_slots,
                          .preempt = preempt_,
                          .prompt_tokens = PromptTokensFor(s, config_.itl_ms),
                          .reason = std::move(reason)};
  };
  if (most == 0 || s.weights.layers <= s.weights.ring_slots) {
    return answer("no layer can give a granule");
  }
  const bool starved = s.demand.starved_blocks > 0;
  // Running sequences that are about to need a block that is not there are pressed like waiting
  // ones.
  const bool pressed =
      s.demand.waiting > 0 ||
      static_cast<uint64_t>(s.kv.free_blocks) + s.kv.cached_blocks < s.demand.running;
  if (!pressed) pressed_since_ = s.step;
  if (target_ == 0 && !pressed && !starved) return answer("load fits, all weights resident");

  Choice choice = starved ? MakeRoom(s, target_) : Choose(s, target_);
  if (!starved && !pressed && choice.target > target_) {
    return answer(Format("nobody waits, holding %u granules/layer", target_));
  }
  if (choice.target == target_) return answer(std::move(choice.reason));
  const Direction direction = choice.target > target_ ? Direction::kEvict : Direction::kRestore;
  const bool flees = s.link_slow && direction == Direction::kRestore;
  if (!starved && !flees && !MayMove(s.step, direction)) {
    return answer(Format("holding %u granules/layer after a move at step %llu: ", target_,
                         static_cast<unsigned long long>(moved_at_)) +
                  choice.reason);
  }
  target_ = choice.target;
  preempt_ = choice.preempt;
  moved_at_ = s.step;
  moved_ = direction;
  return answer(std::move(choice.reason));
}

}  // namespace weir
