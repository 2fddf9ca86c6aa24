// EngineCore's part in the border between weights and KV: what a policy is shown, what of its wish
// there can be, and the parts in which the border moves there. How weights move is the pager's.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "engine/core.h"
#include "vmm/trace.h"

namespace weir {
namespace {

// A border that moves while requests are served moves in parts. At rest each part makes a step late
// by its remaps and fills; so much of a step may go into them. Behind closed gates remaps hide as
// long as the gates open at the pace at which they are reached (PaceNs), and may make a step late
// by kLateMove more: what does not fit a step is left to later ones. What KV gives up for the part
// after is unmapped then, and may make the next step late by so much.
constexpr double kLateShare = 0.1;
constexpr double kLateRelease = 0.05;
// An unmap's share of a remap, until KV has given something up.
constexpr double kUnmapShare = 0.5;

}  // namespace

EvictionTarget EngineCore::Clip(const PolicyDecision& decision, const WeightsView& weights) {
  EvictionTarget target{.placement = decision.placement};
  switch (decision.placement) {
    case Placement::kStripe:
      target.granules_per_layer =
          std::min(decision.granules_per_layer, weights.max_granules_per_layer);
      target.ring_slots = std::max(2U, decision.ring_slots);
      break;
    case Placement::kLayer:
      target.layers = std::min(decision.layers, weights.max_layers_away);
      target.ring_slots = std::max(1U, decision.ring_slots);
      if (target.layers <= target.ring_slots) target.layers = 0;  // would free nothing
      break;
    case Placement::kInPlace:
      target.granules_per_layer =
          std::min(decision.granules_per_layer, weights.max_in_place_per_layer);
      break;
  }
  return target;
}

PolicySnapshot EngineCore::Snapshot() const {
  const MemoryView view = memory_.view();
  const EvictionPlan& plan = memory_.weights().planned();
  const BlockCounts& blocks = memory_.blocks().counts();
  const KvGeometry& geometry = memory_.kv().geometry();
  const bool held = link_.state() == LinkState::kHeld;
  PolicySnapshot s;
  s.step = stats_.steps + idle_steps_;
  s.now_ns = driver_.Now();
  s.granule_bytes = view.granule_bytes;
  s.pool_total = view.pool.total;
  s.pool_free = view.pool.free - view.pool.committed;
  s.weights = {.bytes = memory_.weights().layout().region_bytes,
               .layers = static_cast<uint32_t>(memory_.weights().layout().layers.size()),
               .max_granules_per_layer = held ? 0 : memory_.max_granules_per_layer(),
               .granules_per_layer = view.granules_per_layer,
               .ring_slots = memory_.ring_slots(),
               .placement = plan.target().placement,
               .layers_away = plan.target().layers,
               .max_layers_away = held ? 0 : memory_.max_layers(),
               .granules_per_whole_layer = memory_.least_layer_granules(),
               .freed_granules = plan.freed_granules(),
               .max_in_place_per_layer = held ? 0 : memory_.max_in_place_per_layer()};
  s.kv = {.granules_per_extent = geometry.granules_per_extent,
          .blocks_per_extent = geometry.blocks_per_extent,
          .block_tokens = kBlockTokens,
          .mapped_extents = view.kv_extents,
          .max_extents = memory_.kv().max_extents(),
          .used_blocks = blocks.used,
          .cached_blocks = blocks.cached,
          .free_blocks = blocks.free};
  s.demand = {.running = scheduler_.running(),
              .decoding = scheduler_.decoding(),
              .waiting = scheduler_.waiting() + queued_.requests,
              .max_running = options_.scheduler.max_sequences,
              .waiting_blocks = scheduler_.waiting_blocks() + queued_.blocks,
              .expected_blocks = scheduler_.expected_blocks() + queued_.expected_blocks,
              .starved_blocks = starved_blocks_,
              .tokens_per_seq = scheduler_.mean_running_tokens(),
              .preemptions = scheduler_.stats().preemptions,
              .max_batched_tokens = options_.scheduler.max_batched_tokens,
              .asked_per_request = scheduler_.mean_asked_tokens(),
              .blocks_beside_output = work_.blocks_beside_output(),
              .output_spread = work_.output_spread(),
              .prefill_per_request = work_.prefill_per_request(),
              .output_per_request = work_.output_per_request()};
  s.cost = cost_.cost();
  s.step_ns = smoothed_step_ns_;
  s.stall_ns_per_step = smoothed_stall_ns_;
  s.link_slow = link_.state() == LinkState::kSlow;
  return s;
}

void EngineCore::ApplyPolicy() {
  const PolicySnapshot snapshot = Snapshot();
  const PolicyDecision decision = policy_->Decide(snapshot);
  // D2: a decision is a wish; what breaks an invariant is clipped.
  EvictionTarget wanted = Clip(decision, snapshot.weights);
  if (!FirstInTurnFits(wanted)) wanted = memory_.weights().planned().target();
  const bool clipped = wanted.amount() != decision.amount();
  if (clipped) ++stats_.border_refusals;
  TraceDecision(snapshot, decision, clipped);
  SetBorderGoal(wanted);
  preempt_for_border_ = decision.preempt;
  prompt_tokens_ = decision.prompt_tokens;
  MoveTowardsGoal();
}

void EngineCore::SetBorderGoal(const EvictionTarget& goal) {
  if (!border_goal_) border_from_ = memory_.weights().planned().target();
  border_goal_ = goal;
}

// S3: the request that is first in turn outgrew the policy's border before, and got a wider one
// (MakeRoomFor). If that were taken away while the request computes again what it had, it would
// never end.
bool EngineCore::FirstInTurnFits(const EvictionTarget& target) const {
  const EvictionTarget& planned = memory_.weights().planned().target();
  const Sequence* first = scheduler_.first_in_turn();
  if (first == nullptr || target == planned) return true;
  const uint64_t need = CeilDiv(first->length(), kBlockTokens);
  const auto fits = [&](const EvictionTarget& t) {
    return memory_.KvBlocksAt(t).value_or(0) >= need;
  };
  return fits(target) || !fits(planned);
}

void EngineCore::MoveTowardsGoal() {
  const Status released = memory_.ReleaseVacated();
  if (!released.ok() && released.code() != StatusCode::kShouldWait) {
    ++stats_.border_refusals;
    last_border_error_ = released;
  }
  if (!border_goal_) return;
  const WeightPager& weights = memory_.weights();
  const EvictionTarget& planned = weights.planned().target();
  const bool there = *border_goal_ == planned || (border_goal_->empty() && planned.empty());
  if (there && weights.settled()) {
    border_goal_.reset();
    return;
  }
  if (planned.empty() && weights.settled() && !MayLeaveHome()) {
    border_goal_.reset();
    return;
  }
  const auto move = [&] {
    const EvictionPlan& now = weights.planned();
    const EvictionTarget next =
        NextBorder(now.target(), static_cast<double>(now.evicted_granules()) /
                                     static_cast<double>(weights.layout().layers.size()));
    if (scheduler_.running() == 0 || !weights.CanMoveBehindGates(next)) {
      Drain();  // granules move between steps
      return MoveBorder(next);
    }
    const TimeNs start = driver_.Now();
    Status begun = memory_.BeginMove(next, *border_goal_, Holder());
    stats_.border_ns += driver_.Now() - start;
    if (begun.ok()) memory_.VacateAhead(NextBorder(next, next.granules_per_layer));
    return begun;
  };
  Status moved = move();
  if (preempt_for_border_ && preempted_in_vain_ != border_goal_) {
    while (moved.code() == StatusCode::kNoMemory && scheduler_.running() > 1) {
      Drain();  // what is preempted may be in the steps under way
      if (scheduler_.running() <= 1) break;
      scheduler_.PreemptLast();
      preempted_in_vain_ = border_goal_;
      moved = move();
    }
  }
  if (moved.ok()) {
    ++stats_.border_moves;
    preempted_in_vain_.reset();
  } else if (moved.code() != StatusCode::kShouldWait) {
    ++stats_.border_refusals;
    last_border_error_ = std::move(moved);
    border_goal_.reset();  // unless the policy still wants it
  }
}

EvictionTarget EngineCore::NextBorder(const EvictionTarget& now, double away) const {
  const EvictionTarget& goal = *border_goal_;
  const auto stripes = [](const EvictionTarget& t) {
    return t.empty() || t.placement == Placement::kStripe;
  };
  const bool same_ring = goal.empty() || now.empty() || goal.ring_slots == now.ring_slots;
  // Nobody waits for the next step, or it takes another ring altogether.
  if (scheduler_.running() == 0 || !stripes(goal) || !stripes(now) || !same_ring) return goal;
  const double to = goal.amount();
  const double left = std::abs(to - away);
  if (left == 0) return goal;
  // As many parts as it takes, all about as long, to where all layers have as many away.
  const double part = left / std::ceil(left / GranulesOfPart(away, to < away));
  constexpr double kRounding = 1e-6;
  EvictionTarget next{.ring_slots = goal.empty() ? now.ring_slots : goal.ring_slots};
  next.granules_per_layer = static_cast<uint32_t>(to > away ? std::ceil(away + part - kRounding)
                                                            : std::floor(away - part + kRounding));
  return next.granules_per_layer == goal.granules_per_layer ? goal : next;
}

double EngineCore::GranulesOfPart(double away, bool restoring) const {
  const WeightPager& weights = memory_.weights();
  const RemapCost& cost = weights.remap_cost();
  const auto layers = static_cast<double>(weights.layout().layers.size());
  const auto fit = [&](double room_ns, double granule_ns) {
    return granule_ns > 0 ? room_ns / (layers * granule_ns) : 1e9;
  };
  double granules = 0;
  if (weights.moves_behind_gates()) {
    const double remap_ns = cost.at_rest_ns();
    const double pace_ns = MovePaceNs();
    const double room_ns = (1 + kLateMove) * pace_ns - CopyNs(away);
    const double kv_share = restoring ? KvShareOfWayHome() : 0;
    if (!restoring) {
      // As many as a step has room for beside the copies of all that is away before or after.
      granules = fit(room_ns, remap_ns + CopyNs(1) / layers);
    } else if (kv_share > 0) {
      const double kv_ns = memory_.release_ns_per_granule().value_or(kUnmapShare * remap_ns);
      granules = std::min(fit(room_ns, remap_ns),
                          fit(room_ns + kLateRelease * pace_ns, remap_ns + kv_ns * kv_share));
    } else {
      // All: stripe after stripe comes home whole, and what a step has no room for in later ones.
      return away;
    }
  } else {
    double granule_ns = cost.at_rest_ns();
    if (restoring && memory_.link_bytes_per_ns() > 0) {
      const auto bytes = static_cast<double>(memory_.pool().granule_bytes());
      granule_ns += bytes / memory_.link_bytes_per_ns();
    }
    granules = fit(kLateShare * smoothed_step_ns_, granule_ns);
  }
  return std::clamp(granules, 1.0, 1e9);
}

double EngineCore::KvShareOfWayHome() const {
  const auto home = static_cast<double>(memory_.weights().planned().freed_granules());
  const Result<uint32_t> kv = memory_.KvGranulesFor(*border_goal_);
  if (!kv.ok() || home == 0) return 0;  // a goal that cannot be is refused when it is moved to
  return std::min(1.0, static_cast<double>(*kv) / home);
}

double EngineCore::CopyNs(double away) const {
  const double link = memory_.link_bytes_per_ns();
  const double bytes = away * static_cast<double>(memory_.weights().layout().layers.size()) *
                       static_cast<double>(memory_.pool().granule_bytes());
  return link > 0 ? bytes / link : 0;
}

double EngineCore::PaceNs(const EvictionTarget& away) const {
  // Not the steps as they were: what earlier parts made them late by is in them. And the next one
  // may be short among long ones.
  return std::max(std::min(smoothed_compute_ns_, last_compute_ns_),
                  CopyNs(away.granules_per_layer));
}

double EngineCore::MovePaceNs() const {
  const double now = PaceNs(memory_.weights().planned().target());
  return border_goal_ ? std::max({now, PaceNs(border_from_), PaceNs(*border_goal_)}) : now;
}

Memory::KvHolder EngineCore::Holder() {
  return {.rest = [this] { Drain(); },
          .patch = [this](const auto& moves) { scheduler_.PatchBlocks(moves); },
          .lost =
              [this] {
                scheduler_.PreemptAll();
                memory_.blocks().ClearPrefixCache();
              }};
}

Status EngineCore::MoveBorder(const EvictionTarget& target) {
  const TimeNs start = driver_.Now();
  Status status = memory_.MoveBorder(target, Holder());
  stats_.border_ns += driver_.Now() - start;
  return status;
}

void EngineCore::AdvanceBorder(uint64_t limit_ns) {
  if (!memory_.weights().in_transition()) return;
  GatePace pace{.link_bytes_per_ns = memory_.link_bytes_per_ns()};
  if (const double step_ns = MovePaceNs(); step_ns > 0) {
    pace.step_ns = static_cast<uint64_t>(step_ns);
    pace.late_ns = static_cast<uint64_t>(kLateMove * step_ns);
  }
  const TimeNs start = driver_.Now();
  Status advanced = memory_.weights().AdvanceTransition(limit_ns, pace);
  stats_.border_ns += driver_.Now() - start;
  if (advanced.ok()) return;
  ++stats_.border_refusals;
  last_border_error_ = std::move(advanced);
}

void EngineCore::TraceDecision(const PolicySnapshot& snapshot, const PolicyDecision& decision,
                               bool clipped) {
  constexpr uint64_t kSample = 64;
  const uint64_t number = decisions_++;
  Tracer* const tracer = GetTracer();
  if (tracer == nullptr ||
      !(TraceEnabled(TraceType::kPolicyDecision) || TraceEnabled(TraceType::kPolicyInput))) {
    return;
  }
  // Both amounts in one unit: of the placement wanted, or, to bring all home, of that in force.
  const WeightsView& w = snapshot.weights;
  const Placement placement = decision.amount() > 0 ? decision.placement : w.placement;
  const uint32_t before = placement != w.placement         ? 0
                          : placement == Placement::kLayer ? w.layers_away
                                                           : w.granules_per_layer;
  if (decision.amount() == before && !clipped && number % kSample != 0) return;
  const uint32_t mapped = snapshot.kv.mapped_extents * snapshot.kv.blocks_per_extent;
  TraceEmit(TraceType::kPolicyInput, 0, number, snapshot.demand.waiting,
            snapshot.demand.expected_blocks, mapped, snapshot.step_ns, snapshot.stall_ns_per_step);
  TraceEmit(TraceType::kPolicyDecision, static_cast<uint8_t>(placement), number, decision.amount(),
            before, clipped ? 1 : 0, decision.ring_slots, tracer->ReasonIndex(decision.reason));
}

}  // namespace weir
