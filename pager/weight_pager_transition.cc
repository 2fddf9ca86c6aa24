// Moving the border while steps run: remaps hide behind gates that are held closed.
//
// Life of such a move, with step t running:
//   1. BeginTransition says where to. Step t+1 begins with a held pass: its gates are armed for
//      all that is away before or after, under fresh numbers, and none of its copies is queued. So
//      its kernels stop at the first of these gates.
//   2. Step t ends. From now on nobody reads what lies behind the gates.
//   3. AdvanceTransition goes through the chunks in the order in which their gates are reached:
//      remaps what changes, then queues the chunk's copy, which opens the gate. As long as that
//      is faster than the compute, only the first gates are waited at; a chunk that would make the
//      step late stays as it is for a later transition, and what of it is away is copied. (On a GPU
//      an unmap waits for the copy under way, so remaps add to the copies' time: docs/drivers.md.)
//      The copy fits either mapping: a slot that is away is written into the ring, one that has
//      come home is filled in place by the very copy that the step needs anyway.
//   4. Step t+1 ends, and the plan is in force. If chunks were left, what is away lies between the
//      two plans (EvictionPlan::Between) and later passes copy just that, until a transition goes
//      on from there. If a remap failed, or the step did, they copy for the larger plan, and every
//      byte is right.
// Stripes keep their ring granules (eviction_plan.h), so nothing is remapped but what moves.
#include <algorithm>

#include "pager/weight_pager_impl.h"
#include "vmm/trace.h"

namespace weir {

bool WeightPager::moves_behind_gates() const {
  return impl_->options.device_gates;
}

bool WeightPager::CanMoveBehindGates(const EvictionTarget& target) const {
  const EvictionTarget& now = planned().target();
  if (!moves_behind_gates()) return false;
  if (target.empty()) return now.empty() || now.placement == Placement::kStripe;
  if (target.placement != Placement::kStripe) return false;
  return now.empty() ||
         (now.placement == Placement::kStripe && now.ring_slots == target.ring_slots);
}

bool WeightPager::in_transition() const {
  return !impl_->passes.empty() && impl_->passes.front().held;
}

uint32_t WeightPager::steps_under_way() const {
  return static_cast<uint32_t>(impl_->passes.size());
}

bool WeightPager::settled() const {
  return impl_->settled || std::any_of(impl_->passes.begin(), impl_->passes.end(),
                                       [](const Pass& pass) { return pass.to != nullptr; });
}

const RemapCost& WeightPager::remap_cost() const {
  return impl_->remap_cost;
}

Status WeightPager::BeginTransition(const EvictionTarget& target) {
  Impl& m = *impl_;
  if (!moves_behind_gates()) return BadState("weights move behind gates that kernels pass");
  if (m.backing == nullptr) return BadState("weights without a backing copy cannot leave");
  if (m.state != Impl::State::kInStep) WEIR_TRY(m.CheckServing());
  if (!m.passes.empty() && (m.passes.back().held || m.restart_pending || m.queued_in_vain)) {
    return BadState("the steps under way must end first");
  }
  m.heading.reset();
  m.homecoming = {};
  const EvictionTarget& now = m.after()->target();
  if (!CanMoveBehindGates(target)) {
    return InvalidArgument(
        "behind gates stripes can move, with the ring as it is; at rest anything can. In force: " +
        m.after()->ToString());
  }
  SharedPlan to = std::make_shared<const EvictionPlan>(
      WEIR_TRY(EvictionPlan::Make(layout_, m.granule_bytes, target)));
  if (target == now && settled()) return OkStatus();
  const PoolCounts& counts = m.space.pool().counts();
  const uint64_t owned = uint64_t{counts.by_owner[static_cast<size_t>(Owner::kWeights)]} +
                         counts.by_owner[static_cast<size_t>(Owner::kRing)];
  const uint64_t needed = to->held_granules();
  if (needed > owned) {
    m.homecoming = WEIR_TRY(m.space.pool().Commit(static_cast<uint32_t>(needed - owned)));
  }
  m.heading = std::move(to);
  return OkStatus();
}

// The first turn at a held pass: nothing that was queued before may still run.
Status WeightPager::Impl::BeginHeld(const Pass& pass, uint64_t number) {
  // All it waits for is in steps that have ended. Not for the last copy that QueueUpTo recorded: it
  // may have given up behind that one.
  Status error;
  Result<EventId> all = BadState("there is no copy stream");
  if (copy_stream.valid()) all = driver.Record(copy_stream);
  if (!all.ok()) {
    WEIR_TRY(ReplaceStream());
  } else {
    last_copy = *all;
    switch (AwaitProduced(pass.base, &error)) {
      case WaitOutcome::kTimedOut:
        return DriverError("the copy stream did not come to rest within " +
                           std::to_string(options.gate_timeout_ns / 1'000'000) + " ms");
      case WaitOutcome::kStreamFailed: WEIR_TRY(ReplaceStream()); break;
      case WaitOutcome::kArrived: break;
    }
  }
  // Nobody else writes it now: the stream rests, and the step departs from nothing before a gate.
  WEIR_TRY(driver.Write(gate_consumed, std::as_bytes(std::span(&pass.base, 1))));
  cover = pass.plan;
  if (pass.to) settled = false;
  TraceCopiesAtRest();  // those made ahead, in vain: of the round that ends here
  TraceTransition(pass, number);
  return OkStatus();
}

bool WeightPager::Impl::Moves(const Pass& pass, uint32_t i) const {
  if (!pass.to || i == pass.plan->chunks().size()) return false;
  const StripeChunk& chunk = pass.plan->chunks()[i];
  const auto first = static_cast<ptrdiff_t>(chunk.first.value);
  return !std::equal(pass.places.begin() + first, pass.places.begin() + first + chunk.count,
                     place_of_slot.begin() + first);
}

Result<SharedPlan> WeightPager::Impl::Covering(const WeightLayout& layout, const SharedPlan& from,
                                               const SharedPlan& to) const {
  const bool more = to->target().granules_per_layer > from->target().granules_per_layer;
  const SharedPlan& most = more ? to : from;
  if (from->even() && to->even()) return most;
  std::vector<uint32_t> granules = from->GranulesOfGate();
  const std::vector<uint32_t> others = to->GranulesOfGate();
  for (size_t g = 0; g < granules.size(); ++g) granules[g] = std::max(granules[g], others[g]);
  if (granules == most->GranulesOfGate()) return most;
  return std::make_shared<const EvictionPlan>(
      WEIR_TRY(EvictionPlan::Between(layout, granule_bytes, most->target(), granules)));
}

uint32_t WeightPager::Impl::AwayOf(const StripeChunk& chunk) const {
  const auto first = place_of_slot.begin() + static_cast<ptrdiff_t>(chunk.first.value);
  return static_cast<uint32_t>(std::count_if(first, first + chunk.count, InRing));
}

bool WeightPager::Impl::AsPlanned() const {
  const std::vector<StripeChunk>& chunks = cover->chunks();
  return std::all_of(chunks.begin(), chunks.end(),
                     [this](const StripeChunk& chunk) { return AwayOf(chunk) == chunk.count; });
}

uint32_t WeightPager::Impl::ToCopy(const Pass& pass, uint32_t i) const {
  const StripeChunk& chunk = pass.plan->chunks()[i];
  return pass.as_planned && Moves(pass, i) ? AwayOf(chunk) : chunk.count;
}

Result<SharedPlan> WeightPager::Impl::AwayNow(const WeightLayout& layout, const Pass& pass) const {
  std::vector<uint32_t> granules = pass.plan->GranulesOfGate();
  for (const StripeChunk& c : pass.plan->chunks()) granules[c.gate] = AwayOf(c);
  return std::make_shared<const EvictionPlan>(
      WEIR_TRY(EvictionPlan::Between(layout, granule_bytes, pass.plan->target(), granules)));
}

bool WeightPager::Impl::OnPace(const Pass& pass, uint32_t i, const GatePace& pace) const {
  if (!pass.moved_some) return true;  // or a move might never end
  const std::vector<StripeChunk>& chunks = pass.plan->chunks();
  const auto now = static_cast<double>(driver.Now() - pass.advancing_since);
  const auto due = [&](const StripeChunk& chunk) {
    const double turn =
        static_cast<double>(chunk.gate) / static_cast<double>(pass.plan->chunk_of_gate().size());
    return turn * static_cast<double>(pace.step_ns) + static_cast<double>(pace.late_ns);
  };
  // Of the chunks up to |i|, whole, and of those behind it up to |end|, which stay as they are.
  const auto copying = [&](uint32_t end) {
    uint64_t granules = end > i ? pass.copies_from[i + 1] - pass.copies_from[end] : 0;
    for (uint32_t c = pass.advanced; c < std::min(end, i + 1); ++c) granules += chunks[c].count;
    return pace.link_bytes_per_ns > 0
               ? static_cast<double>(granules * granule_bytes) / pace.link_bytes_per_ns
               : 0;
  };
  // Copies go on when it is remapped, which waits for those under way. The first gate that waits
  // for it, its own, and the last, which all copies are before.
  const double begins = std::max(now, pass.copying_until) +
                        static_cast<double>(chunks[i].count) * remap_cost.at_rest_ns();
  const auto last = static_cast<uint32_t>(chunks.size() - 1);
  for (const uint32_t c : {pass.advanced, i, last}) {
    if (begins + copying(c) > due(chunks[c])) return false;
  }
  return true;
}

void WeightPager::Impl::NoteCopy(Pass* pass, const GatePace& pace, uint64_t bytes) const {
  if (pace.link_bytes_per_ns <= 0 || bytes == 0) return;
  const auto now = static_cast<double>(driver.Now() - pass->advancing_since);
  pass->copying_until =
      std::max(pass->copying_until, now) + static_cast<double>(bytes) / pace.link_bytes_per_ns;
}

std::vector<uint32_t> WeightPager::Impl::RingUsers() const {
  std::vector<uint32_t> users(space.region(ring).slots.size(), 0);
  for (const SlotPlace i : place_of_slot) {
    if (InRing(i)) ++users[static_cast<size_t>(i)];
  }
  return users;
}

Status WeightPager::Impl::RemapChunk(Pass* pass, const StripeChunk& chunk,
                                     WeightPagerStats* stats) {
  const WeightSlotRun slots{.first = static_cast<uint32_t>(chunk.first.value),
                            .count = chunk.count};
  std::vector<uint32_t> users = pass->ring_users;
  for (uint32_t s = slots.first; s < slots.first + slots.count; ++s) {
    if (InRing(place_of_slot[s])) --users[static_cast<size_t>(place_of_slot[s])];
    if (InRing(pass->places[s])) ++users[static_cast<size_t>(pass->places[s])];
  }
  std::vector<bool> ring_after(users.size());
  std::transform(users.begin(), users.end(), ring_after.begin(), [](uint32_t n) { return n > 0; });
  WeightTransition t = WEIR_TRY(MakeTransition(place_of_slot, pass->places, slots, ring_after));
  t.remap.cause = t.restored.empty() ? RemapCause::kEvict : RemapCause::kRestore;
  const auto fresh = static_cast<uint32_t>(
      std::count_if(t.remap.ops.begin(), t.remap.ops.end(),
                    [](const RemapOp& op) { return std::holds_alternative<MapFreshOp>(op); }));
  homecoming.Refund(std::min(fresh, homecoming.count()));
  // No fence: the gate is closed, the step before has ended, and this chunk's copy is not queued.
  WEIR_TRY(CommitTransition(t, stats));
  std::copy_n(pass->places.begin() + slots.first, slots.count, place_of_slot.begin() + slots.first);
  pass->ring_users = std::move(users);
  return OkStatus();
}

void WeightPager::Impl::LetGo(Pass* pass) {
  const uint64_t end = pass->base + pass->plan->chunks().size();
  queued = end;
  pass->held = false;
  pass->let_go = true;
  pass->to.reset();
  homecoming = {};
  // In the order of the stream, or what it has still to write would close the gates again.
  if (copy_stream.valid() && driver.WriteCounter(copy_stream, gate_produced, end).ok()) {
    if (Result<EventId> let_go = driver.Record(copy_stream); let_go.ok()) {
      last_copy = *let_go;
      const Status done = driver.WaitFor(last_copy, options.gate_timeout_ns);
      // Otherwise the step's own limit ends its waiting.
      if (done.ok() || done.code() == StatusCode::kShouldWait) return;
    }
  }
  (void)ReplaceStream();  // nothing that is still on it may write the word after this
  SetProduced(end);
}

Status WeightPager::AdvanceTransition(uint64_t limit_ns, const GatePace& pace) {
  Impl& m = *impl_;
  if (!in_transition()) return OkStatus();
  Pass& pass = m.passes.front();
  if (m.restart_pending) {
    m.LetGo(&pass);
    return OkStatus();  // what failed before has been reported
  }
  const TimeNs begin = m.driver.Now();
  const auto give_up = [&](Status status) {
    m.restart_pending = true;
    m.LetGo(&pass);
    return m.copy_error = status.WithContext("opening the gates of a step");
  };
  if (pass.advanced == 0) {
    pass.advancing_since = begin;
    pass.as_planned = m.AsPlanned();
    if (Status rest = m.BeginHeld(pass, stats_.steps); !rest.ok()) return give_up(std::move(rest));
    if (pass.to) {
      pass.places = pass.to->PlaceOfSlots(m.place_of_slot.size());
      pass.ring_users = m.RingUsers();
      const auto n = static_cast<uint32_t>(pass.plan->chunks().size());
      pass.copies_from.assign(n + 1, 0);
      for (uint32_t i = n; i-- > 0;) {
        pass.copies_from[i] = pass.copies_from[i + 1] + m.ToCopy(pass, i);
      }
    }
  }
  const std::vector<StripeChunk>& chunks = pass.plan->chunks();
  // Many chunks between two copies, unless there is something else to do: how long an unmap waits
  // for the engine that copies, and the link for the next copy, does not depend on how many.
  constexpr uint32_t kAtOnce = 16;
  const uint32_t at_once = limit_ns == UINT64_MAX ? kAtOnce : 1;
  const auto until = static_cast<double>(begin - pass.advancing_since) +  // as copying_until
                     static_cast<double>(limit_ns);
  const uint32_t first = pass.advanced;
  while (pass.advanced < chunks.size()) {
    if (pass.advanced > first && m.driver.Now() - begin >= limit_ns) return OkStatus();
    uint32_t end = pass.advanced;
    while (end - pass.advanced < at_once && m.Moves(pass, end) && m.OnPace(pass, end, pace)) {
      if (end > first && pass.copying_until > until) return OkStatus();  // it would wait for longer
      pass.failed = m.RemapChunk(&pass, chunks[end++], &stats_);
      if (!pass.failed.ok()) pass.to.reset();
      pass.moved_some = true;
    }
    if (end == pass.advanced) {  // it stays as it is
      pass.left_some = pass.left_some || m.Moves(pass, end);
      ++end;
    }
    for (; pass.advanced < end; ++pass.advanced) {
      const StripeChunk& chunk = chunks[pass.advanced];
      const uint32_t count = m.ToCopy(pass, pass.advanced);
      if (count < chunk.count) {
        TraceEmit(TraceType::kStripeStays, 0, pass.advanced, m.weights.value, chunk.first.value,
                  chunk.count - count);
      }
      if (Status queued = m.QueueNext(*pass.plan, pass.base, count, &stats_); !queued.ok()) {
        return give_up(std::move(queued));
      }
      m.NoteCopy(&pass, pace, count * m.granule_bytes);
    }
  }
  if (pass.to && pass.left_some) {
    Result<SharedPlan> between = m.AwayNow(layout_, pass);
    if (!between.ok()) return give_up(between.status());
    pass.between = std::move(*between);
    pass.to.reset();
    ++stats_.split_transitions;
  }
  Result<EventId> copied = m.driver.Record(m.copy_stream);
  if (!copied.ok()) return give_up(copied.status());
  m.last_copy = pass.copied = *copied;
  pass.held = false;
  m.homecoming = {};
  m.first_round = true;
  return pass.failed.WithContext("moving weights behind closed gates");
}

// The step that moved has ended as it should: what came home is there.
void WeightPager::EndTransition(const Pass& pass) {
  Impl& m = *impl_;
  m.cover = pass.to ? pass.to : pass.between;
  if (pass.to) {
    plan_ = *pass.to;
    m.settled = true;
    ++stats_.transitions;
    ++stats_.hidden_transitions;
  }
  // Otherwise the next step begins a held pass, or comes to rest first.
  if (m.passes.empty() && !m.queued_in_vain) {
    m.Restart(&stats_);
  } else if (!m.armed(*m.cover)) {
    m.TracePlacement(*m.cover, 0);  // the round ends with this step, and none follows
  }
}

}  // namespace weir
