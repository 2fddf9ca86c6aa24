// Loading, sealing, and the check of everything against everything.
#include <algorithm>
#include <cstring>
#include <set>

#include "pager/weight_pager_impl.h"

namespace weir {

void Cover(std::map<uint64_t, uint64_t>* written, uint64_t begin, uint64_t end) {
  auto it = written->upper_bound(begin);
  if (it != written->begin() && std::prev(it)->second >= begin) {
    --it;
    begin = it->first;
    end = std::max(end, it->second);
    it = written->erase(it);
  }
  while (it != written->end() && it->first <= end) {
    end = std::max(end, it->second);
    it = written->erase(it);
  }
  written->emplace(begin, end);
}

// The parts of [offset, end) that have a backing copy.
template <typename Fn>
Status WeightPager::Impl::ForCovered(uint64_t offset, uint64_t end, Fn fn) const {
  if (backing == nullptr) return OkStatus();
  for (const WeightSegment& s : covered) {
    const uint64_t lo = std::max(offset, s.offset);
    const uint64_t hi = std::min(end, s.offset + s.bytes);
    if (lo < hi) WEIR_TRY(fn(lo, hi));
  }
  return OkStatus();
}

template <typename Fn>
Status WeightPager::Impl::StoreCovered(uint64_t offset, uint64_t end, Fn store) {
  if (!refused.ok()) return OkStatus();
  return OrDoWithout(ForCovered(offset, end, store));
}

Status WeightPager::Impl::OrDoWithout(Status stored) {
  const auto away = [](SlotPlace place) { return place != kAtHome; };
  if (stored.ok() || !options.on_backing_refused || std::ranges::any_of(place_of_slot, away)) {
    return stored;
  }
  refused = backing->refusal();
  return refused.ok() ? stored : OkStatus();
}

// Nothing was stored yet by any stream, or all of it has ended.
void WeightPager::Impl::LetGoOfBacking() {
  if (copy_stream.valid()) {
    (void)driver.DestroyStream(copy_stream);
    backing->StreamGone(copy_stream);
    copy_stream = StreamId();
  }
  backing = nullptr;
  options.on_backing_refused(refused);
}

// What is away has its ring slot overwritten by the first step anyway, or is the backing copy.
template <typename Fn>
Status WeightPager::Impl::ForResident(uint64_t offset, uint64_t end, Fn fn) const {
  for (uint64_t at = offset; at < end;) {
    const bool resident = place_of_slot[at / granule_bytes] == kAtHome;
    uint64_t stop = std::min(end, AlignDown(at, granule_bytes) + granule_bytes);
    while (stop < end && (place_of_slot[stop / granule_bytes] == kAtHome) == resident) {
      stop = std::min(end, stop + granule_bytes);
    }
    if (resident) WEIR_TRY(fn(at, stop));
    at = stop;
  }
  return OkStatus();
}

bool WeightPager::Impl::MayLeave(uint32_t slot) const {
  const uint64_t begin = uint64_t{slot} * granule_bytes;
  const auto after =
      std::upper_bound(covered.begin(), covered.end(), begin,
                       [](uint64_t at, const WeightSegment& s) { return at < s.offset; });
  if (after == covered.begin()) return false;
  const WeightSegment& s = *std::prev(after);
  return begin + granule_bytes <= s.offset + s.bytes;
}

template <typename Fn>
Status WeightPager::Impl::ForRefilling(uint64_t offset, uint64_t end, Fn write) {
  for (const WeightRange& range : refilling) {
    const uint64_t lo = std::max(offset, range.offset);
    const uint64_t hi = std::min(end, range.offset + range.bytes);
    if (lo >= hi) continue;
    WEIR_TRY(write(lo, hi));
    Cover(&written_again, lo, hi);
  }
  return OkStatus();
}

Status WeightPager::Write(uint64_t offset, std::span<const std::byte> data) {
  Impl& m = *impl_;
  const bool again = m.state == Impl::State::kRefilling;
  if (m.state != Impl::State::kLoading && !again) return BadState("the weights are sealed");
  if (offset > layout_.region_bytes || data.size() > layout_.region_bytes - offset) {
    return InvalidArgument(std::to_string(data.size()) + " bytes at " + std::to_string(offset) +
                           " are outside the weights of " + std::to_string(layout_.region_bytes));
  }
  if (data.empty()) return OkStatus();
  const uint64_t end = offset + data.size();
  const auto part = [&](uint64_t lo, uint64_t hi) { return data.subspan(lo - offset, hi - lo); };
  if (again) {
    return m.ForRefilling(offset, end, [&](uint64_t lo, uint64_t hi) {
      return m.driver.Write(base() + lo, part(lo, hi));
    });
  }
  WEIR_TRY(m.StoreCovered(
      offset, end, [&](uint64_t lo, uint64_t hi) { return m.backing->Store(lo, part(lo, hi)); }));
  WEIR_TRY(m.ForResident(offset, end, [&](uint64_t lo, uint64_t hi) {
    return m.driver.Write(base() + lo, part(lo, hi));
  }));
  Cover(&m.written, offset, end);
  return OkStatus();
}

Status WeightPager::WriteFrom(StreamId stream, uint64_t offset, uint64_t bytes, VirtAddr src) {
  Impl& m = *impl_;
  const bool again = m.state == Impl::State::kRefilling;
  if (m.state != Impl::State::kLoading && !again) return BadState("the weights are sealed");
  WEIR_CHECK(offset <= layout_.region_bytes && bytes <= layout_.region_bytes - offset,
             "made-up weights lie inside the weights");
  const uint64_t end = offset + bytes;
  if (again) {
    return m.ForRefilling(offset, end, [&](uint64_t lo, uint64_t hi) {
      return m.driver.Copy(stream, base() + lo, src + (lo - offset), hi - lo);
    });
  }
  WEIR_TRY(m.StoreCovered(offset, end, [&](uint64_t lo, uint64_t hi) {
    return m.backing->StoreFrom(stream, lo, hi - lo, src + (lo - offset));
  }));
  WEIR_TRY(m.ForResident(offset, end, [&](uint64_t lo, uint64_t hi) {
    return m.driver.Copy(stream, base() + lo, src + (lo - offset), hi - lo);
  }));
  Cover(&m.written, offset, end);
  return OkStatus();
}

Status WeightPager::Seal() {
  Impl& m = *impl_;
  if (m.state != Impl::State::kLoading) return BadState("the weights are sealed already");
  const auto written = m.written;  // Write adds to the original
  if (m.backing != nullptr) {
    // Padding between tensors was never written: make it the same here and there.
    const std::vector<std::byte> zeros(kMiB);
    for (const WeightSegment& s : m.covered) {
      WEIR_TRY(ForGaps(written, s.offset, s.offset + s.bytes, [&](uint64_t begin, uint64_t end) {
        Status status;
        for (; begin < end && status.ok(); begin += std::min<uint64_t>(zeros.size(), end - begin)) {
          status =
              Write(begin, std::span(zeros).first(std::min<uint64_t>(zeros.size(), end - begin)));
        }
        return status;
      }));
    }
    if (m.refused.ok()) WEIR_TRY(m.OrDoWithout(m.backing->Seal()));
    if (!m.refused.ok()) {
      m.LetGoOfBacking();
    } else if (m.options.verify_stripes) {
      WEIR_TRY(m.ComputeSums());
    }
  }
  m.written = written;
  m.state = Impl::State::kServing;
  m.Restart(&stats_);
  return OkStatus();
}

Status WeightPager::CheckIntegrity() {
  Impl& m = *impl_;
  const Region& weights = m.space.region(m.weights);
  const auto broken = [](std::string what) { return BadState("weight pager: " + std::move(what)); };
  const EvictionPlan& cover = *m.cover;
  const std::vector<SlotPlace> covered = cover.PlaceOfSlots(weights.slots.size());
  for (uint32_t s = 0; s < weights.slots.size(); ++s) {
    if (m.place_of_slot[s] != kAtHome && m.place_of_slot[s] != covered[s]) {
      return broken("slot " + std::to_string(s) + " is away, and the plan knows nothing of it");
    }
  }
  const bool whole = m.place_of_slot == covered;
  if (m.settled && (!whole || cover.target() != plan_.target())) {
    return broken("the plan in force is not what is away");
  }
  std::set<GranuleId> homes;
  std::vector<uint32_t> users(m.ring.valid() ? m.space.region(m.ring).slots.size() : 0, 0);
  for (uint32_t s = 0; s < weights.slots.size(); ++s) {
    const std::string name = "slot " + std::to_string(s);
    if (!weights.slots[s].valid()) return broken(name + " is unmapped");
    const bool foreign = AddressSpace::IsForeign(weights.slots[s]);
    if (foreign != (m.place_of_slot[s] == kInBackingCopy)) {
      return broken(name + (foreign ? " shows" : " does not show") + " the backing copy");
    }
    if (foreign) {
      const ForeignGranule& copy = m.space.foreign(weights.slots[s]);
      if (copy.number != s || copy.alloc != WEIR_TRY(m.backing->PieceAt(s * m.granule_bytes))) {
        return broken(name + " shows the backing copy of slot " + std::to_string(copy.number));
      }
      continue;
    }
    const Granule& granule = m.space.pool().granule(weights.slots[s]);
    if (m.place_of_slot[s] == kAtHome) {
      if (granule.owner != Owner::kWeights) return broken(name + " belongs to somebody else");
      if (granule.map_count != 1) return broken(name + " is at home but mapped elsewhere too");
      if (!homes.insert(weights.slots[s]).second) return broken(name + " shares its granule");
      continue;
    }
    const auto i = static_cast<uint32_t>(m.place_of_slot[s]);
    if (weights.slots[s] != m.space.region(m.ring).slots[i]) {
      return broken(name + " is not an alias of ring granule " + std::to_string(i));
    }
    if (granule.owner != Owner::kRing) return broken("ring granule is not the ring's");
    ++users[i];
  }
  if (m.ring.valid()) {
    const Region& ring = m.space.region(m.ring);
    std::vector<bool> expected = cover.RingGranules(users.size());
    for (size_t i = 0; i < users.size() && !whole; ++i) expected[i] = users[i] > 0;
    if (ring.mapped != static_cast<uint32_t>(std::count(expected.begin(), expected.end(), true))) {
      return broken("ring size differs from the plan");
    }
    for (uint32_t i = 0; i < users.size(); ++i) {
      if (!expected[i]) continue;
      if (!ring.slots[i].valid())
        return broken("ring granule " + std::to_string(i) + " is missing");
      if (m.space.pool().granule(ring.slots[i]).map_count != users[i] + 1) {
        return broken("ring granule " + std::to_string(i) + " is mapped where it should not be");
      }
    }
  }
  if (m.backing == nullptr || m.state == Impl::State::kLoading) return OkStatus();
  std::vector<std::byte> copy(m.granule_bytes);
  std::vector<std::byte> here(m.granule_bytes);
  for (uint32_t s = 0; s < weights.slots.size(); ++s) {
    // What came home in the pass under way may not have arrived.
    if (InRing(covered[s]) || !m.MayLeave(s)) continue;
    if (!m.sums.empty()) {
      if (WEIR_TRY(m.SumOfSlot(s)) == m.sums[s]) continue;
      return DataLoss("slot " + std::to_string(s) + " differs from its checksum");
    }
    WEIR_TRY(m.backing->Load(s * m.granule_bytes, copy));
    WEIR_TRY(m.driver.Read(m.SlotAddress(s), here));
    if (copy != here) {
      return DataLoss("slot " + std::to_string(s) + " differs from its backing copy");
    }
  }
  return OkStatus();
}

}  // namespace weir
