#include "policy/oneiros.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace weir {
namespace {

constexpr double kRounding = 1e-9;

template <typename... Args>
std::string Format(const char* format, Args... args) {
  char text[192];
  std::snprintf(text, sizeof(text), format, args...);
  return text;
}

// The KV blocks there would be with |alpha| layers lent.
double KvBlocksAt(const PolicySnapshot& s, uint32_t alpha) {
  const double per_extent = std::max(1u, s.kv.granules_per_extent);
  const double granules =
      static_cast<double>(s.kv.mapped_extents) * per_extent + static_cast<double>(s.pool_free) -
      static_cast<double>(s.weights.freed_granules) +
      static_cast<double>(alpha) * static_cast<double>(s.weights.granules_per_whole_layer);
  const double extents =
      std::clamp(std::floor(granules / per_extent), 0.0, static_cast<double>(s.kv.max_extents));
  return extents * static_cast<double>(s.kv.blocks_per_extent);
}

// The fewest layers with which KV holds |blocks|; |most| when none do.
uint32_t Covering(const PolicySnapshot& s, double blocks, uint32_t most) {
  uint32_t low = 0, high = most;  // KV grows with alpha
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (KvBlocksAt(s, middle) >= blocks) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Blocks that the running sequences hold and are about to take.
double InUse(const PolicySnapshot& s) {
  return static_cast<double>(s.kv.used_blocks) + static_cast<double>(s.demand.running);
}

// The same with those of the waiting requests that the scheduler's cap lets run.
double Need(const PolicySnapshot& s) {
  const DemandView& d = s.demand;
  double share = d.waiting > 0 ? 1 : 0;
  if (d.waiting > 0 && d.max_running > 0) {
    const double room = d.max_running > d.running ? d.max_running - d.running : 0;
    share = std::min(1.0, room / static_cast<double>(d.waiting));
  }
  const double need = InUse(s) + share * static_cast<double>(d.waiting_blocks);
  return std::max(need,
                  static_cast<double>(s.kv.used_blocks) + static_cast<double>(d.starved_blocks));
}

// Load time of a layer over its compute time; 0: not known yet. The compute time is measured, the
// pass less its stalls, and predicted as long as nothing was measured.
double LoadRatio(const PolicySnapshot& s) {
  double pass = s.step_ns - std::max(0.0, s.stall_ns_per_step);
  if (!std::isfinite(pass) || pass <= 0) {
    const double tokens = std::max(1u, s.demand.running);
    pass = s.cost.StepNs(tokens, tokens * std::max(0.0, s.demand.tokens_per_seq), 0, 0);
  }
  const double load = static_cast<double>(s.weights.granules_per_whole_layer) *
                      static_cast<double>(s.granule_bytes) / s.cost.link_bytes_per_ns;
  const double ratio = load * static_cast<double>(s.weights.layers) / pass;
  return std::isfinite(ratio) && ratio > 0 ? ratio : 0;
}

}  // namespace

ParamTable OneirosConfig::Params() {
  ParamTable table;
  table.Bind("cap", &cap, 0, 1, "share of the layers lent at most; 0: none");
  table.Bind("slots", &slots, 0, 2,
             "shared slots the lent layers take turns in; 0: whichever makes the shorter pass");
  table.Bind("headroom", &headroom, 1, 10,
             "KV to remain when layers come home, as a factor of what is needed");
  table.Bind("hold_steps", &hold_steps, 0, 1'000'000,
             "steps of ample room before layers come home, and between opposite moves");
  return table;
}

std::vector<std::pair<std::string, std::string>> OneirosPolicy::Parameters() const {
  OneirosConfig copy = config_;
  return copy.Params().Values();
}

double OneirosPolicy::Stretch(uint32_t layers, double ratio, uint32_t alpha, uint32_t slots) {
  if (layers == 0) return 1;
  const double loads = static_cast<double>(alpha) + slots;
  return std::max(1.0, loads * (slots == 1 ? ratio + 1 : ratio) / static_cast<double>(layers));
}

uint32_t OneirosPolicy::MaxHidden(uint32_t layers, double ratio, uint32_t slots) {
  const double loads =
      std::floor(static_cast<double>(layers) / (slots == 1 ? ratio + 1 : ratio) + kRounding);
  // A pass loads a layer once at most.
  return static_cast<uint32_t>(std::clamp(std::min(loads, static_cast<double>(layers)) - slots, 0.0,
                                          static_cast<double>(layers)));
}

// Within the cap and what the weights can give in the fewest slots.
uint32_t OneirosPolicy::MostAlpha(const WeightsView& weights) const {
  const uint32_t slots = config_.slots == 2 ? 2 : 1;
  if (weights.max_layers_away <= slots) return 0;
  const double capped = std::floor(config_.cap * weights.layers + kRounding);
  return std::min(static_cast<uint32_t>(capped), weights.max_layers_away - slots);
}

uint32_t OneirosPolicy::ChooseSlots(const WeightsView& weights, double ratio,
                                    uint32_t alpha) const {
  if (config_.slots != 0) return static_cast<uint32_t>(config_.slots);
  if (weights.max_layers_away < 2 || alpha > weights.max_layers_away - 2) return 1;
  const bool two = Stretch(weights.layers, ratio, alpha, 2) + kRounding <
                   Stretch(weights.layers, ratio, alpha, 1);
  return two ? 2 : 1;
}

PolicyDecision OneirosPolicy::Widest(const WeightsView& weights) const {
  const uint32_t alpha = MostAlpha(weights);
  const uint32_t slots = ChooseSlots(weights, 0, alpha);
  return {
      .placement = Placement::kLayer, .layers = alpha > 0 ? alpha + slots : 0, .ring_slots = slots};
}

PolicyDecision OneirosPolicy::Hold(std::string reason) const {
  return {.placement = Placement::kLayer,
          .layers = alpha_ > 0 ? alpha_ + slots_ : 0,
          .ring_slots = slots_,
          .reason = std::move(reason)};
}

PolicyDecision OneirosPolicy::Move(const PolicySnapshot& s, double ratio, uint32_t alpha,
                                   std::string reason) {
  moved_ = alpha > alpha_ ? Direction::kLend : Direction::kRevert;
  moved_at_ = s.step;
  ample_ = false;
  reason += Format(": %u -> %u of %u layers lent", alpha_, alpha, s.weights.layers);
  alpha_ = alpha;
  if (alpha > 0) {
    slots_ = ChooseSlots(s.weights, ratio, alpha);
    reason += Format(", %u take turns in %u slots", alpha_ + slots_, slots_);
  }
  return Hold(std::move(reason));
}

PolicyDecision OneirosPolicy::Decide(const PolicySnapshot& s) {
  const WeightsView& w = s.weights;
  if (!started_) {
    started_ = true;
    if (w.placement == Placement::kLayer && w.granules_per_whole_layer > 0) {
      alpha_ = w.freed_granules / w.granules_per_whole_layer;
      slots_ = config_.slots == 1 || w.layers_away <= alpha_ + 1 ? 1 : 2;
    }
  }
  const uint32_t most = MostAlpha(w);
  if (alpha_ > most || (alpha_ > 0 && w.max_layers_away - slots_ < alpha_)) {
    alpha_ = std::min(alpha_, most);
    slots_ = ChooseSlots(w, 0, alpha_);
  }
  if (most == 0) return Hold("no layer may be lent");

  const double ratio = LoadRatio(s);
  const double need = Need(s);
  uint32_t hidden = 0;  // T_T * N <= T_compute
  if (ratio > 0) {
    for (const uint32_t slots : {1u, 2u}) {
      if (config_.slots == 0 || config_.slots == slots) {
        hidden = std::max(hidden, MaxHidden(w.layers, ratio, slots));
      }
    }
  }
  // A pass that is too slow is better than a request that can never run.
  const bool starved = s.demand.starved_blocks > 0;
  const uint32_t limit = starved ? most : std::min(most, hidden);
  const uint64_t since = s.step >= moved_at_ ? s.step - moved_at_ : 0;
  const double have = KvBlocksAt(s, alpha_);

  if (need > have) {
    const uint32_t wanted = std::min(limit, Covering(s, need, most));
    if (wanted > alpha_) {
      if (!starved && moved_ == Direction::kRevert && since < config_.hold_steps) {
        return Hold(Format("%.0f of %.0f blocks needed, holding after a move", need, have));
      }
      return Move(s, ratio, wanted, Format("%.0f blocks needed, %.0f there", need, have));
    }
  }
  // What comes home: what the need with headroom leaves over, and what no longer hides behind the
  // compute; never what is in use.
  const uint32_t covering = std::max(Covering(s, InUse(s) * config_.headroom, most),
                                     std::min(limit, Covering(s, need * config_.headroom, most)));
  if (covering >= alpha_) {
    ample_ = false;
    if (alpha_ > 0 || need > have) {
      return Hold(Format("%.0f of %.0f blocks needed, %u layers lent, %u hide behind the compute",
                         need, have, alpha_, hidden));
    }
    return Hold("load fits, all weights resident");
  }
  if (!ample_) {
    ample_ = true;
    ample_since_ = s.step;
  }
  const uint64_t ample_for = s.step >= ample_since_ ? s.step - ample_since_ : 0;
  if (ample_for < config_.hold_steps ||
      (moved_ == Direction::kLend && since < config_.hold_steps)) {
    return Hold(Format("%.0f of %.0f blocks needed, layers come home if it stays so", need, have));
  }
  return Move(s, ratio, covering,
              Format("%.0f of %.0f blocks needed, %u hide behind the compute", need, have, hidden));
}

}  // namespace weir
