// A weight pager whose gates are passed by kernels (played by SimStepGates), two steps under way:
// what goes wrong, and that serving goes on.
#include "tests/pager/device_gates_fixture.h"

namespace weir {
namespace {

using test::CopyFault;
using test::kTimeoutNs;
using test::World;
using testing::SimStepGates;

constexpr EvictionTarget kTarget{.granules_per_layer = 5, .ring_slots = 2};

class DeviceGatesTest : public test::DeviceGatesFixture {
 protected:
  DeviceGatesTest() { EXPECT_TRUE(w.pager->Apply(kTarget).ok()); }
};

TEST_F(DeviceGatesTest, TwoStepsUnderWayReadTheRightBytes) {
  ServesOn(6);
  EXPECT_EQ(w.pager->stats().steps, 6U);
  EXPECT_EQ(w.pager->stats().gate_arrivals, 6 * w.pager->plan().chunks().size());
  EXPECT_FALSE(w.pager->BeginStep().ok() && w.pager->BeginStep().ok() && w.pager->BeginStep().ok());
}

TEST_F(DeviceGatesTest, ALateStripeIsAFaultWithItsWaitMeasured) {
  ServesOn();
  w.sim()->faults().late_ns = 1'000'000;
  w.sim()->faults().NthCopy(SimCopyFault::kLate, 1);
  const WeightPagerStats before = w.pager->stats();
  ServesOn();
  EXPECT_GT(w.pager->stats().faults, before.faults);
  EXPECT_GE(w.pager->stats().max_stall_ns, 500'000U);
  EXPECT_EQ(w.pager->stats().repairs, 0U);
}

TEST_F(DeviceGatesTest, AFailedCopyFailsTheStepThatNeedsItAndTheNextOneIsWhole) {
  for (uint64_t n = 1; n <= 24; ++n) {
    SCOPED_TRACE("copy " + std::to_string(n));
    w.driver.on_copy = Nth(n, CopyFault::kFail);
    int failed = 0;
    for (int i = 0; i < 3; ++i) {
      const Status step = Collect(Begin());
      if (step.ok()) continue;
      ++failed;
      EXPECT_EQ(step.code(), StatusCode::kDriver) << step.ToString();
      EXPECT_NE(step.message().find("has not arrived within 20 ms"), std::string::npos)
          << step.ToString();
    }
    w.driver.on_copy = {};
    EXPECT_LE(failed, 1);
    ServesOn();
  }
}

TEST_F(DeviceGatesTest, AGateThatNeverOpensIsReportedAndNothingMovesUntilTheCopyCan) {
  ServesOn();
  w.driver.blocker = *w.driver.CreateCounter();
  w.driver.on_copy = Nth(1, CopyFault::kBlock);  // behind the prefix: layer 2's first stripe
  const uint64_t arrivals = w.pager->stats().gate_arrivals;
  const TimeNs begin = w.driver.Now();
  const Status step = Collect(Begin());
  EXPECT_EQ(step.code(), StatusCode::kDriver);
  EXPECT_NE(step.message().find("gate 4 (layer 2, segment 0"), std::string::npos)
      << step.ToString();
  EXPECT_GE(w.driver.Now() - begin, kTimeoutNs);
  EXPECT_LT(w.driver.Now() - begin, 2 * kTimeoutNs) << "later gates of a failed step do not wait";
  EXPECT_EQ(w.pager->stats().gate_arrivals - arrivals, w.pager->plan().chunks().size());
  // Nothing may be remapped under a copy that can still run.
  EXPECT_FALSE(w.pager->Apply({}).ok());
  EXPECT_FALSE(w.pager->BeginStep().ok());
  w.driver.on_copy = {};
  w.driver.StoreCounter(w.driver.blocker, 1);
  ServesOn();
  EXPECT_TRUE(w.pager->Apply({}).ok());
  EXPECT_TRUE(w.BytesAre(0, w.bytes.size()));
}

TEST_F(DeviceGatesTest, WhenTheFirstOfTwoStepsFailsBothAreVoidAndTheNextAreWhole) {
  for (const CopyFault fault : {CopyFault::kFail, CopyFault::kBlock}) {
    for (uint64_t n = 1; n <= 40; n += 3) {
      SCOPED_TRACE("copy " + std::to_string(n));
      w.driver.blocker = *w.driver.CreateCounter();
      w.driver.on_copy = Nth(n, fault);
      SimStepGates first = Begin();
      SimStepGates second = Begin();
      w.driver.on_copy = {};
      const Status a = Collect(std::move(first));
      w.driver.StoreCounter(w.driver.blocker, 1);
      const Status b = Collect(std::move(second));
      if (!a.ok()) {
        // The second may have found all its stripes: what it computed with is void all the same.
        EXPECT_FALSE(b.ok());
      }
      ServesOn();
    }
  }
}

TEST_F(DeviceGatesTest, ApplyRightAfterAFailedStepMovesTheBorder) {
  for (uint64_t n = 1; n <= 40; n += 3) {
    for (const EvictionTarget& target :
         {EvictionTarget{.granules_per_layer = 2, .ring_slots = 2}, EvictionTarget{}}) {
      SCOPED_TRACE("copy " + std::to_string(n));
      w.driver.on_copy = Nth(n, CopyFault::kFail);
      SimStepGates first = Begin();
      SimStepGates second = Begin();
      w.driver.on_copy = {};
      (void)Collect(std::move(first));
      EXPECT_FALSE(w.pager->Apply(target).ok()) << "a step is under way";
      (void)Collect(std::move(second));
      const Status applied = w.pager->Apply(target);
      ASSERT_TRUE(applied.ok()) << applied.ToString();
      w.CheckAll();
      ServesOn();
      ASSERT_TRUE(w.pager->Apply(kTarget).ok());
      ServesOn();
    }
  }
}

TEST_F(DeviceGatesTest, AStepWhoseCopiesCannotBeQueuedDoesNotStopTheBorder) {
  for (uint64_t n = 1; n <= 20; ++n) {
    SCOPED_TRACE("copy " + std::to_string(n));
    w.driver.on_copy = [n, i = uint64_t{0}]() mutable {
      return ++i >= n ? CopyFault::kRefuse : CopyFault::kNone;
    };
    const bool begun = w.pager->BeginStep().ok();
    w.driver.on_copy = {};
    if (begun) w.pager->CancelStep();
    // What was queued waits for departures that never come.
    const Status applied = w.pager->Apply({.granules_per_layer = 2, .ring_slots = 2});
    ASSERT_TRUE(applied.ok()) << applied.ToString();
    ServesOn();
    ASSERT_TRUE(w.pager->Apply(kTarget).ok());
    ServesOn();
  }
}

TEST_F(DeviceGatesTest, ACancelledStepDoesNotConcernTheOneBeforeIt) {
  ServesOn();
  SimStepGates first = Begin();
  SimStepGates cancelled = Begin();
  w.pager->CancelStep();
  EXPECT_FALSE(w.pager->BeginStep().ok()) << "its kernels may still depart from its chunks";
  const Status collected = Collect(std::move(first));
  EXPECT_TRUE(collected.ok()) << collected.ToString();
  (void)RunKernels(cancelled);
  ServesOn();
}

TEST_F(DeviceGatesTest, IsDestroyedWithCopiesQueuedAndStepsUnderWay) {
  for (int steps = 0; steps <= 2; ++steps) {
    World world(Options());
    ASSERT_TRUE(world.pager->Apply(kTarget).ok());
    for (int i = 0; i < steps; ++i) ASSERT_TRUE(world.pager->BeginStep().ok());
    world.driver.on_copy = {};
    world.pager.reset();
    EXPECT_EQ(world.sim()->word_count(), 0U);
    EXPECT_EQ(world.pool->counts().free, world.pool->counts().total);
  }
}

TEST_F(DeviceGatesTest, IsDestroyedRightAfterAFailedStep) {
  for (uint64_t n = 1; n <= 24; n += 5) {
    World world(Options());
    ASSERT_TRUE(world.pager->Apply(kTarget).ok());
    world.driver.on_copy = Nth(n, CopyFault::kFail);
    ASSERT_TRUE(world.pager->BeginStep().ok());
    ASSERT_TRUE(world.pager->BeginStep().ok());
    DeviceGateLog log;
    log.failed_gate = 0;
    EXPECT_FALSE(world.pager->Report(log).ok());
    EXPECT_FALSE(world.pager->EndStep().ok());
    world.pager.reset();
    EXPECT_EQ(world.sim()->word_count(), 0U);
    EXPECT_EQ(world.pool->counts().free, world.pool->counts().total);
  }
}

}  // namespace
}  // namespace weir
