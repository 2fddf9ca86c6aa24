// Moving the border at rest: from one eviction plan to another, whole or not at all. Also what a
// move behind closed gates (weight_pager_transition.cc) shares with it.
//
// Life of a transition:
//   1. The copy stream comes to rest (it does by itself: all it waits for is in steps that ended).
//   2. The difference of the two plans becomes one RemapPlan. A granule that leaves home goes into
//      a growing ring, and one that leaves a shrinking ring goes home, without passing through the
//      pool: so evicting works with an empty pool. Slots that are read in place are mapped onto
//      the backing copy; no granule goes there or comes from there.
//   3. Commit: all or nothing. Then owners change; this cannot fail.
//   4. Slots that came home are filled from the backing copy. If that fails, the opposite
//      transition is committed.
//   5. A fresh pass begins: gate table, counters, prefix.
#include <algorithm>

#include "pager/weight_pager_impl.h"
#include "vmm/trace.h"

namespace weir {

namespace {

void AppendSlot(std::vector<WeightSlotRun>* runs, uint32_t slot) {
  if (!runs->empty() && runs->back().first + runs->back().count == slot) {
    ++runs->back().count;
  } else {
    runs->push_back({slot, 1});
  }
}

}  // namespace

std::vector<bool> WeightPager::Impl::RingOf(const EvictionPlan& plan) const {
  return plan.RingGranules(ring.valid() ? space.region(ring).slots.size() : 0);
}

Status WeightPager::Impl::MapBackingCopy(RemapPlan* plan, uint32_t slot) const {
  plan->MapForeign(weights, SlotIndex(slot),
                   {.tier = backing->tier(),
                    .alloc = WEIR_TRY(backing->PieceAt(slot * granule_bytes)),
                    .number = slot,
                    .owner = Owner::kWeights});
  return OkStatus();
}

Result<WeightTransition> WeightPager::Impl::MakeTransition(
    const std::vector<SlotPlace>& from, const std::vector<SlotPlace>& to,
    const WeightSlotRun& slots, const std::vector<bool>& ring_after) const {
  WeightTransition t;
  RemapPlan& plan = t.remap;
  const Region& home = space.region(weights);
  const Region& spare = space.region(ring);
  const uint32_t first = slots.first;
  const uint32_t end = slots.first + slots.count;
  std::vector<bool> stays(slots.count, false);     // keeps its granule, which changes owner
  std::vector<bool> moved_in(slots.count, false);  // has its granule already
  // By ring slot that comes or goes: the weight slot whose granule it takes, or leaves behind.
  std::vector<int32_t> heir(ring_after.size(), -1);
  for (uint32_t s = first; s < end; ++s) {
    if (from[s] == to[s]) continue;
    ++t.slots_changed;
    if (from[s] == kAtHome) AppendSlot(&t.evicted, s);
    if (to[s] == kAtHome) AppendSlot(&t.restored, s);
    const SlotPlace i = from[s] == kAtHome ? to[s] : to[s] == kAtHome ? from[s] : kAtHome;
    if (InRing(i) &&
        spare.slots[static_cast<size_t>(i)].valid() != ring_after[static_cast<size_t>(i)])
      heir[static_cast<size_t>(i)] = static_cast<int32_t>(s);
  }
  std::vector<uint32_t> coming, going;  // ring slots without such a weight slot
  for (uint32_t i = 0; i < ring_after.size(); ++i) {
    if (spare.slots[i].valid() == ring_after[i]) continue;
    if (heir[i] >= 0) {
      stays[static_cast<size_t>(heir[i]) - first] = true;
    } else {
      (ring_after[i] ? coming : going).push_back(i);
    }
  }
  std::vector<uint32_t> leaving, homeless;
  for (uint32_t s = end; s-- > first;) {
    if (from[s] == to[s] || stays[s - first]) continue;
    if (from[s] == kAtHome) leaving.push_back(s);
    if (to[s] == kAtHome) homeless.push_back(s);
  }

  // A growing ring takes granules that leave home, while they are still mapped there.
  const auto take = [&](uint32_t i, uint32_t s) {
    plan.MapAlias(ring, SlotIndex(i), weights, SlotIndex(s));
    t.owner_changes.emplace_back(home.slots[s], Owner::kRing);
  };
  for (uint32_t i = 0; i < ring_after.size(); ++i) {
    if (heir[i] >= 0 && ring_after[i]) take(i, static_cast<uint32_t>(heir[i]));
  }
  for (; !coming.empty() && !leaving.empty(); coming.pop_back(), leaving.pop_back()) {
    take(coming.back(), leaving.back());
  }
  // What is beyond a shrinking ring's goes home from where others leave, so that layers change
  // places with an empty pool, too.
  const size_t from_ring = std::min(homeless.size(), going.size());
  while (homeless.size() > from_ring && !leaving.empty()) {
    plan.Unmap(weights, SlotIndex(homeless.back()));
    plan.MapAlias(weights, SlotIndex(homeless.back()), weights, SlotIndex(leaving.back()));
    moved_in[homeless.back() - first] = true;
    homeless.pop_back();
    leaving.pop_back();
  }
  for (uint32_t s = first; s < end; ++s) {
    if (from[s] != to[s] && !stays[s - first] && !moved_in[s - first]) {
      plan.Unmap(weights, SlotIndex(s));
    }
  }
  // A shrinking ring sends granules home.
  for (uint32_t i = 0; i < ring_after.size(); ++i) {
    if (heir[i] < 0 || ring_after[i]) continue;
    t.owner_changes.emplace_back(spare.slots[i], Owner::kWeights);
    plan.Unmap(ring, SlotIndex(i));
  }
  for (const uint32_t i : going) {
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
  for (; !coming.empty(); coming.pop_back()) {
    plan.MapFresh(ring, SlotIndex(coming.back()), Owner::kRing);
  }
  for (uint32_t s = first; s < end; ++s) {
    if (from[s] == to[s] || stays[s - first]) continue;
    if (InRing(to[s])) {
      plan.MapAlias(weights, SlotIndex(s), ring, SlotIndex(static_cast<uint32_t>(to[s])));
    } else if (to[s] == kInBackingCopy) {
      WEIR_TRY(MapBackingCopy(&plan, s));
    }
  }
  return t;
}

Status WeightPager::Impl::CommitTransition(WeightTransition& t, WeightPagerStats* stats) {
  if (t.remap.empty()) return OkStatus();
  const TimeNs begin = driver.Now();
  WEIR_TRY(space.Commit(t.remap));
  for (const auto& [granule, owner] : t.owner_changes) space.pool().ChangeOwner(granule, owner);
  stats->granules_remapped += t.slots_changed;
  stats->remap_ns += driver.Now() - begin;
  for (const WeightSlotRun& run : t.evicted) {
    TraceEmit(TraceType::kEvict, 0, weights.value, run.first, run.count);
  }
  return OkStatus();
}

Status WeightPager::Impl::MoveAllTo(const EvictionPlan& plan, RemapCause cause,
                                    std::vector<WeightSlotRun>* restored, WeightPagerStats* stats) {
  std::vector<SlotPlace> to = plan.PlaceOfSlots(place_of_slot.size());
  const WeightSlotRun all{.first = 0, .count = static_cast<uint32_t>(to.size())};
  WeightTransition t = WEIR_TRY(MakeTransition(place_of_slot, to, all, RingOf(plan)));
  t.remap.cause = cause;
  if (last_copy.valid()) t.remap.fence.Add(last_copy);
  const uint64_t before_ns = stats->remap_ns;
  WEIR_TRY(CommitTransition(t, stats));
  if (t.slots_changed > 0) {
    remap_cost.ObserveAtRest(t.slots_changed, stats->remap_ns - before_ns);
  }
  place_of_slot = std::move(to);
  restored->insert(restored->end(), t.restored.begin(), t.restored.end());
  return OkStatus();
}

std::vector<WeightSlotRun> WeightPager::Impl::Unfilled(const EvictionPlan& plan) const {
  const std::vector<SlotPlace> copied = cover->PlaceOfSlots(place_of_slot.size());
  const std::vector<SlotPlace> away = plan.PlaceOfSlots(place_of_slot.size());
  std::vector<WeightSlotRun> runs;
  for (uint32_t s = 0; s < place_of_slot.size(); ++s) {
    if (place_of_slot[s] == kAtHome && InRing(copied[s]) && away[s] == kAtHome) {
      AppendSlot(&runs, s);
    }
  }
  return runs;
}

Status WeightPager::Impl::Fill(const std::vector<WeightSlotRun>& runs, WeightPagerStats* stats) {
  if (runs.empty()) return OkStatus();
  Status status = FillOnce(runs);
  if (status.ok()) return status;
  // One run at a time: a copy that failed took all later ones of its stream with it.
  std::vector<WeightSlotRun> unread;
  for (const WeightSlotRun& run : runs) {
    // What is read anew comes in one go: no need to try long for each of the rest.
    Status alone = unread.empty() ? FillAlone(run) : FillThroughHost(run);
    if (alone.ok()) continue;
    status = std::move(alone);
    unread.push_back(run);
    if (!source) break;
  }
  // M2: some of the copies may be queued, and others are about to write there, or to unmap it.
  if (!unread.empty()) (void)ReplaceStream();
  if (unread.empty()) return OkStatus();
  const Status anew = FillFromSource(unread, stats);
  if (anew.ok() || !source) return anew.ok() ? anew : status;
  return {status.code(), status.message() + "; reading them anew: " + anew.ToString()};
}

Status WeightPager::Impl::FillAlone(const WeightSlotRun& run) {
  Status status;
  for (uint32_t attempt = 0; attempt < kAttempts; ++attempt) {
    status = ReplaceStream();
    if (status.ok()) status = FillOnce({run});
    if (status.ok()) return status;
  }
  // No stream carries it. What the host can still read saves the weights, however slowly.
  (void)ReplaceStream();
  return FillThroughHost(run).ok() ? OkStatus() : status;
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

Status WeightPager::Impl::FillThroughHost(const WeightSlotRun& run) {
  const TimeNs begin = driver.Now();
  std::vector<std::byte> bytes(granule_bytes);
  for (uint32_t s = run.first; s < run.first + run.count; ++s) {
    WEIR_TRY(backing->Load(s * granule_bytes, bytes));
    WEIR_TRY(driver.Write(SlotAddress(s), bytes));
  }
  TraceEmit(TraceType::kFill, static_cast<uint8_t>(backing->tier()), weights.value, run.first,
            run.count, run.count * granule_bytes, begin, driver.Now());
  if (options.verify_stripes && !WEIR_TRY(SumsMatch(run.first, run.count))) {
    return DataLoss("restored weights differ from the backing copy's checksums");
  }
  return OkStatus();
}

Status WeightPager::Apply(const EvictionTarget& target) {
  Impl& m = *impl_;
  WEIR_TRY(m.CheckServing().WithContext("weights move between steps"));
  m.heading.reset();
  m.homecoming = {};
  if (m.backing == nullptr && !target.empty()) {
    return BadState("weights without a backing copy cannot leave");
  }
  if (!target.empty() && target.placement == Placement::kInPlace) WEIR_TRY(CanReadInPlace());
  EvictionPlan next = WEIR_TRY(EvictionPlan::Make(layout_, m.granule_bytes, target));
  if (target == plan_.target() && m.settled) return OkStatus();
  if (target.empty() && m.cover->target().empty()) {
    plan_ = std::move(next);
    m.cover = std::make_shared<const EvictionPlan>(plan_);
    return OkStatus();
  }
  if (m.armed(*m.cover)) WEIR_TRY(m.BringToRest());

  std::vector<WeightSlotRun> restored = m.Unfilled(next);
  const RemapCause cause =
      next.freed_granules() >= plan_.freed_granules() ? RemapCause::kEvict : RemapCause::kRestore;
  Status status = m.MoveAllTo(next, cause, &restored, &stats_);
  if (!status.ok()) {
    if (m.restart_pending) m.Restart(&stats_);
    return status;
  }
  status = m.Fill(restored, &stats_);
  if (!status.ok()) {
    Status undone;
    for (uint32_t attempt = 0; attempt < Impl::kAttempts; ++attempt) {
      std::vector<WeightSlotRun> back;
      undone = m.MoveAllTo(*m.cover, RemapCause::kEvict, &back, &stats_);
      if (!undone.ok()) continue;
      undone = m.Fill(back, &stats_);
      break;
    }
    if (!undone.ok()) {
      m.state = Impl::State::kBroken;  // nothing may be computed with these bytes
      return BadState("weights are incomplete: " + status.ToString() +
                      "; going back failed too: " + undone.ToString());
    }
    plan_ = *m.cover;
    m.settled = plan_.even();
    m.Restart(&stats_);
    return status.WithContext("filling restored weights");
  }
  plan_ = std::move(next);
  m.cover = std::make_shared<const EvictionPlan>(plan_);
  m.settled = true;
  ++stats_.transitions;
  m.first_round = true;
  m.Restart(&stats_);
  return OkStatus();
}

}  // namespace weir
