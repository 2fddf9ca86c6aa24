// Each rule of `weir-trace check` against a trace that keeps it and one that breaks it.
#include "tools/trace/check.h"

#include <functional>

#include <gtest/gtest.h>

#include "tests/tools/trace_builder.h"

namespace weir::trace_tool {
namespace {

using T = TraceType;
using Records = std::vector<TraceRecord>;

InvariantChecker Check(const TraceBuilder& builder, bool complete = false) {
  const std::string file = builder.File(32);
  static TraceMeta meta;
  TraceReader reader(MemorySource(std::as_bytes(std::span(file.data(), file.size()))));
  meta = reader.meta();
  InvariantChecker checker(meta, builder.mask);
  reader.ForEach([&](const TraceEvent& e) { checker.Add(e); });
  checker.Finish(complete);
  return checker;
}

std::string First(const InvariantChecker& checker) {
  return checker.violations().empty()
             ? "none"
             : checker.violations()[0].rule + ": " + checker.violations()[0].what;
}

size_t IndexOf(const Records& records, T type, size_t nth = 0) {
  for (size_t i = 0; i < records.size(); ++i) {
    if (records[i].type == static_cast<uint16_t>(type) && nth-- == 0) return i;
  }
  ADD_FAILURE() << "no such record";
  return 0;
}

struct Planted {
  const char* name;
  const char* rule;
  std::function<void(Records&)> plant;
  T named;  // the type of the event that check must name
};

void Erase(Records& r, size_t i) {
  r.erase(r.begin() + static_cast<ptrdiff_t>(i));
}

const Planted kPlanted[] = {
    {"CreatedTwice", "G1", [](Records& r) { r[1].args[0] = 0; }, T::kCreate},
    {"WrongState", "G1", [](Records& r) { r[IndexOf(r, T::kGranuleState)].args[1] = 2; },
     T::kGranuleState},
    {"ForeignGranule", "G2", [](Records& r) { r[IndexOf(r, T::kCreate, 15)].args[0] = 16; },
     T::kCreate},
    {"WrongOwner", "G2", [](Records& r) { r[IndexOf(r, T::kOwner)].args[1] = 3; }, T::kOwner},
    {"SlotOutsideRegion", "R1", [](Records& r) { r[IndexOf(r, T::kMap, 7)].args[1] = 8; }, T::kMap},
    {"UnmapOfAnother", "M1", [](Records& r) { r[IndexOf(r, T::kUnmap)].args[2] = 2; }, T::kUnmap},
    {"MappedTwice", "M1", [](Records& r) { r[IndexOf(r, T::kMap, 1)].args[1] = 0; }, T::kMap},
    {"UndeclaredAlias", "M1", [](Records& r) { r[IndexOf(r, T::kMap, 9)].args[3] = 0; }, T::kMap},
    {"FreedWhileMapped", "M1", [](Records& r) { Erase(r, IndexOf(r, T::kUnmap, 2)); }, T::kMap},
    {"RemappedDuringCopy", "M2",
     [](Records& r) { r[IndexOf(r, T::kCopy)].args[4] = r[IndexOf(r, T::kPlanBegin, 2)].time_ns; },
     T::kCopy},
    {"CopyMissing", "M3", [](Records& r) { Erase(r, IndexOf(r, T::kCopy, 2)); }, T::kGatePass},
    {"CopyTooLate", "M3",
     [](Records& r) { r[IndexOf(r, T::kCopy, 6)].time_ns = r[IndexOf(r, T::kStepEnd, 1)].time_ns; },
     T::kGatePass},
    {"GateLeftOut", "M3",
     [](Records& r) {
       Erase(r, IndexOf(r, T::kGateArrive, 3));
       Erase(r, IndexOf(r, T::kGatePass, 3));
     },
     T::kStepEnd},
    {"PassWithoutArrival", "M3", [](Records& r) { Erase(r, IndexOf(r, T::kGateArrive, 1)); },
     T::kGatePass},
    {"EvictedButNotAliased", "M3", [](Records& r) { r[IndexOf(r, T::kEvict)].args[1] = 0; },
     T::kEvict},
    {"KvHasNoBackingCopy", "O1", [](Records& r) { r[IndexOf(r, T::kEvict)].args[0] = 2; },
     T::kEvict},
    {"BlockGivenTwice", "K1",
     [](Records& r) {
       const size_t i = IndexOf(r, T::kKvAlloc);
       r.insert(r.begin() + static_cast<ptrdiff_t>(i), r[i]);
     },
     T::kKvAlloc},
    {"CountsDoNotAddUp", "K1", [](Records& r) { ++r[IndexOf(r, T::kQueue, 2)].args[4]; },
     T::kQueue},
    {"CountsOfTheEngineDiffer", "K1",
     [](Records& r) {
       --r[IndexOf(r, T::kQueue, 2)].args[2];
       ++r[IndexOf(r, T::kQueue, 2)].args[4];
     },
     T::kQueue},
    {"EvictOfAFreeBlock", "K3",
     [](Records& r) {
       const size_t i = IndexOf(r, T::kKvAlloc);
       TraceRecord e = r[i];
       e.type = static_cast<uint16_t>(T::kKvEvict);
       e.args[0] = 7;
       e.args[1] = 1;
       r.insert(r.begin() + static_cast<ptrdiff_t>(i), e);
     },
     T::kKvEvict},
    {"MappingOutsideAPlan", "T1", [](Records& r) { Erase(r, IndexOf(r, T::kPlanBegin, 1)); },
     T::kMap},
    {"CommitCountsWrong", "T2", [](Records& r) { ++r[IndexOf(r, T::kPlanCommit, 2)].args[2]; },
     T::kPlanCommit},
    {"PlanInsideAPlan", "T2", [](Records& r) { Erase(r, IndexOf(r, T::kPlanCommit, 1)); },
     T::kPlanBegin},
    {"RolledBackHalfway", "T2",
     [](Records& r) {
       TraceRecord& end = r[IndexOf(r, T::kPlanCommit, 2)];
       end.type = static_cast<uint16_t>(T::kPlanRollback);
       end.args[2] = 0;
     },
     T::kPlanRollback},
    {"MoreBytesThanEvicted", "A1", [](Records& r) { r[IndexOf(r, T::kPlacement)].args[3] += 5; },
     T::kPlacement},
    {"StallNotCounted", "A2", [](Records& r) { r[IndexOf(r, T::kStepEnd, 2)].args[4] = 0; },
     T::kStepEnd},
};

TEST(InvariantChecker, ACorrectLifePasses) {
  TraceBuilder builder;
  const InvariantChecker checker = Check(builder.Life());
  EXPECT_EQ(checker.violation_count(), 0U) << First(checker);
  EXPECT_TRUE(checker.notes().empty()) << checker.notes()[0];
  EXPECT_EQ(checker.steps(), 5U);
  EXPECT_EQ(checker.passes(), 20U);
  EXPECT_EQ(checker.stall_ns(), 80'000U);
  EXPECT_EQ(checker.plans(), 4U);
}

TEST(InvariantChecker, EveryPlantedViolationIsFoundAndItsEventNamed) {
  for (const Planted& planted : kPlanted) {
    TraceBuilder builder;
    builder.Life();
    planted.plant(builder.records());
    const InvariantChecker checker = Check(builder);
    ASSERT_GE(checker.violation_count(), 1U) << planted.name;
    bool named = false;
    for (const Violation& v : checker.violations()) {
      named = named || (v.rule == planted.rule &&
                        v.event.record.type == static_cast<uint16_t>(planted.named));
    }
    EXPECT_TRUE(named) << planted.name << ": " << First(checker);
  }
}

TraceBuilder DeviceLife() {
  TraceBuilder builder;
  const size_t at = builder.meta.find("\"scheduler\"");
  EXPECT_EQ(at, std::string::npos);
  builder.meta.insert(1, "\"scheduler\":{\"steps_under_way\":2},");
  builder.Pool().Load().Evict().DeviceSteps(10, 14);
  return builder;
}

TEST(InvariantChecker, StepsThatOverlapArePermittedAsFarAsTheTraceSays) {
  TraceBuilder builder = DeviceLife();
  const InvariantChecker checker = Check(builder);
  EXPECT_EQ(checker.violation_count(), 0U) << First(checker);
  EXPECT_EQ(checker.steps(), 5U);
  EXPECT_EQ(checker.passes(), 20U);
  EXPECT_EQ(checker.stall_ns(), 20 * 41'000U);
  builder.meta = TraceBuilder::DefaultMeta();
  EXPECT_GE(Check(builder).counts().at("M3"), 1U);
}

TEST(InvariantChecker, WhatIsWrongOnADeviceIsFound) {
  const Planted planted[] = {
      {"StepTwice", "M3", [](Records& r) { r[IndexOf(r, T::kStepBegin, 2)].args[0] = 11; },
       T::kStepBegin},
      {"CopyMissing", "M3", [](Records& r) { Erase(r, IndexOf(r, T::kCopy, 6)); }, T::kGatePass},
      {"GateOfAnotherStep", "M3", [](Records& r) { r[IndexOf(r, T::kGatePass, 5)].args[1] = 12; },
       T::kStepEnd},
      {"StallOfAnotherStep", "A2",
       [](Records& r) { r[IndexOf(r, T::kFaultMajor, 5)].args[1] = 12; }, T::kStepEnd},
      {"StallNotToldOf", "A2", [](Records& r) { Erase(r, IndexOf(r, T::kFaultMajor, 9)); },
       T::kStepEnd},
      {"RunsBeforeItBegins", "A3",
       [](Records& r) { r[IndexOf(r, T::kDeviceStep)].args[1] -= 100'000; }, T::kDeviceStep},
      {"EndsAfterItIsKnown", "A3",
       [](Records& r) { r[IndexOf(r, T::kDeviceStep, 4)].args[2] += 100'000; }, T::kDeviceStep},
      {"TwoAtATime", "A3", [](Records& r) { r[IndexOf(r, T::kDeviceStep, 3)].args[1] -= 20'000; },
       T::kDeviceStep},
      {"EndsBeforeItBegins", "A3", [](Records& r) { r[IndexOf(r, T::kDeviceStep, 1)].args[2] = 5; },
       T::kDeviceStep},
      {"UnmappedUnderAStep", "M2",
       [](Records& r) {
         const size_t from = IndexOf(r, T::kPlanBegin, 1), to = IndexOf(r, T::kUnmap, 1);
         std::vector<TraceRecord> plan(r.begin() + static_cast<ptrdiff_t>(from),
                                       r.begin() + static_cast<ptrdiff_t>(to));
         const size_t at = IndexOf(r, T::kStepEnd, 1);
         for (TraceRecord& p : plan) p.time_ns = r[at].time_ns, p.thread = 0;
         r.insert(r.begin() + static_cast<ptrdiff_t>(at) + 1, plan.begin(), plan.end());
       },
       T::kUnmap},
  };
  for (const Planted& p : planted) {
    TraceBuilder builder = DeviceLife();
    p.plant(builder.records());
    const InvariantChecker checker = Check(builder);
    bool named = false;
    for (const Violation& v : checker.violations()) {
      named = named || (v.rule == p.rule && v.event.record.type == static_cast<uint16_t>(p.named));
    }
    EXPECT_TRUE(named) << p.name << ": " << First(checker);
  }
}

TraceBuilder MovingLife() {
  TraceBuilder builder;
  builder.meta.insert(1, "\"scheduler\":{\"steps_under_way\":2},");
  builder.Pool().Load().Evict().DeviceMove(11);
  return builder;
}

// The records [from, to] are as if they had come right behind record |behind| of the same thread.
void MoveBehind(Records& r, size_t from, size_t to, size_t behind) {
  const auto at = [&r](size_t i) { return r.begin() + static_cast<ptrdiff_t>(i); };
  for (size_t i = from; i <= to; ++i) r[i].time_ns = r[behind].time_ns + 1;
  if (behind > to) {
    std::rotate(at(from), at(to + 1), at(behind + 1));
  } else {
    std::rotate(at(behind + 1), at(from), at(to + 1));
  }
}

TEST(InvariantChecker, WeightsMoveBehindTheGatesThatAStepHoldsClosed) {
  const InvariantChecker checker = Check(MovingLife());
  EXPECT_EQ(checker.violation_count(), 0U) << First(checker);
  EXPECT_EQ(checker.steps(), 3U);
  EXPECT_EQ(checker.passes(), 10U);
}

// Instead of being copied.
void SayThatItStays(TraceRecord& copy) {
  copy.type = static_cast<uint16_t>(T::kStripeStays);
  copy.cause = 0;
  copy.args[3] /= TraceBuilder::kGranule;
  copy.args[4] = copy.args[5] = 0;
}

TEST(InvariantChecker, AMoveThatAStepMayNoticeIsFoundAndNamed) {
  const Planted planted[] = {
      {"BehindAGatePassed", "M2",
       [](Records& r) {
         MoveBehind(r, IndexOf(r, T::kPlanBegin, 2), IndexOf(r, T::kPlanCommit, 2),
                    IndexOf(r, T::kGatePass, 5));
       },
       T::kUnmap},
      {"BehindAGateThatIsOpen", "M2",
       [](Records& r) {
         MoveBehind(r, IndexOf(r, T::kPlanBegin, 2), IndexOf(r, T::kPlanCommit, 2),
                    IndexOf(r, T::kCopy, 5));
       },
       T::kUnmap},
      {"BeforeTheStepBeforeHasEnded", "M2",
       [](Records& r) {
         const size_t at = IndexOf(r, T::kTransition);
         MoveBehind(r, at, at, IndexOf(r, T::kGatePass, 3));
       },
       T::kTransition},
      {"TheStepBeforeEndedLater", "M2",
       [](Records& r) { r[IndexOf(r, T::kDeviceStep)].args[2] += 20'000; }, T::kTransition},
      {"NobodyKnowsThatTheStepBeforeHasEnded", "M2",
       [](Records& r) { Erase(r, IndexOf(r, T::kDeviceStep)); }, T::kTransition},
      {"UnmappedBeforeTheGatesAreSaidToBeClosed", "M2",
       [](Records& r) {
         MoveBehind(r, IndexOf(r, T::kPlanBegin, 2), IndexOf(r, T::kPlanCommit, 2),
                    IndexOf(r, T::kGatePass, 2));
       },
       T::kUnmap},
      {"BehindNoGate", "M2",
       [](Records& r) {
         TraceRecord& unmap = r[IndexOf(r, T::kUnmap, 4)];
         unmap.args[1] = unmap.args[2] = 2;
         r[IndexOf(r, T::kMap, 14)].args[1] = 2;
       },
       T::kTransition},
      {"ItIsSaidThatNothingMoves", "M2",
       [](Records& r) { r[IndexOf(r, T::kTransition)].cause = 0; }, T::kUnmap},
      {"NotSaidAtAll", "M2", [](Records& r) { Erase(r, IndexOf(r, T::kTransition)); }, T::kUnmap},
      {"OfAStepThatIsNotUnderWay", "M2",
       [](Records& r) { r[IndexOf(r, T::kTransition)].args[0] = 99; }, T::kTransition},
      {"TheNextStepHasBegun", "M2",
       [](Records& r) {
         const size_t at = IndexOf(r, T::kStepBegin, 2);
         MoveBehind(r, at, at, IndexOf(r, T::kPlanBegin, 2));
       },
       T::kUnmap},
      {"RemappedUnderItsCopy", "M2",
       [](Records& r) { r[IndexOf(r, T::kCopy, 5)].args[4] = r[IndexOf(r, T::kUnmap, 4)].time_ns; },
       T::kCopy},
      {"CopyMissing", "M3", [](Records& r) { Erase(r, IndexOf(r, T::kCopy, 5)); }, T::kGatePass},
      {"SaidToStayAtHomeButAway", "M3",
       [](Records& r) { SayThatItStays(r[IndexOf(r, T::kCopy, 6)]); }, T::kGatePass},
      {"SaidToStayWhereNothingMoves", "M2",
       [](Records& r) { SayThatItStays(r[IndexOf(r, T::kCopy, 2)]); }, T::kStripeStays},
      {"TheSlotThatTookTheRingsGranuleIsNotFilled", "M3",
       [](Records& r) {
         for (const T type : {T::kCopy, T::kGateArrive, T::kFaultMajor, T::kGatePass}) {
           Erase(r, IndexOf(r, type, 7));
         }
         Erase(r, IndexOf(r, T::kCopy, 3));  // so that it holds the bytes of another slot
         TraceRecord& transition = r[IndexOf(r, T::kTransition)];
         transition.args[3] -= TraceBuilder::kGranule;
         --transition.args[4];
         r[IndexOf(r, T::kStepEnd, 1)].args[4] -= 41'000;
       },
       T::kStepEnd},
      {"GateLeftOut", "M3",
       [](Records& r) {
         Erase(r, IndexOf(r, T::kGateArrive, 8));
         Erase(r, IndexOf(r, T::kGatePass, 8));
       },
       T::kStepEnd},
      {"FewerBytesThanTheRoundBefore", "A1",
       [](Records& r) { r[IndexOf(r, T::kPlacement)].args[5] += TraceBuilder::kGranule; },
       T::kPlacement},
      {"OneStripeTwice", "A1",
       [](Records& r) {
         const auto at = r.begin() + static_cast<ptrdiff_t>(IndexOf(r, T::kCopy, 6));
         r.insert(at, *at);
       },
       T::kTransition},
      {"BytesOfTheSmallerPlan", "A1",
       [](Records& r) { r[IndexOf(r, T::kTransition)].args[3] /= 2; }, T::kTransition},
      {"BytesOfTheLargerPlanAfterwards", "A1",
       [](Records& r) { r[IndexOf(r, T::kTransition, 1)].args[3] *= 2; }, T::kTransition},
      {"CopiedAheadWhereNothingIs", "A1",
       [](Records& r) {
         const size_t at = IndexOf(r, T::kCopy, 8);
         r.insert(r.begin() + static_cast<ptrdiff_t>(at), r[at]);
       },
       T::kTransition},
  };
  for (const Planted& p : planted) {
    TraceBuilder builder = MovingLife();
    p.plant(builder.records());
    const InvariantChecker checker = Check(builder);
    bool named = false;
    for (const Violation& v : checker.violations()) {
      named = named || (v.rule == p.rule && v.event.record.type == static_cast<uint16_t>(p.named));
    }
    EXPECT_TRUE(named) << p.name << ": " << First(checker);
  }
}

TraceBuilder InPlaceLife() {
  TraceBuilder builder;
  builder.Pool().Load().ReadInPlace().OpenStep(1).OpenStep(2).HomeFromInPlace().OpenStep(3);
  return builder;
}

TEST(InvariantChecker, WeightsReadInPlaceShowTheirBackingCopy) {
  const InvariantChecker checker = Check(InPlaceLife());
  EXPECT_EQ(checker.violation_count(), 0U) << First(checker);
  EXPECT_EQ(checker.steps(), 3U);
  EXPECT_EQ(checker.plans(), 3U);
}

TEST(InvariantChecker, WhatIsWrongWithReadingInPlaceIsFoundAndNamed) {
  // The backing copy's mappings are those of |kMap| 8 to 11.
  const Planted planted[] = {
      {"ShowsTheCopyOfAnotherSlot", "M3", [](Records& r) { r[IndexOf(r, T::kMap, 9)].args[2] = 4; },
       T::kMap},
      {"OfThePool", "G1", [](Records& r) { r[IndexOf(r, T::kMap, 9)].cause = 0; }, T::kMap},
      {"NotSaidToBeTheCopy", "G1", [](Records& r) { r[IndexOf(r, T::kMap, 9)].args[3] = 1; },
       T::kMap},
      {"OfTheKvCache", "O1", [](Records& r) { r[IndexOf(r, T::kMap, 9)].args[0] = 2; }, T::kMap},
      {"NothingStandsIn", "M3", [](Records& r) { Erase(r, IndexOf(r, T::kMap, 9)); }, T::kEvict},
      {"TheCopyIsOverwritten", "O1",
       [](Records& r) {
         const TraceRecord fill = r[IndexOf(r, T::kFill)];
         const auto at = r.begin() + static_cast<ptrdiff_t>(IndexOf(r, T::kStepBegin));
         r.insert(at, fill)->time_ns = std::next(at)->time_ns;
       },
       T::kFill},
      {"CopiedAllTheSame", "A1", [](Records& r) { r[IndexOf(r, T::kPlacement)].args[4] = 4; },
       T::kPlacement},
      {"AStepWithAStripe", "A1",
       [](Records& r) { r[IndexOf(r, T::kPlacement)].args[5] = TraceBuilder::kGranule; },
       T::kPlacement},
      {"NotFilledAtHome", "M3", [](Records& r) { Erase(r, IndexOf(r, T::kFill, 2)); },
       T::kStepBegin},
      {"UnmappedUnderAStep", "M2",
       [](Records& r) {
         const size_t at = IndexOf(r, T::kStepEnd, 1);
         MoveBehind(r, at, at, IndexOf(r, T::kPlanCommit, 2));
       },
       T::kUnmap},
  };
  for (const Planted& p : planted) {
    TraceBuilder builder = InPlaceLife();
    p.plant(builder.records());
    const InvariantChecker checker = Check(builder);
    bool named = false;
    for (const Violation& v : checker.violations()) {
      named = named || (v.rule == p.rule && v.event.record.type == static_cast<uint16_t>(p.named));
    }
    EXPECT_TRUE(named) << p.name << ": " << First(checker);
  }
}

TEST(InvariantChecker, AMovesRulesThatCannotBeDecidedAreNamed) {
  TraceBuilder builder = MovingLife();
  builder.mask = ~(uint64_t{1} << static_cast<unsigned>(T::kTransition));
  std::erase_if(builder.records(), [](const TraceRecord& r) {
    return r.type == static_cast<uint16_t>(T::kTransition);
  });
  const InvariantChecker checker = Check(builder);
  EXPECT_FALSE(checker.counts().contains("M2")) << First(checker);
  ASSERT_EQ(checker.notes().size(), 1U);
  EXPECT_NE(checker.notes()[0].find("transition was not recorded"), std::string::npos);
}

TEST(InvariantChecker, ADevicesTraceThatBeginsAnywhereIsAdoptedWithoutFalseAlarm) {
  for (const TraceBuilder& whole : {DeviceLife(), MovingLife()}) {
    for (size_t skip = 1; skip < whole.size(); ++skip) {
      TraceBuilder builder = whole;
      builder.records().erase(builder.records().begin(),
                              builder.records().begin() + static_cast<ptrdiff_t>(skip));
      const InvariantChecker checker = Check(builder);
      EXPECT_EQ(checker.violation_count(), 0U) << "from record " << skip << ": " << First(checker);
    }
  }
}

TEST(InvariantChecker, ATraceThatBeginsAnywhereIsAdoptedWithoutFalseAlarm) {
  TraceBuilder whole;
  whole.Life();
  for (size_t skip = 1; skip < whole.size(); ++skip) {
    TraceBuilder builder;
    builder.records().assign(whole.records().begin() + static_cast<ptrdiff_t>(skip),
                             whole.records().end());
    const InvariantChecker checker = Check(builder);
    EXPECT_EQ(checker.violation_count(), 0U) << "from record " << skip << ": " << First(checker);
  }
}

TEST(InvariantChecker, AnAttachedTraceIsCheckedFromItsSnapshotOn) {
  TraceBuilder builder;
  builder.Add(T::kSnapshotBegin, 0, {});
  builder.Pool().Load().GrowKv(0, 8, 4).Add(T::kSnapshotEnd, 0, {});
  builder.Evict().GrowKv(1, 5, 8).Step(3);
  const InvariantChecker good = Check(builder);
  EXPECT_EQ(good.violation_count(), 0U) << First(good);
  EXPECT_FALSE(good.notes().empty());
  Erase(builder.records(), IndexOf(builder.records(), T::kCopy));
  EXPECT_GT(Check(builder).violation_count(), 0U);
}

TEST(InvariantChecker, LossesMakeTheTraceInconclusiveNotWrong) {
  TraceBuilder builder;
  builder.Life();
  const size_t at = IndexOf(builder.records(), T::kMap, 3);
  TraceRecord drop = builder.records()[at];
  drop.type = static_cast<uint16_t>(T::kDrop);
  drop.args[0] = 10;
  builder.records().erase(builder.records().begin() + static_cast<ptrdiff_t>(at),
                          builder.records().begin() + static_cast<ptrdiff_t>(at) + 10);
  builder.records().insert(builder.records().begin() + static_cast<ptrdiff_t>(at), drop);
  const InvariantChecker checker = Check(builder);
  EXPECT_EQ(checker.violation_count(), 0U) << First(checker);
  EXPECT_FALSE(checker.conclusive());
}

TEST(InvariantChecker, RulesWhoseRecordsAreNotThereAreNamedNotGuessed) {
  TraceBuilder builder;
  builder.Life();
  builder.mask = uint64_t{1} << static_cast<unsigned>(T::kStepEnd);
  std::erase_if(builder.records(),
                [](const TraceRecord& r) { return r.type != static_cast<uint16_t>(T::kStepEnd); });
  const InvariantChecker checker = Check(builder);
  EXPECT_EQ(checker.violation_count(), 0U) << First(checker);
  EXPECT_GE(checker.notes().size(), 4U);
}

TEST(InvariantChecker, WhatIsLeftOpenCountsOnlyOnceTheProcessIsGone) {
  TraceBuilder builder;
  builder.Life();
  EXPECT_EQ(Check(builder, false).violation_count(), 0U);
  EXPECT_GE(Check(builder, true).counts().at("M1"), 1U);
}

}  // namespace
}  // namespace weir::trace_tool
