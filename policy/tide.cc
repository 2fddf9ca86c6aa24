#include "policy/tide.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "policy/load_model.h"
#include "policy/prompt_limit.h"

namespace weir {
namespace {

constexpr uint64_t kMaxCandidates = 64;  // bounds the work of one decision

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
  const LoadDemand demand = DemandOf(s);
  Prospect p;
  p.granules_per_layer = e;
  p.kv_blocks = KvBlocksAt(s, e);
  // The spare is part of what those that run hold, not needed where all may run.
  const double each = demand.blocks_each + kSpareBlocks;
  p.running = std::min(demand.may_run, p.kv_blocks / each);
  const double bytes = static_cast<double>(e) * static_cast<double>(s.weights.layers) *
                       static_cast<double>(s.granule_bytes);
  const StepMix mix = MixOf(s, demand, p.running, bytes, config_.itl_ms * 1e6);
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
    const double prompt = DemandOf(s).prefill_each;
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
  const LoadDemand demand = DemandOf(s);
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
