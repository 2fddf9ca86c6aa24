#include "pager/weight_pager.h"

#include <map>

#include "tests/pager/pager_world.h"
#include "vmm/trace.h"

namespace weir {
namespace {

using test::Backing;
using test::DriverKind;
using test::kGranule;
using test::RegularLayout;
using test::World;

// 8 layers of 3.5 + 5.25 granules, off the grid, with gaps that are never evicted.
WeightLayout Layout() {
  return RegularLayout(8, {57'344, 86'016}, 3000, 500);
}

class WeightPagerTest : public testing::TestWithParam<DriverKind> {
 protected:
  test::WorldOptions Options() {
    return {.driver = GetParam(), .backing = Backing::kHost, .layout = Layout()};
  }
};
INSTANTIATE_TEST_SUITE_P(Drivers, WeightPagerTest,
                         testing::Values(DriverKind::kHost, DriverKind::kSim),
                         [](const auto& param) { return test::KindName(param.param); });

TEST_P(WeightPagerTest, WithNothingEvictedAStepMakesNoDriverCall) {
  World w(Options());
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
  EXPECT_EQ(w.pager->stats().steps, 3U);
  EXPECT_EQ(w.pager->stats().gate_arrivals, 0U);
  w.CheckAll();
}

TEST_P(WeightPagerTest, AfterComingHomeAStepMakesNoDriverCallAgain) {
  World w(Options());
  ASSERT_TRUE(w.pager->Apply({.granules_per_layer = 4}).ok());
  ASSERT_TRUE(w.Step().ok());
  ASSERT_TRUE(w.pager->Apply({}).ok());
  const uint64_t calls = w.driver.calls;
  ASSERT_TRUE(w.pager->BeginStep().ok());
  for (uint32_t g = 0; g < w.pager->layout().gates(); ++g) {
    ASSERT_TRUE(w.pager->Arrive(g).ok());
    w.pager->Depart(g);
  }
  ASSERT_TRUE(w.pager->EndStep().ok());
  EXPECT_EQ(w.driver.calls, calls);
  w.CheckAll();
}

TEST_P(WeightPagerTest, EvictingWorksWithAnEmptyPoolAndFreesWhatThePlanSays) {
  World w(Options());
  ASSERT_EQ(w.pool->Available(), 0U);
  const Status applied = w.pager->Apply({.granules_per_layer = 5, .ring_slots = 2});
  ASSERT_TRUE(applied.ok()) << applied.ToString();
  EXPECT_EQ(w.pager->plan().evicted_granules(), 40U);
  EXPECT_EQ(w.pool->Available(), 30U);
  w.CheckAll();
  for (int i = 0; i < 5; ++i) {
    const Status step = w.Step();
    ASSERT_TRUE(step.ok()) << step.ToString();
    w.CheckAll();
  }
  EXPECT_EQ(w.pager->stats().gate_arrivals, 5U * 16U);
  EXPECT_EQ(w.pager->stats().transitions, 1U);
  EXPECT_EQ(w.pager->stats().granules_remapped, 40U);
  EXPECT_EQ(w.pager->stats().repairs, 0U);
  // 5 passes and the prefix of the sixth.
  EXPECT_EQ(w.pager->stats().chunks_copied, 5U * 16U + 4U);
  EXPECT_EQ(w.pager->stats().bytes_copied, (5 * 40 + 10) * kGranule);
}

TEST_P(WeightPagerTest, WhenAllComesHomeEveryByteIsWhatWasLoaded) {
  World w(Options());
  ASSERT_TRUE(w.pager->Apply({.granules_per_layer = w.pager->max_granules_per_layer()}).ok());
  ASSERT_TRUE(w.Step().ok());
  ASSERT_TRUE(w.pager->Apply({.granules_per_layer = 2, .ring_slots = 3}).ok());
  ASSERT_TRUE(w.Step().ok());
  w.CheckAll();
  ASSERT_TRUE(w.pager->Apply({}).ok());
  w.CheckAll();
  EXPECT_EQ(w.pool->Available(), 0U);
  EXPECT_TRUE(w.BytesAre(0, w.bytes.size()));
  ASSERT_TRUE(w.Step().ok());
}

TEST_P(WeightPagerTest, ABudgetSmallerThanTheWeightsLoadsAndServes) {
  auto options = Options();
  options.initial = {.granules_per_layer = 6, .ring_slots = 2};
  options.granules = static_cast<uint32_t>(CeilDiv(options.layout.region_bytes, kGranule)) - 36;
  World w(options);
  ASSERT_TRUE(w.created.ok()) << w.created.ToString();
  EXPECT_EQ(w.pool->Available(), 0U);
  w.CheckAll();
  for (int i = 0; i < 4; ++i) {
    const Status step = w.Step();
    ASSERT_TRUE(step.ok()) << step.ToString();
  }
  // Nothing to come home to: refused, and serving goes on.
  const Status refused = w.pager->Apply({});
  EXPECT_EQ(refused.code(), StatusCode::kNoMemory) << refused.ToString();
  EXPECT_EQ(w.pager->plan().target().granules_per_layer, 6U);
  ASSERT_TRUE(w.Step().ok());
  w.CheckAll();
}

TEST_P(WeightPagerTest, ABudgetThatIsTooSmallSaysHowManyGranulesAreMissing) {
  auto options = Options();
  options.granules = 10;
  World w(options);
  EXPECT_EQ(w.created.code(), StatusCode::kNoMemory);
  EXPECT_NE(w.created.message().find("missing"), std::string::npos) << w.created.ToString();
}

TEST_P(WeightPagerTest, WholeLayersServeToo) {
  World w(Options());
  const Status applied =
      w.pager->Apply({.placement = Placement::kLayer, .layers = 5, .ring_slots = 2});
  ASSERT_TRUE(applied.ok()) << applied.ToString();
  w.CheckAll();
  for (int i = 0; i < 4; ++i) {
    const Status step = w.Step();
    ASSERT_TRUE(step.ok()) << step.ToString();
  }
  // From one placement straight to the other.
  ASSERT_TRUE(w.pager->Apply({.granules_per_layer = 3, .ring_slots = 3}).ok());
  ASSERT_TRUE(w.Step().ok());
  w.CheckAll();
}

TEST_P(WeightPagerTest, PaddingThatNobodyWroteIsTheSameHereAndInTheBackingCopy) {
  auto options = Options();
  options.load = false;
  World w(options);
  // Only every other kilobyte is written.
  for (uint64_t at = 0; at + 1024 <= w.bytes.size(); at += 2048) {
    ASSERT_TRUE(w.pager->Write(at, std::span(w.bytes).subspan(at, 1024)).ok());
  }
  ASSERT_TRUE(w.pager->Seal().ok());
  w.CheckAll();
}

TEST_P(WeightPagerTest, TheSameTargetTwiceIsNoTransition) {
  World w(Options());
  ASSERT_TRUE(w.pager->Apply({.granules_per_layer = 2}).ok());
  const uint64_t calls = w.driver.calls;
  ASSERT_TRUE(w.pager->Apply({.granules_per_layer = 2}).ok());
  EXPECT_EQ(w.driver.calls, calls);
  EXPECT_EQ(w.pager->stats().transitions, 1U);
}

TEST_P(WeightPagerTest, MovingTheBorderByOneRemapsOnlyTheDifference) {
  World w(Options());
  ASSERT_TRUE(w.pager->Apply({.granules_per_layer = 3, .ring_slots = 2}).ok());
  const uint64_t before = w.pager->stats().granules_remapped;
  ASSERT_TRUE(w.pager->Apply({.granules_per_layer = 4, .ring_slots = 2}).ok());
  // 8 granules leave; the others' ring places shift at most once each.
  EXPECT_LE(w.pager->stats().granules_remapped - before, 32U);
  ASSERT_TRUE(w.Step().ok());
  w.CheckAll();
}

TEST_P(WeightPagerTest, CallsInTheWrongStateAreRefusedAndChangeNothing) {
  auto options = Options();
  options.load = false;
  World w(options);
  EXPECT_EQ(w.pager->BeginStep().code(), StatusCode::kBadState);
  EXPECT_EQ(w.pager->Apply({.granules_per_layer = 1}).code(), StatusCode::kBadState);
  w.Load();
  EXPECT_EQ(w.pager->Write(0, w.bytes).code(), StatusCode::kBadState);
  EXPECT_EQ(w.pager->Seal().code(), StatusCode::kBadState);
  EXPECT_EQ(w.pager->EndStep().code(), StatusCode::kBadState);
  ASSERT_TRUE(w.pager->BeginStep().ok());
  EXPECT_EQ(w.pager->BeginStep().code(), StatusCode::kBadState);
  EXPECT_EQ(w.pager->Apply({.granules_per_layer = 1}).code(), StatusCode::kBadState);
  EXPECT_TRUE(w.pager->CheckIntegrity().ok());
  EXPECT_EQ(w.pager->Arrive(1000).code(), StatusCode::kInvalidArgument);
  ASSERT_TRUE(w.Compute().ok());
  ASSERT_TRUE(w.pager->EndStep().ok());
}

TEST_P(WeightPagerTest, WithoutABackingCopyNothingLeaves) {
  auto options = Options();
  options.backing = Backing::kNone;
  World w(options);
  EXPECT_EQ(w.pager->Apply({.granules_per_layer = 1}).code(), StatusCode::kBadState);
  ASSERT_TRUE(w.Step().ok());
  w.CheckAll();
}

TEST_P(WeightPagerTest, TheTraceTellsWhatLeftWhatCameAndEveryGate) {
  Tracer tracer({});
  SetTracer(&tracer);
  {
    World w(Options());
    ASSERT_TRUE(w.pager->Apply({.granules_per_layer = 5, .ring_slots = 2}).ok());
    ASSERT_TRUE(w.Step().ok());
    ASSERT_TRUE(w.Step().ok());
    ASSERT_TRUE(w.pager->Apply({}).ok());
    std::map<TraceType, uint64_t> count;
    std::map<TraceType, uint64_t> slots;
    uint64_t copied = 0;
    tracer.Drain([&](const TraceRecord& r) {
      const auto type = static_cast<TraceType>(r.type);
      ++count[type];
      slots[type] += r.args[2];
      if (type == TraceType::kCopy || type == TraceType::kFill) {
        EXPECT_LE(r.args[4], r.args[5]);
      }
      if (type == TraceType::kCopy) copied += r.args[3];
    });
    EXPECT_EQ(slots[TraceType::kEvict], 40U);
    // Two passes and the prefix of the third.
    EXPECT_EQ(copied, (2 * 40U + 10U) * kGranule);
    EXPECT_EQ(copied, w.pager->stats().bytes_copied);
    EXPECT_EQ(slots[TraceType::kFill], 40U);
    EXPECT_EQ(count[TraceType::kGateArrive], 32U);
    EXPECT_EQ(count[TraceType::kGatePass], 32U);
    EXPECT_EQ(count[TraceType::kFaultMajor], w.pager->stats().faults);
    EXPECT_EQ(tracer.dropped(), 0U);
  }
  SetTracer(nullptr);
}

TEST(WeightPagerFileTest, WeightsStreamFromAFile) {
  World w({.driver = DriverKind::kHost, .backing = Backing::kFile, .layout = Layout()});
  ASSERT_TRUE(w.pager->Apply({.granules_per_layer = 5, .ring_slots = 2}).ok());
  for (int i = 0; i < 5; ++i) {
    const Status step = w.Step();
    ASSERT_TRUE(step.ok()) << step.ToString();
  }
  ASSERT_TRUE(w.pager->Apply({.granules_per_layer = 1}).ok());
  ASSERT_TRUE(w.Step().ok());
  ASSERT_TRUE(w.pager->Apply({}).ok());
  w.CheckAll();
  EXPECT_TRUE(w.BytesAre(0, w.bytes.size()));
}

}  // namespace
}  // namespace weir
