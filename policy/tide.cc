#include "policy/tide.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace weir {
namespace {

constexpr uint32_t kMaxCandidates = 1024;  // bounds the work of one decision

// Granules that KV gains when |e| granules of each layer are away: the ring takes some back.
double FreedGranules(const WeightsView& weights, double e) {
  if (e <= 0 || weights.layers <= weights.ring_slots) return 0;
  return e * static_cast<double>(weights.layers - weights.ring_slots);
}

double KvBlocksAt(const PolicySnapshot& s, uint32_t e) {
  const double per_extent = std::max(1u, s.kv.granules_per_extent);
  // Whole layers may be away, left by another policy: then the snapshot says what they freed.
  const double freed_now = s.weights.placement == Placement::kLayer
                               ? static_cast<double>(s.weights.freed_granules)
                               : FreedGranules(s.weights, s.weights.granules_per_layer);
  const double granules = static_cast<double>(s.kv.mapped_extents) * per_extent +
                          static_cast<double>(s.pool_free) + FreedGranules(s.weights, e) -
                          freed_now;
  const double extents =
      std::clamp(std::floor(granules / per_extent), 0.0, static_cast<double>(s.kv.max_extents));
  return extents * static_cast<double>(s.kv.blocks_per_extent);
}

double KnownRequests(const DemandView& d) {
  return static_cast<double>(d.running) + static_cast<double>(d.waiting);
}

// Blocks all known requests need at their expected end, from whatever is known.
double ExpectedBlocks(const PolicySnapshot& s) {
  const double now =
      static_cast<double>(s.kv.used_blocks) + static_cast<double>(s.demand.waiting_blocks);
  return std::max(now, static_cast<double>(s.demand.expected_blocks));
}

double BlocksPerSequence(const PolicySnapshot& s) {
  const double requests = KnownRequests(s.demand);
  return requests > 0 ? std::max(1.0, ExpectedBlocks(s) / requests) : 1.0;
}

double TokensPerSequence(const PolicySnapshot& s) {
  const double measured = s.demand.tokens_per_seq;
  if (std::isfinite(measured) && measured > 0) return measured;
  return BlocksPerSequence(s) * static_cast<double>(std::max(1u, s.kv.block_tokens));
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
  table.Bind("tolerance", &tolerance, 0, 0.5,
             "share of the best tokens/s given up for a smaller eviction; 0: none");
  table.Bind("tie_tolerance", &tie_tolerance, 0, 0.5,
             "the same while requests wait, for running more of them; 0: throughput only");
  table.Bind("min_gain", &min_gain, 0, 10, "relative gain for which a move is worth it; 0: any");
  table.Bind("restore_gain", &restore_gain, 0, 10,
             "relative gain for which weights come home though demand then does not fit; 0: never");
  table.Bind("headroom", &headroom, 1, 10,
             "KV to remain when weights come home, as a factor of use and expected demand");
  table.Bind("hold_steps", &hold_steps, 0, 1'000'000,
             "steps after a move before an opposite one; 0: no hold-off");
  table.Bind("settle_steps", &settle_steps, 0, 1'000'000,
             "steps after a move before another in the same direction");
  table.Bind("quantum", &quantum, 0, 0xffffffffu,
             "targets are multiples of so many granules per layer; 0: a 32nd of the most");
  return table;
}

std::vector<std::pair<std::string, std::string>> TidePolicy::Parameters() const {
  TideConfig copy = config_;
  return copy.Params().Values();
}

TidePolicy::Prospect TidePolicy::Predict(const PolicySnapshot& s, uint32_t e) {
  Prospect p;
  p.granules_per_layer = e;
  p.kv_blocks = KvBlocksAt(s, e);
  double most_running = KnownRequests(s.demand);
  if (s.demand.max_running > 0) {
    most_running = std::min(most_running, static_cast<double>(s.demand.max_running));
  }
  p.running = std::min(most_running, p.kv_blocks / BlocksPerSequence(s));
  const double bytes = static_cast<double>(e) * static_cast<double>(s.weights.layers) *
                       static_cast<double>(s.granule_bytes);
  p.step_ns = s.cost.StepNs(p.running, p.running * TokensPerSequence(s), bytes);
  if (std::isfinite(p.step_ns) && p.step_ns > 0) p.tokens_per_s = p.running * 1e9 / p.step_ns;
  if (!std::isfinite(p.tokens_per_s)) p.tokens_per_s = 0;
  return p;
}

uint32_t TidePolicy::Quantum(uint32_t most) const {
  const uint32_t automatic = most / 32 + (most % 32 != 0 ? 1 : 0);
  const uint32_t wanted = config_.quantum > 0 ? static_cast<uint32_t>(config_.quantum) : automatic;
  return std::max({1u, wanted, most / kMaxCandidates + (most % kMaxCandidates != 0 ? 1u : 0u)});
}

bool TidePolicy::MayMove(uint64_t step, Direction direction) const {
  if (moved_ == Direction::kNone) return true;
  const uint64_t since = step >= moved_at_ ? step - moved_at_ : 0;
  return since >= (direction == moved_ ? config_.settle_steps : config_.hold_steps);
}

PolicyDecision TidePolicy::ConsiderEvicting(const PolicySnapshot& s, uint32_t current) const {
  const uint32_t most = s.weights.max_granules_per_layer;
  const uint64_t quantum = Quantum(most);
  const Prospect now = Predict(s, current);
  const bool waiting = s.demand.waiting > 0;

  double best = now.tokens_per_s;
  for (uint64_t e = 0; e <= most; e = e == most ? e + 1 : std::min<uint64_t>(e + quantum, most)) {
    best = std::max(best, Predict(s, static_cast<uint32_t>(e)).tokens_per_s);
  }
  // While requests wait: the most running requests among the near-best. Otherwise: the smallest of
  // the near-best. Ties go to the smaller eviction, since candidates come in rising order.
  const double least_rate = best * (1 - (waiting ? config_.tie_tolerance : config_.tolerance));
  Prospect choice = now;
  bool chosen = now.tokens_per_s >= least_rate;
  const uint64_t first = (current / quantum + 1) * quantum;
  for (uint64_t e = std::min<uint64_t>(first, most); e > current && e <= most;
       e = e == most ? e + 1 : std::min<uint64_t>(e + quantum, most)) {
    const Prospect p = Predict(s, static_cast<uint32_t>(e));
    if (p.tokens_per_s < least_rate) continue;
    if (!chosen || (waiting && p.running > choice.running * (1 + 1e-9))) {
      choice = p;
      chosen = true;
    }
  }
  const bool faster = choice.tokens_per_s >= now.tokens_per_s * (1 + config_.min_gain);
  const bool more = waiting && choice.running >= now.running * (1 + config_.min_gain);
  if (choice.granules_per_layer <= current || choice.tokens_per_s <= 0 || !(faster || more)) {
    return {.granules_per_layer = current,
            .ring_slots = s.weights.ring_slots,
            .reason = Format("%u waiting, holding %u granules/layer: no eviction gains %.3g %%",
                             s.demand.waiting, current, config_.min_gain * 100)};
  }
  return {.granules_per_layer = choice.granules_per_layer,
          .ring_slots = s.weights.ring_slots,
          .reason = Format(
              "%u waiting: %+.0f %% tokens/s, %.0f -> %.0f running for %u -> %u granules/layer",
              s.demand.waiting, Percent(choice.tokens_per_s, now.tokens_per_s), now.running,
              choice.running, current, choice.granules_per_layer)};
}

PolicyDecision TidePolicy::ConsiderRestoring(const PolicySnapshot& s, uint32_t current) const {
  const uint32_t most = s.weights.max_granules_per_layer;
  const uint64_t quantum = Quantum(most);
  const Prospect now = Predict(s, current);
  const double need = ExpectedBlocks(s) * config_.headroom;

  Prospect best = now;
  for (uint64_t e = 0; e < current; e += quantum) {
    const Prospect p = Predict(s, static_cast<uint32_t>(e));
    // Covers everything known: the smallest such eviction, and there is no better.
    if (p.kv_blocks >= need) {
      return {
          .granules_per_layer = p.granules_per_layer,
          .ring_slots = s.weights.ring_slots,
          .reason = Format("%.0f of %.0f blocks expected, load fits: %u -> %u granules/layer",
                           need / config_.headroom, p.kv_blocks, current, p.granules_per_layer)};
    }
    if (p.tokens_per_s > best.tokens_per_s) best = p;
  }
  if (config_.restore_gain > 0 && best.granules_per_layer < current &&
      best.tokens_per_s >= now.tokens_per_s * (1 + config_.restore_gain)) {
    return {.granules_per_layer = best.granules_per_layer,
            .ring_slots = s.weights.ring_slots,
            .reason = Format(
                "streaming no longer pays: %+.0f %% tokens/s for %u -> %u granules/layer",
                Percent(best.tokens_per_s, now.tokens_per_s), current, best.granules_per_layer)};
  }
  return {.granules_per_layer = current,
          .ring_slots = s.weights.ring_slots,
          .reason = Format("holding %u granules/layer: %.0f blocks expected, %.0f mapped", current,
                           need / config_.headroom, now.kv_blocks)};
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

  const auto hold = [&](std::string reason) {
    return PolicyDecision{.granules_per_layer = target_,
                          .ring_slots = s.weights.ring_slots,
                          .reason = std::move(reason)};
  };
  if (most == 0 || s.weights.layers <= s.weights.ring_slots) {
    return hold("no layer can give a granule");
  }
  // Evicting is instant and helps whom KV stops now: those who wait, and running sequences about
  // to need a block that is not there.
  const bool pressed =
      s.demand.waiting > 0 ||
      static_cast<uint64_t>(s.kv.free_blocks) + s.kv.cached_blocks < s.demand.running;
  PolicyDecision decision = hold("");
  Direction direction = Direction::kNone;
  if (pressed) {
    if (!(s.cost.link_bytes_per_ns > 0) || !(s.cost.StepNs(1, 1, 0) > 0)) {
      decision = hold("step cost or link speed not measured yet");
    } else {
      decision = ConsiderEvicting(s, target_);
      direction = Direction::kEvict;
    }
  }
  if (decision.granules_per_layer == target_ && target_ > 0) {
    const PolicyDecision restore = ConsiderRestoring(s, target_);
    if (!pressed || restore.granules_per_layer != target_) decision = restore;
    direction = Direction::kRestore;
  }
  if (decision.reason.empty()) return hold("load fits, all weights resident");
  if (decision.granules_per_layer == target_) return decision;
  if (!MayMove(s.step, direction)) {
    return hold(Format("holding %u granules/layer after a move at step %llu: ", target_,
                       static_cast<unsigned long long>(moved_at_)) +
                decision.reason);
  }
  target_ = decision.granules_per_layer;
  moved_at_ = s.step;
  moved_ = direction;
  return decision;
}

}  // namespace weir
