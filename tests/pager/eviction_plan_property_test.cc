// Random layouts and targets: the plan's structure, and the protocol executed in the abstract under
// random interleavings of copy and compute.
#include <map>
#include <set>

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "pager/eviction_plan.h"
#include "tests/pager/layouts.h"

namespace weir {
namespace {

constexpr uint64_t kG = 64;

struct Case {
  WeightLayout layout;
  EvictionTarget target;
  EvictionPlan plan;
  std::vector<uint32_t> granules_of_gate;  // asked for, of a plan between two borders
};

// A plan that could be made, or nothing to test for this seed.
std::optional<Case> MakeCase(uint64_t seed) {
  std::mt19937_64 rng(seed);
  Case c;
  c.layout = test::WithSomeLookup(test::RandomLayout(rng, kG), rng, kG);
  const uint32_t most = EvictionPlan::MaxGranulesPerLayer(c.layout, kG);
  c.target.placement = static_cast<Placement>(rng() % 3);
  c.target.granules_per_layer = static_cast<uint32_t>(rng() % (most + 1));
  c.target.layers = static_cast<uint32_t>(rng() % (c.layout.layers.size() + 1));
  c.target.ring_slots = static_cast<uint32_t>(2 + rng() % 3);
  // One slot is for whole layers only.
  if (c.target.placement == Placement::kLayer && rng() % 3 == 0) c.target.ring_slots = 1;
  auto plan = EvictionPlan::Make(c.layout, kG, c.target);
  if (!plan.ok()) return std::nullopt;
  c.plan = std::move(*plan);
  if (c.target.placement == Placement::kStripe && !c.target.empty() && rng() % 2 == 0) {
    c.granules_of_gate = c.plan.GranulesOfGate();
    const uint64_t kind = rng() % 3;  // the layers before one have moved; any stripes; any granules
    const uint64_t gate = rng() % c.granules_of_gate.size();
    for (size_t g = 0; g < c.granules_of_gate.size(); ++g) {
      uint32_t& n = c.granules_of_gate[g];
      if (kind == 0 && g < gate) n /= 2;
      if (kind == 1 && rng() % 2 == 0) n = 0;
      if (kind == 2) n = static_cast<uint32_t>(rng() % (n + 1));
    }
    c.plan = EvictionPlan::Between(c.layout, kG, c.target, c.granules_of_gate).value();
  }
  return c;
}

// Slots any byte of which |segment| reads.
std::pair<uint64_t, uint64_t> TouchedSlots(const WeightSegment& segment) {
  if (segment.bytes == 0) return {0, 0};
  return {segment.offset / kG, (segment.offset + segment.bytes - 1) / kG + 1};
}

// Every byte of |slot| belongs to segments of |layer|.
void CheckCovered(const std::vector<WeightSegment>& layer, uint64_t slot) {
  uint64_t covered = 0;
  for (const WeightSegment& s : layer) {
    const uint64_t lo = std::max(s.offset, slot * kG);
    const uint64_t hi = std::min(s.offset + s.bytes, (slot + 1) * kG);
    if (lo < hi) covered += hi - lo;
  }
  RC_ASSERT(covered == kG);
}

bool InLookup(const Case& c, uint64_t slot) {
  const WeightSegment& table = c.layout.lookup;
  return slot * kG >= table.offset && (slot + 1) * kG <= table.offset + table.bytes;
}

// In the backing copy for good, and nobody's to lend.
void CheckLookup(const Case& c) {
  const size_t slots = CeilDiv(c.layout.region_bytes, kG);
  const std::vector<SlotPlace> place = c.plan.PlaceOfSlots(slots);
  uint32_t in_place = 0;
  for (size_t s = 0; s < slots; ++s) {
    if (!InLookup(c, s)) continue;
    RC_ASSERT(place[s] == kInBackingCopy);
    ++in_place;
  }
  RC_ASSERT(EvictionPlan::GranulesAtHome(c.layout, kG) == slots - in_place);
  RC_ASSERT(c.plan.held_granules() == slots - in_place - c.plan.freed_granules());
  uint32_t home = 0;
  for (const SlotPlace p : place) home += p == kAtHome ? 1 : 0;
  RC_ASSERT(c.plan.held_granules() == home + c.plan.ring_granules());
}

// k slots a layer, none through the ring: the ones that a stripe of k would take.
void CheckInPlace(const Case& c) {
  RC_ASSERT(c.plan.chunks().empty());
  RC_ASSERT(c.plan.ring_granules() == 0U);
  for (const int32_t chunk : c.plan.chunk_of_gate()) RC_ASSERT(chunk == -1);
  const uint32_t k = c.target.granules_per_layer;
  RC_ASSERT(c.plan.evicted_granules() == k * c.layout.layers.size());
  RC_ASSERT(c.plan.freed_granules() == c.plan.evicted_granules());
  const size_t slots = CeilDiv(c.layout.region_bytes, kG);
  const std::vector<SlotPlace> place = c.plan.PlaceOfSlots(slots);
  std::vector<uint32_t> per_layer(c.layout.layers.size(), 0);
  for (uint32_t s = 0; s < slots; ++s) {
    RC_ASSERT(place[s] == kAtHome || place[s] == kInBackingCopy);
    if (place[s] == kAtHome || InLookup(c, s)) continue;
    for (size_t l = 0; l < c.layout.layers.size(); ++l) {
      for (const WeightSegment& segment : c.layout.layers[l]) {
        if (segment.offset > s * kG || segment.offset + segment.bytes < (s + 1) * kG) continue;
        ++per_layer[l];
      }
    }
  }
  for (const uint32_t n : per_layer) RC_ASSERT(n == k);
  EvictionTarget stripe = c.target;
  stripe.placement = Placement::kStripe;
  const auto streamed = EvictionPlan::Make(c.layout, kG, stripe);
  if (!streamed.ok()) return;  // too few layers for a ring
  const std::vector<SlotPlace> other = streamed->PlaceOfSlots(slots);
  for (uint32_t s = 0; s < slots; ++s) {
    RC_ASSERT(InLookup(c, s) || InRing(other[s]) == (place[s] != kAtHome));
  }
}

// As many of each stripe as asked for, each where it is when the whole target is away.
void CheckBetween(const Case& c) {
  RC_ASSERT(c.plan.GranulesOfGate() == c.granules_of_gate);
  const auto even = EvictionPlan::Make(c.layout, kG, c.target);
  RC_ASSERT(c.plan.even() == (even->GranulesOfGate() == c.granules_of_gate));
  const size_t slots = CeilDiv(c.layout.region_bytes, kG);
  const std::vector<SlotPlace> all = even->PlaceOfSlots(slots);
  const std::vector<SlotPlace> some = c.plan.PlaceOfSlots(slots);
  const std::vector<bool> granules = c.plan.RingGranules(slots);
  std::set<SlotPlace> used;
  for (size_t s = 0; s < slots; ++s) {
    RC_ASSERT(some[s] == kAtHome || some[s] == all[s]);
    if (InRing(some[s])) used.insert(some[s]);
  }
  for (size_t i = 0; i < slots; ++i) {
    RC_ASSERT(granules[i] == used.contains(static_cast<SlotPlace>(i)));
  }
  RC_ASSERT(c.plan.ring_granules() == used.size());
}

void CheckStructure(const Case& c) {
  CheckLookup(c);
  if (c.target.placement == Placement::kInPlace) return CheckInPlace(c);
  if (!c.granules_of_gate.empty()) CheckBetween(c);
  std::set<uint32_t> slots;
  std::set<uint32_t> ring;
  std::map<uint32_t, uint32_t> per_layer;
  int32_t last_gate = -1;
  const uint32_t segments = c.layout.segments_per_layer();
  for (size_t i = 0; i < c.plan.chunks().size(); ++i) {
    const StripeChunk& chunk = c.plan.chunks()[i];
    RC_ASSERT(static_cast<int32_t>(chunk.gate) > last_gate);
    last_gate = static_cast<int32_t>(chunk.gate);
    RC_ASSERT(c.plan.chunk_of_gate()[chunk.gate] == static_cast<int32_t>(i));
    RC_ASSERT(chunk.count > 0U);
    const auto& layer = c.layout.layers[chunk.gate / segments];
    for (uint32_t k = 0; k < chunk.count; ++k) {
      RC_ASSERT(slots.insert(chunk.first.value + k).second);
      if (c.plan.even()) RC_ASSERT(chunk.RingGranule(k) < c.plan.ring_granules());
      CheckCovered(layer, chunk.first.value + k);
    }
    per_layer[chunk.gate / segments] += chunk.count;
  }
  RC_ASSERT(slots.size() == c.plan.evicted_granules());
  if (c.target.empty()) return;
  RC_ASSERT(c.plan.freed_granules() == c.plan.evicted_granules() - c.plan.ring_granules());
  if (!c.plan.even()) return;
  RC_ASSERT(c.plan.freed_granules() > 0U);
  if (c.target.placement == Placement::kStripe) {
    RC_ASSERT(per_layer.size() == c.layout.layers.size());
    for (const auto& [layer, n] : per_layer) RC_ASSERT(n == c.target.granules_per_layer);
  } else {
    RC_ASSERT(per_layer.size() == c.target.layers);
  }
}

// The abstract machine: one copy engine, one compute, two counters. A copy or a read takes two
// turns, so that they can overlap in every way the protocol allows.
class Machine {
 public:
  Machine(const Case& c, uint64_t seed) : c_(c), rng_(seed) {
    n_ = c.plan.chunks().size();
    consumed_ = n_;  // first pass: numbers begin at n
    copied_ = n_;
    ring_.assign(CeilDiv(c.layout.region_bytes, kG), kGarbage);
    for (const StripeChunk& chunk : c.plan.chunks()) {
      for (uint32_t k = 0; k < chunk.count; ++k) {
        ring_of_slot_[chunk.first.value + k] = chunk.RingGranule(k);
      }
    }
  }

  void Run(uint64_t passes) {
    const uint64_t gates = c_.layout.gates();
    for (uint64_t pass = 0; pass < passes; ++pass) {
      const uint64_t base = n_ * (pass + 1);
      queued_ = base + n_ + c_.plan.prefix_chunks();
      for (uint64_t gate = 0; gate < gates; ++gate) {
        const int32_t chunk = c_.plan.chunk_of_gate()[gate];
        while (chunk >= 0 && copied_ < base + static_cast<uint64_t>(chunk) + 1) {
          RC_ASSERT(CopyTurn());  // otherwise: deadlock
        }
        Read(gate);
        while (rng_() % 2 == 0 && CopyTurn()) {
        }
        Read(gate);
        if (chunk >= 0) consumed_ = base + static_cast<uint64_t>(chunk) + 1;
        while (rng_() % 3 == 0 && CopyTurn()) {
        }
      }
    }
    // No further step: the copies come to rest by themselves.
    while (CopyTurn()) {
    }
    RC_ASSERT(copied_ == queued_);
  }

 private:
  static constexpr int64_t kGarbage = -1;

  // One half of a copy; false when there is nothing that may be copied now.
  bool CopyTurn() {
    if (copied_ >= queued_) return false;
    const uint64_t index = copied_ % n_;
    const StripeChunk& chunk = c_.plan.chunks()[index];
    if (!copying_) {
      const uint64_t required =
          copied_ - index + chunk.previous_user + 1 - (chunk.previous_pass ? n_ : 0);
      if (consumed_ < required) return false;
      for (uint32_t k = 0; k < chunk.count; ++k) ring_[chunk.RingGranule(k)] = kGarbage;
      copying_ = true;
      return true;
    }
    for (uint32_t k = 0; k < chunk.count; ++k) {
      ring_[chunk.RingGranule(k)] = chunk.first.value + k;
    }
    copying_ = false;
    ++copied_;
    return true;
  }

  void Read(uint64_t gate) {
    const uint32_t segments = c_.layout.segments_per_layer();
    const auto [first, end] = TouchedSlots(c_.layout.layers[gate / segments][gate % segments]);
    for (uint64_t slot = first; slot < end; ++slot) {
      const auto it = ring_of_slot_.find(slot);
      if (it != ring_of_slot_.end()) RC_ASSERT(ring_[it->second] == static_cast<int64_t>(slot));
    }
  }

  const Case& c_;
  std::mt19937_64 rng_;
  uint64_t n_ = 0;
  uint64_t consumed_ = 0;
  uint64_t copied_ = 0;
  uint64_t queued_ = 0;
  bool copying_ = false;
  std::vector<int64_t> ring_;
  std::map<uint64_t, uint32_t> ring_of_slot_;
};

TEST(EvictionPlanPropertyTest, NoSlotTwiceAndTheCountsAddUp) {
  EXPECT_TRUE(rc::check("structure", [](uint64_t seed) {
    const auto c = MakeCase(seed);
    RC_PRE(c.has_value());
    CheckStructure(*c);
  }));
}

TEST(EvictionPlanPropertyTest, NothingIsOverwrittenBeforeItIsReadNorReadBeforeItArrives) {
  EXPECT_TRUE(rc::check("protocol", [](uint64_t seed) {
    const auto c = MakeCase(seed);
    RC_PRE(c.has_value() && !c->plan.chunks().empty());
    Machine(*c, seed + 1).Run(4);
  }));
}

// A fixed sweep besides: the same cases on every run.
TEST(EvictionPlanPropertyTest, TenThousandFixedCasesKeepTheProtocol) {
  uint64_t made = 0, streamed = 0;
  for (uint64_t seed = 0; seed < 10'000; ++seed) {
    const auto c = MakeCase(seed);
    if (!c || c->target.empty()) continue;
    ++made;
    try {
      CheckStructure(*c);
      if (!c->plan.chunks().empty()) Machine(*c, seed).Run(3);
      if (!c->plan.chunks().empty()) ++streamed;
    } catch (const rc::detail::CaseResult& failed) {
      FAIL() << "seed " << seed << ": " << failed.description << " (" << c->plan.ToString() << ")";
    }
  }
  EXPECT_GT(streamed, 1'500U);
  EXPECT_GT(made - streamed, 1'500U);
}

}  // namespace
}  // namespace weir
