#include "vmm/address_space.h"

#include "tests/vmm/memory_fixture.h"

namespace weir {
namespace {

using AddressSpaceTest = MemoryTest;

TEST_F(AddressSpaceTest, RegionsAreRoundedUpAlignedAndDisjoint) {
  Make(4);
  const RegionId a = space_->Reserve("a", kGranule * 2 + 1).value();
  const RegionId b = space_->Reserve("b", 1).value();
  EXPECT_EQ(space_->region(a).slots.size(), 3u);
  EXPECT_EQ(space_->region(a).base % kGranule, 0u);
  EXPECT_GE(space_->region(b).base, space_->region(a).base + 3 * kGranule);
  EXPECT_CODE(space_->Reserve("none", 0), kInvalidArgument);
  EXPECT_CODE(space_->Reserve("huge", ~uint64_t{0}), kInvalidArgument);
}

TEST_F(AddressSpaceTest, APlanMapsAndUnmaps) {
  Make(4);
  const RegionId r = NewRegion("weights", 8);
  RemapPlan plan;
  plan.MapFresh(r, SlotIndex(1), Owner::kWeights);
  plan.MapFresh(r, SlotIndex(5), Owner::kKv);
  ASSERT_OK(space_->Commit(plan));
  EXPECT_EQ(plan.granules_taken, 2u);
  EXPECT_EQ(space_->region(r).mapped, 2u);
  EXPECT_EQ(pool_->granule(GranuleAt(r, 5)).owner, Owner::kKv);
  PutPattern(r, 5, 1);
  ExpectPattern(r, 5, 1);
  RemapPlan back;
  back.Unmap(r, SlotIndex(1));
  ASSERT_OK(space_->Commit(back));
  EXPECT_EQ(back.granules_freed, 1u);
  EXPECT_EQ(pool_->Available(), 3u);
}

// The ring: the stripes of two layers share one granule, the addresses stay.
TEST_F(AddressSpaceTest, EvictionOntoARingFreesAllButTheRing) {
  Make(9);
  const RegionId weights = NewRegion("weights", 8);
  const RegionId ring = NewRegion("ring", 1);
  ASSERT_OK(MapRange(weights, 0, 8));
  ASSERT_OK(MapRange(ring, 0, 1, Owner::kRing));
  RemapPlan evict{.cause = RemapCause::kEvict};
  for (const uint32_t slot : {3U, 7U}) {
    evict.Unmap(weights, SlotIndex(slot));
    evict.MapAlias(weights, SlotIndex(slot), ring, SlotIndex(0));
  }
  ASSERT_OK(space_->Commit(evict));
  EXPECT_EQ(evict.granules_freed, 2u);
  EXPECT_EQ(pool_->Available(), 2u);
  EXPECT_EQ(pool_->granule(GranuleAt(ring, 0)).map_count, 3u);
  PutPattern(ring, 0, 42);
  ExpectPattern(weights, 3, 42);
  ExpectPattern(weights, 7, 42);
}

TEST_F(AddressSpaceTest, AMovedGranuleKeepsItsBytesAndIsNotFreed) {
  Make(2);
  const RegionId r = NewRegion("kv", 4);
  ASSERT_OK(MapRange(r, 0, 1, Owner::kKv));
  PutPattern(r, 0, 3);
  const GranuleId g = GranuleAt(r, 0);
  RemapPlan move;
  move.MapAlias(r, SlotIndex(2), r, SlotIndex(0));
  move.Unmap(r, SlotIndex(0));
  ASSERT_OK(space_->Commit(move));
  EXPECT_EQ(move.granules_freed, 0u);
  EXPECT_EQ(GranuleAt(r, 2), g);
  ExpectPattern(r, 2, 3);
}

TEST_F(AddressSpaceTest, AGranuleTheSamePlanMapsAndUnmapsGoesBack) {
  Make(1);
  const RegionId r = NewRegion("kv", 2);
  RemapPlan plan;
  plan.MapFresh(r, SlotIndex(0), Owner::kKv);
  plan.Unmap(r, SlotIndex(0));
  ASSERT_OK(space_->Commit(plan));
  EXPECT_EQ(plan.granules_taken, 0u);
  EXPECT_EQ(pool_->Available(), 1u);
}

// An allocation of somebody else, mapped by its owner at a place of its own and written there.
class ForeignGranuleTest : public MemoryTest {
 protected:
  void MakeForeign(uint32_t granules) {
    Make(granules);
    home_ = driver_->Reserve(kForeign * kGranule, kGranule).value();
    for (uint32_t i = 0; i < kForeign; ++i) {
      allocs_.push_back(driver_->Create(Tier::kHost, kGranule).value());
      ASSERT_OK(driver_->Map(home_ + i * kGranule, allocs_.back()));
      ASSERT_OK(driver_->SetAccess(home_ + i * kGranule, kGranule, Access::kReadWrite));
      ASSERT_OK(driver_->Write(home_ + i * kGranule, Pattern(100 + i, kGranule)));
    }
  }
  void TearDown() override {
    ASSERT_OK(space_->CheckIntegrity());
    space_.reset();
    for (uint32_t i = 0; i < kForeign; ++i) {
      EXPECT_OK(driver_->Unmap(home_ + i * kGranule));
      EXPECT_OK(driver_->Release(allocs_[i]));
    }
    EXPECT_OK(driver_->Free(home_));
    MemoryTest::TearDown();
  }
  ForeignGranule Foreign(uint32_t i) {
    return {.tier = Tier::kHost, .alloc = allocs_[i], .number = i, .owner = Owner::kWeights};
  }

  static constexpr uint32_t kForeign = 3;
  VirtAddr home_ = 0;
  std::vector<AllocId> allocs_;
};

TEST_F(ForeignGranuleTest, ShowsItsBytesCostsThePoolNothingAndIsReadOnly) {
  MakeForeign(4);
  const RegionId weights = NewRegion("weights", 4);
  ASSERT_OK(MapRange(weights, 0, 4));
  RemapPlan away;
  for (uint32_t i = 0; i < 3; ++i) away.Unmap(weights, SlotIndex(1 + i));
  for (uint32_t i = 0; i < 3; ++i) away.MapForeign(weights, SlotIndex(1 + i), Foreign(i));
  ASSERT_OK(space_->Commit(away));
  EXPECT_EQ(away.granules_taken, 0u);
  EXPECT_EQ(away.granules_freed, 3u);
  EXPECT_EQ(pool_->counts().free, 3u);
  EXPECT_EQ(space_->region(weights).mapped, 4u);
  ASSERT_TRUE(AddressSpace::IsForeign(GranuleAt(weights, 2)));
  EXPECT_FALSE(AddressSpace::IsForeign(GranuleAt(weights, 0)));
  EXPECT_FALSE(AddressSpace::IsForeign(GranuleId()));
  EXPECT_EQ(space_->foreign(GranuleAt(weights, 2)), Foreign(1));
  for (uint32_t i = 0; i < 3; ++i) ExpectPattern(weights, 1 + i, 100 + i);
  EXPECT_CODE(driver_->Write(At(weights, 2), Pattern(1, kGranule)), kInvalidArgument);
  ASSERT_OK(space_->CheckIntegrity());
  // While it is mapped here its owner cannot let it go.
  EXPECT_CODE(driver_->Release(allocs_[0]), kBadState);

  RemapPlan home;
  for (uint32_t i = 0; i < 3; ++i) home.Unmap(weights, SlotIndex(1 + i));
  for (uint32_t i = 0; i < 3; ++i) home.MapFresh(weights, SlotIndex(1 + i), Owner::kWeights);
  ASSERT_OK(space_->Commit(home));
  EXPECT_EQ(home.granules_taken, 3u);
  EXPECT_EQ(home.granules_freed, 0u);
  PutPattern(weights, 1, 9);  // writable again
  EXPECT_EQ(ReadBytes(*driver_, home_, kGranule), Pattern(100, kGranule));
}

TEST_F(ForeignGranuleTest, AFailureAnywhereInAPlanIsUndone) {
  MakeForeign(4);
  const RegionId weights = NewRegion("weights", 4);
  ASSERT_OK(MapRange(weights, 0, 2));
  RemapPlan setup;
  setup.MapForeign(weights, SlotIndex(2), Foreign(2));
  ASSERT_OK(space_->Commit(setup));
  PutPattern(weights, 0, 40);
  const auto before = space_->region(weights).slots;
  bool done = false;
  for (uint64_t nth = 1; !done; ++nth) {
    // One leaves home, one comes home, one is in both.
    RemapPlan plan;
    plan.Unmap(weights, SlotIndex(0));
    plan.Unmap(weights, SlotIndex(2));
    plan.MapForeign(weights, SlotIndex(0), Foreign(0));
    plan.MapFresh(weights, SlotIndex(2), Owner::kWeights);
    plan.MapForeign(weights, SlotIndex(3), Foreign(1));
    driver_->faults().FailNthCall(nth);
    const Status status = space_->Commit(plan);
    done = status.ok();
    driver_->faults().Clear();
    ASSERT_OK(space_->CheckIntegrity());
    if (done) {
      EXPECT_GT(nth, 5u);
      break;
    }
    EXPECT_CODE(status, kDriver);
    EXPECT_EQ(space_->region(weights).slots, before);
    ExpectPattern(weights, 0, 40);
    ExpectPattern(weights, 2, 102);
    // Still read only.
    EXPECT_CODE(driver_->Write(At(weights, 2), Pattern(1, kGranule)), kInvalidArgument);
  }
  ExpectPattern(weights, 0, 100);
  ExpectPattern(weights, 3, 101);
}

TEST_F(ForeignGranuleTest, ANumberNamesOneAllocationAndNeedsAnOwner) {
  MakeForeign(2);
  const RegionId weights = NewRegion("weights", 4);
  const auto refused = [&](uint32_t slot, const ForeignGranule& granule, const char* why) {
    RemapPlan plan;
    plan.MapForeign(weights, SlotIndex(slot), granule);
    const Status status = space_->Commit(plan);
    EXPECT_CODE(status, kInvalidArgument);
    EXPECT_NE(status.message().find(why), std::string::npos) << status.ToString();
  };
  ForeignGranule wrong = Foreign(0);
  wrong.owner = Owner::kNone;
  refused(0, wrong, "an owner");
  wrong = Foreign(0);
  wrong.alloc = AllocId();
  refused(0, wrong, "an allocation");
  wrong = Foreign(0);
  wrong.number = 1u << 30;
  refused(0, wrong, "a number below");

  RemapPlan plan;
  plan.MapForeign(weights, SlotIndex(0), Foreign(0));
  ASSERT_OK(space_->Commit(plan));
  wrong = Foreign(1);
  wrong.number = 0;
  refused(1, wrong, "another allocation already");
  refused(0, Foreign(1), "mapped already");
  RemapPlan twice;
  wrong.number = 7;
  twice.MapForeign(weights, SlotIndex(1), wrong);
  wrong = Foreign(2);
  wrong.number = 7;
  twice.MapForeign(weights, SlotIndex(2), wrong);
  EXPECT_CODE(space_->Commit(twice), kInvalidArgument);
}

// A trace that begins while they are mapped, and the audit's own rule.
TEST_F(ForeignGranuleTest, ASnapshotTellsOfThemAndTheAuditKnowsThemFromThePools) {
  MakeForeign(2);
  const RegionId weights = NewRegion("weights", 2);
  RemapPlan plan;
  plan.MapForeign(weights, SlotIndex(0), Foreign(0));
  plan.MapForeign(weights, SlotIndex(1), Foreign(1));
  ASSERT_OK(space_->Commit(plan));
  Tracer tracer(Tracer::Options{});
  Tracer* const before = GetTracer();
  SetTracer(&tracer);
  space_->TraceState();
  SetTracer(before);
  uint64_t maps = 0;
  TraceAudit audit;
  TraceRecord map;
  tracer.Drain([&](const TraceRecord& r) {
    audit.Add(r);
    if (static_cast<TraceType>(r.type) != TraceType::kMap) return;
    EXPECT_EQ(r.cause, static_cast<uint8_t>(Tier::kHost));
    EXPECT_EQ(r.args[1], r.args[2]) << "slot and number are the same here";
    EXPECT_EQ(r.args[3], static_cast<uint64_t>(MapKind::kForeign));
    EXPECT_EQ(r.args[4], static_cast<uint64_t>(Owner::kWeights));
    map = r;
    ++maps;
  });
  EXPECT_EQ(maps, 2u);
  EXPECT_OK(audit.Check());
  map.cause = static_cast<uint8_t>(Tier::kHbm);  // of which tier the pool is
  map.args[0] = 5;
  audit.Add(map);
  EXPECT_CODE(audit.Check(), kDataLoss);
}

TEST_F(AddressSpaceTest, ValidateNamesTheOperationThatBreaksARule) {
  Make(4);
  const RegionId r = NewRegion("kv", 4);
  ASSERT_OK(MapRange(r, 0, 1));
  const auto refused = [&](auto build, const char* text) {
    RemapPlan plan;
    plan.MapFresh(r, SlotIndex(3), Owner::kKv);
    build(plan);
    const Status s = space_->Validate(plan);
    EXPECT_CODE(s, kInvalidArgument);
    EXPECT_NE(s.message().find("operation 1"), std::string::npos) << s.message();
    EXPECT_NE(s.message().find(text), std::string::npos) << s.message();
    EXPECT_CODE(space_->Commit(plan), kInvalidArgument);
    EXPECT_EQ(space_->region(r).mapped, 1u);
  };
  refused([&](RemapPlan& p) { p.MapFresh(r, SlotIndex(0), Owner::kKv); }, "mapped already");
  refused([&](RemapPlan& p) { p.MapFresh(r, SlotIndex(3), Owner::kKv); }, "mapped already");
  refused([&](RemapPlan& p) { p.MapFresh(r, SlotIndex(4), Owner::kKv); }, "4 slots");
  refused([&](RemapPlan& p) { p.MapFresh(r, SlotIndex(1), Owner::kNone); }, "needs an owner");
  refused([&](RemapPlan& p) { p.MapFresh(RegionId(5), SlotIndex(0), Owner::kKv); }, "1 regions");
  refused([&](RemapPlan& p) { p.Unmap(r, SlotIndex(2)); }, "not mapped");
  refused([&](RemapPlan& p) { p.MapAlias(r, SlotIndex(2), r, SlotIndex(1)); }, "kv[1] is not");
}

TEST_F(AddressSpaceTest, TooFewGranulesAreCountedInTheMessage) {
  Make(2);
  const RegionId r = NewRegion("kv", 8);
  const Status s = MapRange(r, 0, 5);
  EXPECT_CODE(s, kNoMemory);
  EXPECT_NE(s.message().find("3 are missing"), std::string::npos) << s.message();
  const Commitment c = pool_->Commit(1).value();
  EXPECT_CODE(MapRange(r, 0, 2), kNoMemory);  // committed granules are not the plan's
}

TEST_F(AddressSpaceTest, APlanWaitsForItsFence) {
  Make(1);
  const RegionId r = NewRegion("kv", 1);
  ASSERT_OK(MapRange(r, 0, 1));
  const StreamId stream = driver_->CreateStream("s").value();
  ASSERT_OK(driver_->Fill(stream, At(r, 0), std::byte{1}, kGranule));
  RemapPlan plan;
  plan.Unmap(r, SlotIndex(0));
  plan.fence.Add(driver_->Record(stream).value());
  EXPECT_CODE(space_->Commit(plan), kShouldWait);
  EXPECT_OK(plan.fence.Wait(*driver_));
  EXPECT_OK(space_->Commit(plan));
}

TEST_F(AddressSpaceTest, AFailedFenceFailsThePlan) {
  Make(1);
  const RegionId r = NewRegion("kv", 1);
  ASSERT_OK(MapRange(r, 0, 1));
  const StreamId stream = driver_->CreateStream("s").value();
  ASSERT_OK(driver_->HostFunction(stream, [] { return DataLoss("torn"); }));
  RemapPlan plan;
  plan.Unmap(r, SlotIndex(0));
  plan.fence.Add(driver_->Record(stream).value());
  driver_->AdvanceBy(1);
  EXPECT_CODE(space_->Commit(plan), kDataLoss);
}

// T2: every driver call of the plan fails once; each time everything is as before, bytes included.
TEST_F(AddressSpaceTest, AFailureAnywhereInAPlanIsUndone) {
  Make(8, {.poison_freed = true, .scrub_on_owner_change = true});
  const RegionId r = NewRegion("weights", 6);
  const RegionId ring = NewRegion("ring", 1);
  ASSERT_OK(MapRange(r, 0, 4));
  ASSERT_OK(MapRange(ring, 0, 1, Owner::kRing));
  for (uint32_t i = 0; i < 4; ++i) PutPattern(r, i, i);
  const auto before = space_->region(r).slots;
  const PoolCounts counts = pool_->counts();
  const auto build = [&] {
    RemapPlan plan;
    plan.Unmap(r, SlotIndex(1));
    plan.MapAlias(r, SlotIndex(1), ring, SlotIndex(0));
    plan.Unmap(r, SlotIndex(2));
    plan.MapAlias(r, SlotIndex(5), r, SlotIndex(3));
    plan.Unmap(r, SlotIndex(3));
    plan.MapFresh(r, SlotIndex(4), Owner::kKv);
    plan.MapFresh(r, SlotIndex(2), Owner::kKv);
    return plan;
  };
  uint64_t nth = 1;
  for (;; ++nth) {
    RemapPlan plan = build();
    const uint64_t injected = driver_->faults().injected();
    driver_->faults().FailNthCall(nth);
    const Status s = space_->Commit(plan);
    driver_->faults().Clear();
    if (s.ok()) {
      // Beyond the plan's own calls only poisoning can be hit, which must not matter.
      if (driver_->faults().injected() == injected) break;
      ExpectPattern(r, 5, 3);
      RemapPlan back;
      back.Unmap(r, SlotIndex(1));
      back.Unmap(r, SlotIndex(2));
      back.Unmap(r, SlotIndex(4));
      back.MapAlias(r, SlotIndex(3), r, SlotIndex(5));
      back.Unmap(r, SlotIndex(5));
      back.MapFresh(r, SlotIndex(1), Owner::kWeights);
      back.MapFresh(r, SlotIndex(2), Owner::kWeights);
      ASSERT_OK(space_->Commit(back));
      PutPattern(r, 1, 1);
      PutPattern(r, 2, 2);
      continue;
    }
    EXPECT_CODE(s, kDriver);
    EXPECT_EQ(space_->region(r).slots, before);
    EXPECT_EQ(pool_->counts().free, counts.free);
    EXPECT_EQ(pool_->counts().by_owner, counts.by_owner);
    for (uint32_t i = 0; i < 4; ++i) ExpectPattern(r, i, i);
    ASSERT_OK(space_->CheckIntegrity());
    ASSERT_OK(trace_.Poll());
  }
  EXPECT_GT(nth, 9u);
  EXPECT_GT(space_->rollbacks(), 8u);
}

TEST_F(AddressSpaceTest, ARegionWhoseUndoFailedIsOutOfUse) {
  Make(4);
  const RegionId r = NewRegion("weights", 4);
  const RegionId other = NewRegion("kv", 4);
  ASSERT_OK(MapRange(r, 0, 2));
  PutPattern(r, 1, 1);
  RemapPlan plan;
  plan.Unmap(r, SlotIndex(0));
  plan.MapFresh(r, SlotIndex(2), Owner::kKv);
  driver_->faults().FailWithProbability(SimCall::kMap, 1.0);
  const Status s = space_->Commit(plan);
  driver_->faults().Clear();
  EXPECT_CODE(s, kBadState);
  EXPECT_OK(space_->CheckIntegrity());
  EXPECT_CODE(UnmapRange(r, 1, 1), kBadState);
  EXPECT_OK(MapRange(other, 0, 2));
  ExpectPattern(r, 1, 1);
}

TEST_F(AddressSpaceTest, FreedGranulesArePoisoned) {
  Make(1, {.poison_freed = true});
  const RegionId r = NewRegion("kv", 2);
  ASSERT_OK(MapRange(r, 0, 1));
  PutPattern(r, 0, 1);
  ASSERT_OK(UnmapRange(r, 0, 1));
  ASSERT_OK(MapRange(r, 1, 1));
  EXPECT_EQ(ReadBytes(*driver_, At(r, 1), kGranule), std::vector(kGranule, std::byte{0xFF}));
}

TEST_F(AddressSpaceTest, AnotherOwnerGetsZeroesAndTheSameOwnerItsBytes) {
  Make(1, {.scrub_on_owner_change = true});
  const RegionId r = NewRegion("x", 1);
  ASSERT_OK(MapRange(r, 0, 1, Owner::kKv));
  PutPattern(r, 0, 1);
  ASSERT_OK(UnmapRange(r, 0, 1));
  ASSERT_OK(MapRange(r, 0, 1, Owner::kKv));
  ExpectPattern(r, 0, 1);
  ASSERT_OK(UnmapRange(r, 0, 1));
  ASSERT_OK(MapRange(r, 0, 1, Owner::kWeights));
  EXPECT_EQ(ReadBytes(*driver_, At(r, 0), kGranule), std::vector(kGranule, std::byte{0}));
}

// A granule that was allocated and never mapped still holds the earlier owner's bytes.
TEST_F(AddressSpaceTest, AFailedPlanDoesNotHideWhoseBytesAreInAGranule) {
  Make(1, {.scrub_on_owner_change = true});
  const RegionId r = NewRegion("x", 1);
  ASSERT_OK(MapRange(r, 0, 1, Owner::kKv));
  PutPattern(r, 0, 1);
  ASSERT_OK(UnmapRange(r, 0, 1));
  driver_->faults().FailNth(SimCall::kMap, 1);
  EXPECT_CODE(MapRange(r, 0, 1, Owner::kWeights), kDriver);
  ASSERT_OK(MapRange(r, 0, 1, Owner::kWeights));
  EXPECT_EQ(ReadBytes(*driver_, At(r, 0), kGranule), std::vector(kGranule, std::byte{0}));
}

// The slot it was mapped at first is gone by the end of the plan; an alias is not.
TEST_F(AddressSpaceTest, AGranuleSeenOnlyThroughAnAliasIsScrubbedToo) {
  Make(1, {.scrub_on_owner_change = true});
  const RegionId r = NewRegion("x", 2);
  ASSERT_OK(MapRange(r, 0, 1, Owner::kKv));
  PutPattern(r, 0, 1);
  ASSERT_OK(UnmapRange(r, 0, 1));
  RemapPlan plan;
  plan.MapFresh(r, SlotIndex(0), Owner::kWeights);
  plan.MapAlias(r, SlotIndex(1), r, SlotIndex(0));
  plan.Unmap(r, SlotIndex(0));
  ASSERT_OK(space_->Commit(plan));
  EXPECT_EQ(ReadBytes(*driver_, At(r, 1), kGranule), std::vector(kGranule, std::byte{0}));
}

TEST_F(AddressSpaceTest, AccessIsSetOnceForARun) {
  Make(16);
  const RegionId r = NewRegion("kv", 32);
  const uint64_t before = driver_->faults().calls(SimCall::kSetAccess);
  RemapPlan plan;
  for (uint32_t i = 8; i > 0; --i) plan.MapFresh(r, SlotIndex(i), Owner::kKv);
  plan.MapFresh(r, SlotIndex(20), Owner::kKv);
  ASSERT_OK(space_->Commit(plan));
  EXPECT_EQ(driver_->faults().calls(SimCall::kSetAccess) - before, 2u);
}

TEST_F(AddressSpaceTest, DumpSaysWhereGranulesAre) {
  Make(2);
  const RegionId r = NewRegion("kv", 4);
  ASSERT_OK(MapRange(r, 0, 1));
  EXPECT_NE(space_->Dump().find("kv"), std::string::npos);
  EXPECT_NE(space_->Dump().find("1 of 4 slots mapped"), std::string::npos);
}

}  // namespace
}  // namespace weir
