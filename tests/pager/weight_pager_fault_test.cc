// What goes wrong under a weight pager, and that serving goes on.
#include <atomic>

#include "tests/pager/pager_world.h"

namespace weir {
namespace {

using test::Backing;
using test::CopyFault;
using test::DriverKind;
using test::RegularLayout;
using test::World;

class WeightPagerFaultTest : public testing::TestWithParam<DriverKind> {
 protected:
  test::WorldOptions Options() {
    test::WorldOptions options{.driver = GetParam(),
                               .backing = Backing::kHost,
                               .layout = RegularLayout(8, {57'344, 86'016}, 3000, 500)};
    options.pager.verify_stripes = true;
    return options;
  }
  // |fault| on the |n|-th coming copy, for |times| copies.
  static std::function<CopyFault()> Nth(uint64_t n, CopyFault fault, uint64_t times = 1) {
    return [n, fault, times, i = uint64_t{0}]() mutable {
      ++i;
      return i >= n && i < n + times ? fault : CopyFault::kNone;
    };
  }
};
INSTANTIATE_TEST_SUITE_P(Drivers, WeightPagerFaultTest,
                         testing::Values(DriverKind::kHost, DriverKind::kSim),
                         [](const auto& param) { return test::KindName(param.param); });

constexpr EvictionTarget kTarget{.granules_per_layer = 5, .ring_slots = 2};

TEST_P(WeightPagerFaultTest, AMapFailureAnywhereInAPlanLeavesThePreviousStateServing) {
  auto options = Options();
  options.poison = false;  // its maps may fail, too, but are no part of a plan
  World w(options);
  for (int fail_at = 1; fail_at < 60; fail_at += 3) {
    int maps = 0;
    w.driver.map_fails = [&] { return ++maps == fail_at; };
    const EvictionTarget before = w.pager->plan().target();
    const EvictionTarget wanted = before.empty() ? kTarget : EvictionTarget{};
    const Status applied = w.pager->Apply(wanted);
    w.driver.map_fails = {};
    if (maps < fail_at) {
      EXPECT_TRUE(applied.ok()) << applied.ToString();
    } else {
      EXPECT_EQ(applied.code(), StatusCode::kDriver) << applied.ToString();
      EXPECT_EQ(w.pager->plan().target(), before);
    }
    w.CheckAll();
    const Status step = w.Step();
    ASSERT_TRUE(step.ok()) << "map " << fail_at << ": " << step.ToString();
    ASSERT_TRUE(w.pager->Apply(wanted).ok());
    ASSERT_TRUE(w.Step().ok());
  }
}

TEST_P(WeightPagerFaultTest, AFailedCopyIsFetchedAgainAndServingGoesOn) {
  for (uint64_t n = 1; n <= 24; ++n) {
    World w(Options());
    ASSERT_TRUE(w.pager->Apply(kTarget).ok());
    ASSERT_TRUE(w.Step().ok());
    w.driver.on_copy = Nth(n, CopyFault::kFail);
    for (int i = 0; i < 3; ++i) {
      const Status step = w.Step();
      ASSERT_TRUE(step.ok()) << "copy " << n << ": " << step.ToString();
    }
    EXPECT_GE(w.pager->stats().repairs, 1U) << "copy " << n;
    w.CheckAll();
  }
}

TEST_P(WeightPagerFaultTest, ALostCopyIsNoticedByItsChecksumAndFetchedAgain) {
  for (uint64_t n = 1; n <= 20; ++n) {
    World w(Options());
    ASSERT_TRUE(w.pager->Apply(kTarget).ok());
    w.driver.on_copy = Nth(n, CopyFault::kLose);
    for (int i = 0; i < 3; ++i) {
      const Status step = w.Step();
      ASSERT_TRUE(step.ok()) << "copy " << n << ": " << step.ToString();
    }
    EXPECT_EQ(w.pager->stats().repairs, 1U) << "copy " << n;
    w.CheckAll();
  }
}

TEST_P(WeightPagerFaultTest, ARefusedCopyIsAskedForAgain) {
  World w(Options());
  ASSERT_TRUE(w.pager->Apply(kTarget).ok());
  w.driver.on_copy = Nth(3, CopyFault::kRefuse, 2);
  for (int i = 0; i < 3; ++i) {
    const Status step = w.Step();
    ASSERT_TRUE(step.ok()) << step.ToString();
  }
  w.CheckAll();
}

TEST_P(WeightPagerFaultTest, ADriverThatRefusesEveryCopyFailsTheStepAndRecovers) {
  World w(Options());
  ASSERT_TRUE(w.pager->Apply(kTarget).ok());
  ASSERT_TRUE(w.Step().ok());
  w.driver.on_copy = [] { return CopyFault::kRefuse; };
  for (int i = 0; i < 2; ++i) {
    const Status step = w.Step();
    EXPECT_EQ(step.code(), StatusCode::kDriver) << step.ToString();
    EXPECT_NE(step.message().find("copy refused"), std::string::npos) << step.ToString();
  }
  w.driver.on_copy = {};
  const Status step = w.Step();
  ASSERT_TRUE(step.ok()) << step.ToString();
  w.CheckAll();
}

TEST_P(WeightPagerFaultTest, ADriverThatKeepsFailingCopiesFailsTheStepWithTheStripeNamed) {
  World w(Options());
  ASSERT_TRUE(w.pager->Apply(kTarget).ok());
  ASSERT_TRUE(w.Step().ok());
  w.driver.on_copy = [] { return CopyFault::kFail; };
  // The prefix was copied before the fault began; the first layer after it cannot come.
  for (int i = 0; i < 3; ++i) {
    const Status step = w.Step();
    EXPECT_EQ(step.code(), StatusCode::kDriver) << step.ToString();
    EXPECT_NE(step.message().find("layer"), std::string::npos) << step.ToString();
    EXPECT_NE(step.message().find("copy failed"), std::string::npos) << step.ToString();
  }
  w.driver.on_copy = {};
  for (int i = 0; i < 3; ++i) {
    const Status step = w.Step();
    ASSERT_TRUE(step.ok()) << step.ToString();
  }
  w.CheckAll();
}

TEST_P(WeightPagerFaultTest, AGateThatNeverOpensFailsTheStepInTimeAndNamesTheStripe) {
  auto options = Options();
  options.pager.gate_timeout_ns = 20'000'000;
  World w(options);
  ASSERT_TRUE(w.pager->Apply(kTarget).ok());
  ASSERT_TRUE(w.Step().ok());
  w.driver.blocker = *w.driver.CreateCounter();
  w.driver.on_copy = Nth(1, CopyFault::kBlock);  // behind the prefix: layer 2's first stripe
  for (int i = 0; i < 2; ++i) {
    const Status step = w.Step();
    EXPECT_EQ(step.code(), StatusCode::kDriver) << step.ToString();
    if (i == 0) {
      EXPECT_NE(step.message().find("gate 4 (layer 2, segment 0"), std::string::npos)
          << step.ToString();
      EXPECT_NE(step.message().find("20 ms"), std::string::npos) << step.ToString();
    }
    // Nothing may be remapped under a copy that can still run.
    EXPECT_FALSE(w.pager->Apply({}).ok());
  }
  w.driver.StoreCounter(w.driver.blocker, 1);
  const Status step = w.Step();
  ASSERT_TRUE(step.ok()) << step.ToString();
  w.CheckAll();
}

TEST_P(WeightPagerFaultTest, AStepGivenUpInTheMiddleIsReportedAndTheNextOneIsWhole) {
  World w(Options());
  ASSERT_TRUE(w.pager->Apply(kTarget).ok());
  for (uint32_t stop = 0; stop < w.pager->layout().gates(); ++stop) {
    ASSERT_TRUE(w.pager->BeginStep().ok());
    for (uint32_t g = 0; g < stop; ++g) {
      ASSERT_TRUE(w.pager->Arrive(g).ok());
      w.pager->Depart(g);
    }
    const Status ended = w.pager->EndStep();
    EXPECT_EQ(ended.code(), StatusCode::kBadState);
    EXPECT_NE(ended.message().find("gate " + std::to_string(stop) + " "), std::string::npos)
        << ended.ToString();
    const Status step = w.Step();
    ASSERT_TRUE(step.ok()) << step.ToString();
    w.CheckAll();
  }
}

TEST_P(WeightPagerFaultTest, WhenRestoredWeightsCannotBeFilledTheyGoAwayAgain) {
  World w(Options());
  ASSERT_TRUE(w.pager->Apply(kTarget).ok());
  ASSERT_TRUE(w.Step().ok());
  for (const CopyFault fault : {CopyFault::kFail, CopyFault::kRefuse, CopyFault::kLose}) {
    w.driver.on_copy = [fault] { return fault; };
    w.driver.read_fails = [&w](VirtAddr from) { return from - w.base >= w.bytes.size(); };
    const Status applied = w.pager->Apply({.granules_per_layer = 2});
    w.driver.on_copy = {};
    w.driver.read_fails = {};
    EXPECT_FALSE(applied.ok());
    EXPECT_EQ(w.pager->plan().target(), kTarget);
    w.CheckAll();
    const Status step = w.Step();
    ASSERT_TRUE(step.ok()) << step.ToString();
  }
  ASSERT_TRUE(w.pager->Apply({}).ok());
  EXPECT_TRUE(w.BytesAre(0, w.bytes.size()));
}

TEST_P(WeightPagerFaultTest, WhatNoStreamCarriesComesHomeThroughTheHost) {
  World w(Options());
  for (const CopyFault fault : {CopyFault::kFail, CopyFault::kRefuse, CopyFault::kLose}) {
    ASSERT_TRUE(w.pager->Apply(kTarget).ok());
    ASSERT_TRUE(w.Step().ok());
    EXPECT_TRUE(w.pager->copy_error().ok());
    w.driver.on_copy = [fault] { return fault; };
    const Status step = w.Step();
    EXPECT_FALSE(step.ok());
    EXPECT_FALSE(w.pager->copy_error().ok());
    const Status applied = w.pager->Apply({});
    EXPECT_TRUE(applied.ok()) << applied.ToString();
    EXPECT_TRUE(w.Step().ok());
    EXPECT_TRUE(w.pager->copy_error().ok());
    w.driver.on_copy = {};
    EXPECT_TRUE(w.BytesAre(0, w.bytes.size()));
    w.CheckAll();
  }
}

TEST_P(WeightPagerFaultTest, AStreamThatCannotBeReplacedIsAnErrorUntilItCan) {
  World w(Options());
  ASSERT_TRUE(w.pager->Apply(kTarget).ok());
  ASSERT_TRUE(w.Step().ok());
  w.driver.on_copy = Nth(1, CopyFault::kFail);
  w.driver.create_stream_fails = [] { return true; };
  EXPECT_FALSE(w.Step().ok());
  w.driver.create_stream_fails = {};
  for (int i = 0; i < 2; ++i) {
    const Status step = w.Step();
    ASSERT_TRUE(step.ok()) << step.ToString();
  }
  w.CheckAll();
}

TEST(WeightPagerLatenessTest, ALateStripeIsAFaultWithItsWaitMeasured) {
  World w({.driver = DriverKind::kHost,
           .backing = Backing::kHost,
           .layout = RegularLayout(8, {57'344, 86'016})});
  ASSERT_TRUE(w.pager->Apply(kTarget).ok());
  ASSERT_TRUE(w.Step().ok());
  const WeightPagerStats before = w.pager->stats();
  w.driver.on_copy = [] { return CopyFault::kDelay; };
  const Status step = w.Step();
  ASSERT_TRUE(step.ok()) << step.ToString();
  EXPECT_GE(w.pager->stats().faults, before.faults + 8);
  EXPECT_GE(w.pager->stats().max_stall_ns, 500'000U);
  EXPECT_GE(w.pager->stats().stall_ns, before.stall_ns + 8 * 1'000'000U);
}

}  // namespace
}  // namespace weir
