// Weights that are read in place: their slots show the backing copy itself.
#include <map>

#include "tests/pager/pager_world.h"
#include "vmm/trace.h"
#include "vmm/trace_audit.h"

namespace weir {
namespace {

using test::Backing;
using test::CopyFault;
using test::DriverKind;
using test::kGranule;
using test::RegularLayout;
using test::World;

class WeightPagerInPlaceTest : public testing::TestWithParam<DriverKind> {
 protected:
  test::WorldOptions Options() {
    return {.driver = GetParam(),
            .backing = Backing::kHost,
            .layout = RegularLayout(8, {57'344, 86'016}, 3000, 500)};
  }
};
INSTANTIATE_TEST_SUITE_P(Drivers, WeightPagerInPlaceTest,
                         testing::Values(DriverKind::kHost, DriverKind::kSim),
                         [](const auto& param) { return test::KindName(param.param); });

constexpr EvictionTarget kTarget{.placement = Placement::kInPlace, .granules_per_layer = 5};

// The first slot that is read in place.
uint32_t SomeSlot(const World& w) {
  const std::vector<GranuleId>& slots = w.space->region(w.pager->region()).slots;
  const auto it = std::find_if(slots.begin(), slots.end(), AddressSpace::IsForeign);
  EXPECT_NE(it, slots.end());
  return static_cast<uint32_t>(it - slots.begin());
}

TEST_P(WeightPagerInPlaceTest, FreesAllOfItAndAStepMakesNoDriverCall) {
  World w(Options());
  ASSERT_EQ(w.pool->Available(), 0U);
  const Status applied = w.pager->Apply(kTarget);
  ASSERT_TRUE(applied.ok()) << applied.ToString();
  EXPECT_EQ(w.pager->plan().evicted_granules(), 40U);
  EXPECT_EQ(w.pool->Available(), 40U);  // no ring
  w.CheckAll();
  ASSERT_TRUE(w.Step().ok());  // every byte compared
  const uint64_t calls = w.driver.calls;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(w.pager->BeginStep().ok());
    for (uint32_t g = 0; g < w.pager->layout().gates(); ++g) {
      ASSERT_TRUE(w.pager->Arrive(g).ok());
      w.pager->Depart(g);
    }
    ASSERT_TRUE(w.pager->EndStep().ok());
  }
  EXPECT_EQ(w.driver.calls, calls);
  EXPECT_EQ(w.pager->stats().gate_arrivals, 0U);
  EXPECT_EQ(w.pager->stats().bytes_copied, 0U);
  EXPECT_EQ(w.pager->stats().granules_remapped, 40U);
  w.CheckAll();
}

// The only copy there is: a kernel that writes to weights fails instead of spoiling it.
TEST_P(WeightPagerInPlaceTest, TheBackingCopyCannotBeWrittenThroughTheWeights) {
  World w(Options());
  ASSERT_TRUE(w.pager->Apply(kTarget).ok());
  const VirtAddr slot = w.base + SomeSlot(w) * kGranule;
  const std::vector<std::byte> junk(64, std::byte{1});
  EXPECT_EQ(w.driver.Write(slot, junk).code(), StatusCode::kInvalidArgument);
  ASSERT_TRUE(w.pager->Apply({}).ok());
  EXPECT_TRUE(w.BytesAre(0, w.bytes.size()));
  std::vector<std::byte> same(64);
  ASSERT_TRUE(w.driver.Read(slot, same).ok());
  EXPECT_TRUE(w.driver.Write(slot, same).ok()) << "a granule of its own again";
}

TEST_P(WeightPagerInPlaceTest, FromEveryPlacementToEveryOther) {
  const std::vector<EvictionTarget> targets = {
      {},
      kTarget,
      {.placement = Placement::kInPlace, .granules_per_layer = 2},
      {.granules_per_layer = 5, .ring_slots = 2},
      {.granules_per_layer = 3, .ring_slots = 3},
      {.placement = Placement::kLayer, .layers = 5, .ring_slots = 2},
      {.placement = Placement::kLayer, .layers = 3, .ring_slots = 1}};
  World w(Options());
  for (const EvictionTarget& from : targets) {
    for (const EvictionTarget& to : targets) {
      for (const EvictionTarget& target : {from, to}) {
        const Status applied = w.pager->Apply(target);
        ASSERT_TRUE(applied.ok()) << applied.ToString();
        w.CheckAll();
        for (int i = 0; i < 2; ++i) {
          const Status step = w.Step();
          ASSERT_TRUE(step.ok()) << w.pager->plan().ToString() << ": " << step.ToString();
        }
      }
    }
  }
  ASSERT_TRUE(w.pager->Apply({}).ok());
  EXPECT_TRUE(w.BytesAre(0, w.bytes.size()));
}

// Behind any border, and none; only whole granules of it.
TEST_P(WeightPagerInPlaceTest, ALookupTableIsThereFromLoadOn) {
  test::WorldOptions options = Options();
  const uint32_t without = EvictionPlan::GranulesAtHome(options.layout, kGranule);
  options.layout = test::WithLookup(std::move(options.layout), 7 * kGranule + 100);
  World w(options);
  ASSERT_TRUE(w.created.ok()) << w.created.ToString();
  const auto in_place = [&] {
    const std::vector<GranuleId>& slots = w.space->region(w.pager->region()).slots;
    return std::count_if(slots.begin(), slots.end(), AddressSpace::IsForeign);
  };
  EXPECT_EQ(in_place(), 6);
  EXPECT_EQ(w.pool->counts().total, without + 1);  // where it ends; it begins beside a segment
  EXPECT_EQ(w.pool->Available(), 0U);
  EXPECT_EQ(w.pager->plan().evicted_granules(), 0U);
  for (const EvictionTarget& target :
       {EvictionTarget{}, kTarget, EvictionTarget{.granules_per_layer = 5, .ring_slots = 2},
        EvictionTarget{.placement = Placement::kLayer, .layers = 5, .ring_slots = 2},
        EvictionTarget{}}) {
    const Status applied = w.pager->Apply(target);
    ASSERT_TRUE(applied.ok()) << applied.ToString();
    w.CheckAll();
    EXPECT_EQ(w.pool->Available(), w.pager->plan().freed_granules());
    EXPECT_EQ(in_place(), target.placement == Placement::kInPlace ? 46 : 6);
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(w.Step().ok());
  }
  const std::vector<std::byte> junk(64, std::byte{1});
  const VirtAddr last = w.base + AlignDown(w.bytes.size(), kGranule) - kGranule;
  EXPECT_EQ(w.driver.Write(last, junk).code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(w.BytesAre(0, w.bytes.size()));
}

TEST_P(WeightPagerInPlaceTest, ALookupTableNeedsABackingCopyThatCanBeMapped) {
  test::WorldOptions options = Options();
  options.layout = test::WithLookup(std::move(options.layout), 3 * kGranule);
  options.load = false;
  const auto code = [&](Backing backing, uint64_t piece_bytes) {
    options.backing = backing;
    options.piece_bytes = piece_bytes;
    return World(options).created.code();
  };
  EXPECT_EQ(code(Backing::kHost, kGranule), StatusCode::kOk);
  EXPECT_EQ(code(Backing::kHost, 2 * kGranule), StatusCode::kUnsupported);
  if (GetParam() == DriverKind::kHost) {  // where there are files
    EXPECT_EQ(code(Backing::kFile, kGranule), StatusCode::kUnsupported);
  }
  EXPECT_EQ(code(Backing::kNone, kGranule), StatusCode::kInvalidArgument);
}

// The store may not go while weights show it, be it a stripe's or the table's.
TEST_P(WeightPagerInPlaceTest, MemoryRefusedWhileLoadingIsAnErrorThen) {
  if (GetParam() == DriverKind::kHost) GTEST_SKIP() << "there memory is taken ahead";
  for (const bool lookup : {false, true}) {
    SCOPED_TRACE(lookup);
    test::WorldOptions options = Options();
    if (lookup) {
      options.layout = test::WithLookup(std::move(options.layout), 3 * kGranule);
    } else {
      options.initial = kTarget;
    }
    options.load = false;
    options.pager.on_backing_refused = [](const Status&) { ADD_FAILURE() << "let go of"; };
    World w(options);
    ASSERT_TRUE(w.created.ok()) << w.created.ToString();
    w.driver.create_fails = [](Tier) { return NoMemory("injected: cannot be pinned"); };
    Status loaded = w.pager->Write(0, w.bytes);
    if (loaded.ok()) loaded = w.pager->Seal();
    EXPECT_EQ(loaded.code(), StatusCode::kNoMemory) << loaded.ToString();
  }
}

TEST_P(WeightPagerInPlaceTest, OnlyTheDifferenceIsRemapped) {
  World w(Options());
  ASSERT_TRUE(w.pager->Apply(kTarget).ok());
  ASSERT_TRUE(w.pager->Apply({.placement = Placement::kInPlace, .granules_per_layer = 6}).ok());
  EXPECT_EQ(w.pager->stats().granules_remapped, 48U);
  const uint64_t calls = w.driver.calls;
  ASSERT_TRUE(w.pager->Apply({.placement = Placement::kInPlace, .granules_per_layer = 6}).ok());
  EXPECT_EQ(w.driver.calls, calls);
}

TEST_P(WeightPagerInPlaceTest, ABudgetSmallerThanTheWeightsLoadsAndServes) {
  auto options = Options();
  options.initial = kTarget;
  options.granules = static_cast<uint32_t>(CeilDiv(options.layout.region_bytes, kGranule)) - 40;
  options.pager.verify_stripes = true;
  World w(options);
  ASSERT_TRUE(w.created.ok()) << w.created.ToString();
  EXPECT_EQ(w.pool->Available(), 0U);
  w.CheckAll();
  ASSERT_TRUE(w.Step().ok());
  const Status refused = w.pager->Apply({});
  EXPECT_EQ(refused.code(), StatusCode::kNoMemory) << refused.ToString();
  EXPECT_EQ(w.pager->plan().target(), kTarget);
  ASSERT_TRUE(w.Step().ok());
  w.CheckAll();
}

TEST_P(WeightPagerInPlaceTest, PiecesOfAnotherSizeAreRefusedWithBothSizes) {
  auto options = Options();
  options.piece_bytes = 2 * kGranule;
  World w(options);
  for (const Status& refused : {w.pager->CanReadInPlace(), w.pager->Apply(kTarget)}) {
    EXPECT_EQ(refused.code(), StatusCode::kUnsupported);
    EXPECT_NE(refused.message().find(std::to_string(2 * kGranule)), std::string::npos);
    EXPECT_NE(refused.message().find(std::to_string(kGranule)), std::string::npos);
  }
  EXPECT_TRUE(w.pager->plan().target().empty());
  ASSERT_TRUE(w.pager->Apply({.granules_per_layer = 3}).ok());
  ASSERT_TRUE(w.Step().ok());
  w.CheckAll();

  options.initial = kTarget;
  World loading(options);
  EXPECT_EQ(loading.created.code(), StatusCode::kUnsupported) << loading.created.ToString();
}

TEST_P(WeightPagerInPlaceTest, AMapFailureAnywhereInAPlanLeavesThePreviousStateServing) {
  auto options = Options();
  options.poison = false;  // its maps may fail, too, but are no part of a plan
  const std::vector<EvictionTarget> targets = {
      kTarget, {.granules_per_layer = 3}, kTarget, {}, {.granules_per_layer = 6}, kTarget, {}};
  World w(options);
  uint64_t failed = 0;
  for (const EvictionTarget& wanted : targets) {
    for (int fail_at = 1;; fail_at += 7) {
      int maps = 0;
      w.driver.map_fails = [&] { return ++maps == fail_at; };
      const EvictionTarget before = w.pager->plan().target();
      const Status applied = w.pager->Apply(wanted);
      w.driver.map_fails = {};
      w.CheckAll();
      const Status step = w.Step();
      ASSERT_TRUE(step.ok()) << "map " << fail_at << ": " << step.ToString();
      if (applied.ok()) break;
      ++failed;
      EXPECT_EQ(applied.code(), StatusCode::kDriver) << applied.ToString();
      EXPECT_EQ(w.pager->plan().target(), before);
    }
  }
  EXPECT_GT(failed, 30U);
}

// Coming home is what a link in trouble makes them do.
TEST_P(WeightPagerInPlaceTest, ComingHomeOverABrokenLinkStaysInPlaceUntilTheHostCanRead) {
  World w(Options());
  ASSERT_TRUE(w.pager->Apply(kTarget).ok());
  w.driver.on_copy = [] { return CopyFault::kFail; };
  w.driver.read_fails = [](VirtAddr) { return true; };
  const Status failed = w.pager->Apply({});
  EXPECT_FALSE(failed.ok());
  EXPECT_NE(failed.code(), StatusCode::kBadState) << failed.ToString();
  EXPECT_EQ(w.pager->plan().target(), kTarget);
  w.driver.read_fails = {};
  w.CheckAll();
  ASSERT_TRUE(w.Step().ok());  // nothing is copied to read them in place
  const Status home = w.pager->Apply({});
  ASSERT_TRUE(home.ok()) << home.ToString();  // through the host: no stream carries a copy
  w.CheckAll();
  EXPECT_TRUE(w.BytesAre(0, w.bytes.size()));
}

// The pager's own unmapping fails; the address space's does not, and the store is still there.
TEST_P(WeightPagerInPlaceTest, AnUnmapThatFailsAtTheEndLeavesNothingBehind) {
  auto driver = test::MakeDriver(GetParam());
  test::FaultDriver faulty(*driver);
  const WeightLayout layout = Options().layout;
  const auto granules = static_cast<uint32_t>(CeilDiv(layout.region_bytes, kGranule));
  std::vector<AllocId> made;
  {
    auto store = *CreateMemoryBackingStore(faulty, Tier::kHost, layout.region_bytes, kGranule);
    for (uint32_t s = 0; s < granules; ++s) made.push_back(*store->PieceAt(s * kGranule));
    auto pool = *GranulePool::Create(
        faulty, {.tier = Tier::kHbm, .granule_bytes = kGranule, .count = granules});
    auto space = *AddressSpace::Create(faulty, *pool, {});
    auto pager = *WeightPager::Create(*space, store.get(), layout, kTarget, {});
    ASSERT_TRUE(pager->Seal().ok());
    faulty.unmap_fails = [n = 0]() mutable { return ++n == 7; };
    pager.reset();
    EXPECT_GT(space->rollbacks(), 0U);
  }
  for (const AllocId alloc : made) {
    EXPECT_EQ(driver->Release(alloc).code(), StatusCode::kInvalidArgument) << "released already";
  }
}

TEST_P(WeightPagerInPlaceTest, TheTraceTellsOfTheCopyThatIsShown) {
  Tracer tracer({});
  SetTracer(&tracer);
  std::map<TraceType, uint64_t> count;
  uint64_t foreign = 0, evicted = 0, filled = 0;
  TraceAudit audit;
  const auto drain = [&] {
    tracer.Drain([&](const TraceRecord& r) {
      audit.Add(r);
      const auto type = static_cast<TraceType>(r.type);
      ++count[type];
      if (type == TraceType::kEvict) evicted += r.args[2];
      if (type == TraceType::kFill) filled += r.args[2];
      if (type == TraceType::kPlacement && r.args[2] != 0) {
        EXPECT_EQ(r.cause, static_cast<uint8_t>(Placement::kInPlace));
        EXPECT_EQ(r.args[0], 5U);
        EXPECT_EQ(r.args[1], 0U) << "no ring";
        EXPECT_EQ(r.args[2], 40U);
        EXPECT_EQ(r.args[4], 0U) << "no stripes";
      }
      if (type != TraceType::kMap || r.args[3] != static_cast<uint64_t>(MapKind::kForeign)) return;
      ++foreign;
      EXPECT_EQ(r.cause, static_cast<uint8_t>(Tier::kHost));
      EXPECT_EQ(r.args[1], r.args[2]) << "a slot shows its own bytes";
      EXPECT_EQ(r.args[4], static_cast<uint64_t>(Owner::kWeights));
    });
  };
  {
    World w(Options());
    ASSERT_TRUE(w.pager->Apply(kTarget).ok());
    ASSERT_TRUE(w.Step().ok());
    ASSERT_TRUE(w.pager->Apply({}).ok());
    drain();
  }
  drain();
  SetTracer(nullptr);
  EXPECT_EQ(foreign, 40U);
  EXPECT_EQ(evicted, 40U);
  EXPECT_EQ(filled, 40U);
  EXPECT_EQ(count[TraceType::kCopy] + count[TraceType::kGateArrive], 0U);
  const Status audited = audit.CheckAtEnd();
  EXPECT_TRUE(audited.ok()) << audited.ToString();
}

TEST(WeightPagerInPlaceFileTest, AFileCannotBeReadInPlace) {
  World w({.driver = DriverKind::kHost,
           .backing = Backing::kFile,
           .layout = RegularLayout(8, {57'344, 86'016}, 3000, 500)});
  const Status refused = w.pager->Apply(kTarget);
  EXPECT_EQ(refused.code(), StatusCode::kUnsupported);
  EXPECT_NE(refused.message().find("nvme"), std::string::npos) << refused.ToString();
  ASSERT_TRUE(w.Step().ok());
  w.CheckAll();
}

// Behind closed gates only stripes move.
TEST(WeightPagerInPlaceDeviceTest, MovesAtRestOnly) {
  test::WorldOptions options{.driver = DriverKind::kSim,
                             .backing = Backing::kHost,
                             .layout = RegularLayout(8, {57'344, 86'016}, 3000, 500)};
  options.pager.device_gates = true;
  World w(options);
  EXPECT_FALSE(w.pager->CanMoveBehindGates(kTarget));
  EXPECT_EQ(w.pager->BeginTransition(kTarget).code(), StatusCode::kInvalidArgument);
  ASSERT_TRUE(w.pager->Apply(kTarget).ok());
  w.CheckAll();
  for (const EvictionTarget& target : {EvictionTarget{}, EvictionTarget{.granules_per_layer = 2}}) {
    EXPECT_FALSE(w.pager->CanMoveBehindGates(target));
    EXPECT_EQ(w.pager->BeginTransition(target).code(), StatusCode::kInvalidArgument);
  }
  for (const int32_t chunk : w.pager->device_gates().chunk_of_gate) EXPECT_EQ(chunk, -1);
  ASSERT_TRUE(w.pager->BeginStep().ok());
  ASSERT_TRUE(w.pager->EndStep().ok());
  ASSERT_TRUE(w.pager->Apply({}).ok());
  EXPECT_TRUE(w.pager->CanMoveBehindGates({.granules_per_layer = 2}));
  EXPECT_TRUE(w.BytesAre(0, w.bytes.size()));
}

}  // namespace
}  // namespace weir
