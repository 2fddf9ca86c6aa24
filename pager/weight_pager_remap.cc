// Moving the border: from one eviction plan to another, whole or not at all.
//
// Life of a transition:
//   1. The copy stream comes to rest (it does by itself: all it waits for is in steps that ended).
//   2. The difference of the two plans becomes one RemapPlan. A granule that leaves home goes into
//      a growing ring, and one that leaves a shrinking ring goes home, without passing through the
//      pool: so evicting works with an empty pool.
//   3. Commit: all or nothing. Then owners change; this cannot fail.
//   4. Slots that came home are filled from the backing copy. If that fails, the opposite
//      transition is committed.
//   5. A fresh pass begins: gate table, counters, prefix.
#include <algorithm>

#include "pager/weight_pager_impl.h"
#include "vmm/trace.h"

namespace weir {

std::vector<int32_t> RingOfSlots(const EvictionPlan& plan, size_t slots) {
  std::vector<int32_t> ring(slots, -1);
  for (const StripeChunk& c : plan.chunks()) {
    for (uint32_t i = 0; i < c.count; ++i) {
      ring[c.first.value + i] = static_cast<int32_t>(c.ring_offset + i);
    }
  }
  return ring;
}

namespace {

void AppendSlot(std::vector<WeightSlotRun>* runs, uint32_t slot) {
  if (!runs->empty() && runs->back().first + runs->back().count == slot) {
    ++runs->back().count;
  } else {
    runs->push_back({slot, 1});
  }
}

std::vector<uint32_t> SlotsOf(const std::vector<WeightSlotRun>& runs) {
  std::vector<uint32_t> slots;
  for (const WeightSlotRun& run : runs) {
    for (uint32_t i = 0; i < run.count; ++i) slots.push_back(run.first + i);
  }
  return slots;
}

}  // namespace

WeightTransition WeightPager::Impl::MakeTransition(const std::vector<int32_t>& from,
                                                   uint32_t from_ring,
                                                   const std::vector<int32_t>& to,
                                                   uint32_t to_ring) const {
  WeightTransition t;
  const auto slots = static_cast<uint32_t>(from.size());
  for (uint32_t s = 0; s < slots; ++s) {
    if (from[s] == to[s]) continue;
    ++t.slots_changed;
    if (from[s] < 0) AppendSlot(&t.evicted, s);
    if (to[s] < 0) AppendSlot(&t.restored, s);
  }
  RemapPlan& plan = t.remap;
  const Region& home = space.region(weights);
  const Region& spare = space.region(ring);

  // A growing ring takes granules that leave home, while they are still mapped there.
  uint32_t ring_size = from_ring;
  for (const uint32_t s : SlotsOf(t.evicted)) {
    if (ring_size >= to_ring) break;
    plan.MapAlias(ring, SlotIndex(ring_size), weights, SlotIndex(s));
    t.owner_changes.emplace_back(home.slots[s], Owner::kRing);
    ++ring_size;
  }
  for (uint32_t s = 0; s < slots; ++s) {
    if (from[s] != to[s]) plan.Unmap(weights, SlotIndex(s));
  }
  // A shrinking ring sends granules home.
  std::vector<uint32_t> homeless = SlotsOf(t.restored);
  std::reverse(homeless.begin(), homeless.end());
  for (uint32_t i = to_ring; i < from_ring; ++i) {
    if (!homeless.empty()) {
      plan.MapAlias(weights, SlotIndex(homeless.back()), ring, SlotIndex(i));
      t.owner_changes.emplace_back(spare.slots[i], Owner::kWeights);
      homeless.pop_back();
    }
    plan.Unmap(ring, SlotIndex(i));
  }
  // The rest comes from the pool.
  for (; !homeless.empty(); homeless.pop_back()) {
    plan.MapFresh(weights, SlotIndex(homeless.back()), Owner::kWeights);
  }
  for (; ring_size < to_ring; ++ring_size) {
    plan.MapFresh(ring, SlotIndex(ring_size), Owner::kRing);
  }
  for (uint32_t s = 0; s < slots; ++s) {
    if (from[s] != to[s] && to[s] >= 0) {
      plan.MapAlias(weights, SlotIndex(s), ring, SlotIndex(static_cast<uint32_t>(to[s])));
    }
  }
  return t;
}

Status WeightPager::Impl::CommitTransition(WeightTransition& t, WeightPagerStats* stats) {
  if (t.remap.empty()) return OkStatus();
  if (last_copy.valid()) t.remap.fence.Add(last_copy);
  WEIR_TRY(space.Commit(t.remap));
  for (const auto& [granule, owner] : t.owner_changes) space.pool().ChangeOwner(granule, owner);
  stats->granules_remapped += t.slots_changed;
  for (const WeightSlotRun& run : t.evicted) {
    TraceEmit(TraceType::kEvict, 0, weights.value, run.first, run.count);
  }
  return OkStatus();
}

Status WeightPager::Impl::Fill(const std::vector<WeightSlotRun>& runs) {
  if (runs.empty()) return OkStatus();
  Status status = FillOnce(runs);
  if (status.ok()) return status;
  // One run at a time: a copy that failed took all later ones of its stream with it.
  for (const WeightSlotRun& run : runs) {
    for (uint32_t attempt = 0; attempt < kAttempts; ++attempt) {
      status = ReplaceStream();
      if (status.ok()) status = FillOnce({run});
      if (status.ok()) break;
    }
    if (!status.ok()) break;
  }
  // M2: some of the copies may be queued, and the caller is about to unmap what they write.
  if (!status.ok()) (void)ReplaceStream();
  return status;
}

// Queues the fetches of |runs| together and waits for them.
Status WeightPager::Impl::FillOnce(const std::vector<WeightSlotRun>& runs) {
  if (!copy_stream.valid()) return DriverError("there is no copy stream");
  const TimeNs begin = driver.Now();
  for (const WeightSlotRun& run : runs) {
    WEIR_TRY(backing->Fetch(copy_stream, run.first * granule_bytes, run.count * granule_bytes,
                            SlotAddress(run.first)));
  }
  const EventId event = WEIR_TRY(driver.Record(copy_stream));
  WEIR_TRY(driver.Wait(event));
  last_copy = event;
  const TimeNs end = driver.Now();
  bool intact = true;
  for (const WeightSlotRun& run : runs) {
    TraceEmit(TraceType::kFill, static_cast<uint8_t>(backing->tier()), weights.value, run.first,
              run.count, run.count * granule_bytes, begin, end);
    if (options.verify_stripes) intact = intact && WEIR_TRY(SumsMatch(run.first, run.count));
  }
  if (!intact) return DataLoss("restored weights differ from the backing copy's checksums");
  return OkStatus();
}

Status WeightPager::Apply(const EvictionTarget& target) {
  Impl& m = *impl_;
  WEIR_TRY(m.CheckServing().WithContext("weights move between steps"));
  if (target == plan_.target()) return OkStatus();
  if (m.backing == nullptr && !target.empty()) {
    return BadState("weights without a backing copy cannot leave");
  }
  EvictionPlan next = WEIR_TRY(EvictionPlan::Make(layout_, m.granule_bytes, target));
  std::vector<int32_t> next_ring = RingOfSlots(next, m.ring_of_slot.size());
  if (next.chunks().empty() && plan_.chunks().empty()) {
    plan_ = std::move(next);
    return OkStatus();
  }
  if (m.armed(plan_)) WEIR_TRY(m.BringToRest());

  WeightTransition forward =
      m.MakeTransition(m.ring_of_slot, plan_.ring_granules(), next_ring, next.ring_granules());
  forward.remap.cause =
      next.freed_granules() >= plan_.freed_granules() ? RemapCause::kEvict : RemapCause::kRestore;
  Status status = m.CommitTransition(forward, &stats_);
  if (!status.ok()) {
    if (m.restart_pending) m.Restart(plan_, &stats_);
    return status;
  }
  status = m.Fill(forward.restored);
  if (!status.ok()) {
    Status undone;
    for (uint32_t attempt = 0; attempt < Impl::kAttempts; ++attempt) {
      WeightTransition back =
          m.MakeTransition(next_ring, next.ring_granules(), m.ring_of_slot, plan_.ring_granules());
      back.remap.cause = RemapCause::kEvict;
      undone = m.CommitTransition(back, &stats_);
      if (!undone.ok()) continue;
      undone = m.Fill(back.restored);
      break;
    }
    if (!undone.ok()) {
      m.state = Impl::State::kBroken;  // nothing may be computed with these bytes
      return BadState("weights are incomplete: " + status.ToString() +
                      "; going back failed too: " + undone.ToString());
    }
    m.Restart(plan_, &stats_);
    return status.WithContext("filling restored weights");
  }
  plan_ = std::move(next);
  m.ring_of_slot = std::move(next_ring);
  std::copy(plan_.chunk_of_gate().begin(), plan_.chunk_of_gate().end(), m.gate_table.begin());
  ++stats_.transitions;
  m.first_round = true;
  if (!m.armed(plan_)) m.restart_pending = false;
  m.Restart(plan_, &stats_);
  return OkStatus();
}

}  // namespace weir
