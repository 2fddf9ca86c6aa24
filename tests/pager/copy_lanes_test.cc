// CopyLanes by themselves: what is in which order, and what a lane that fails does.
#include "pager/copy_lanes.h"

#include "tests/pager/pager_world.h"

namespace weir {
namespace {

using test::DriverKind;

class CopyLanesTest : public testing::TestWithParam<DriverKind> {
 protected:
  CopyLanesTest() {
    driver_.SetCopyEngine(true);
    backing_ = std::move(*CreateMemoryBackingStore(driver_, Tier::kHost, 1 << 20, 1 << 16));
    counter_ = *driver_.CreateCounter();
    blocker_ = *driver_.CreateCounter();
  }
  ~CopyLanesTest() override {
    driver_.StoreCounter(blocker_, 1);
    EXPECT_TRUE(lanes_.Close().ok());
  }
  void Open() {
    const Status opened = lanes_.Open(*backing_);
    ASSERT_TRUE(opened.ok()) << opened.ToString();
  }
  // Whatever can run has run. Real streams are given a moment, in which they could do wrong.
  void Settle() {
    if (auto* sim = dynamic_cast<SimDriver*>(base_.get())) {
      sim->AdvanceBy(1'000'000);
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
  bool CounterComes(uint64_t value) {
    return driver_.HostWaitCounter(counter_, value, 5'000'000'000).ok();
  }

  std::unique_ptr<Driver> base_ = test::MakeDriver(GetParam());
  test::FaultDriver driver_{*base_};
  std::unique_ptr<BackingStore> backing_;
  CopyLanes lanes_{driver_, "lanes"};
  VirtAddr counter_ = 0, blocker_ = 0;
};
INSTANTIATE_TEST_SUITE_P(Drivers, CopyLanesTest,
                         testing::Values(DriverKind::kHost, DriverKind::kSim),
                         [](const auto& param) { return test::KindName(param.param); });

TEST_P(CopyLanesTest, ChunksTakeTurns) {
  Open();
  ASSERT_EQ(lanes_.count(), 2U);
  EXPECT_NE(lanes_.Of(0), lanes_.Of(1));
  for (uint64_t n = 0; n < 9; ++n) EXPECT_EQ(lanes_.Of(n), lanes_.Of(n % 2));
}

TEST_P(CopyLanesTest, WhatFollowsComesBehindTheOtherLaneAndNothingElseWaits) {
  Open();
  ASSERT_TRUE(driver_.WaitCounter(lanes_.Of(0), blocker_, 1).ok());
  ASSERT_TRUE(driver_.WriteCounter(lanes_.Of(1), counter_, 1).ok());
  ASSERT_TRUE(lanes_.Follow(1).ok());
  ASSERT_TRUE(driver_.WriteCounter(lanes_.Of(1), counter_, 2).ok());
  EXPECT_TRUE(CounterComes(1)) << "what is ahead of Follow runs at once";
  Settle();
  EXPECT_EQ(driver_.LoadCounter(counter_), 1U);
  driver_.StoreCounter(blocker_, 1);
  EXPECT_TRUE(CounterComes(2));
}

TEST_P(CopyLanesTest, TheEventBehindAllAndTheJoinedLaneWaitForEitherLane) {
  for (const uint64_t blocked : {0U, 1U}) {
    SCOPED_TRACE("lane " + std::to_string(blocked));
    CopyLanes lanes(driver_, "lanes");
    ASSERT_TRUE(lanes.Open(*backing_).ok());
    driver_.StoreCounter(counter_, 0);
    driver_.StoreCounter(blocker_, 0);
    ASSERT_TRUE(driver_.WaitCounter(lanes.Of(blocked), blocker_, 1).ok());
    const Result<EventId> all = lanes.RecordAll();
    const Result<StreamId> joined = lanes.Join();
    ASSERT_TRUE(all.ok() && joined.ok());
    ASSERT_TRUE(driver_.WriteCounter(*joined, counter_, 1).ok());
    Settle();
    EXPECT_FALSE(driver_.IsComplete(*all).value());
    EXPECT_EQ(driver_.LoadCounter(counter_), 0U);
    driver_.StoreCounter(blocker_, 1);
    EXPECT_TRUE(driver_.Wait(*all).ok());
    EXPECT_TRUE(CounterComes(1));
    EXPECT_TRUE(lanes.Close().ok());
  }
}

TEST_P(CopyLanesTest, ALaneThatFailsIsSeenWhileTheOtherWaitsAndTakesItAlong) {
  Open();
  for (const uint64_t n : {0U, 1U}) ASSERT_TRUE(lanes_.Follow(n).ok());
  EXPECT_TRUE(lanes_.Health().ok());
  ASSERT_TRUE(driver_.WaitCounter(lanes_.Of(0), blocker_, 1).ok());
  ASSERT_TRUE(
      driver_.HostFunction(lanes_.Of(1), [] { return DriverError("injected: copy failed"); }).ok());
  ASSERT_TRUE(lanes_.Follow(0).ok());
  ASSERT_TRUE(driver_.WriteCounter(lanes_.Of(0), counter_, 1).ok());
  const Result<EventId> last = lanes_.RecordBehind(0);
  ASSERT_TRUE(last.ok());
  Settle();
  EXPECT_FALSE(driver_.IsComplete(*last).value()) << "it has not come to the failure";
  EXPECT_NE(lanes_.Health().message().find("copy failed"), std::string::npos)
      << lanes_.Health().ToString();
  driver_.StoreCounter(blocker_, 1);
  EXPECT_FALSE(driver_.Wait(*last).ok());
  EXPECT_EQ(driver_.LoadCounter(counter_), 0U) << "nothing behind the failure has an effect";
}

TEST_P(CopyLanesTest, AllOpenOrNoneAndWhatIsNotOpenSaysSo) {
  int streams = 0;
  driver_.create_stream_fails = [&streams] { return ++streams == 2; };
  EXPECT_FALSE(lanes_.Open(*backing_).ok());
  EXPECT_FALSE(lanes_.open());
  EXPECT_FALSE(lanes_.Of(0).valid());
  for (const Status& refused : {lanes_.Follow(1), lanes_.Health(), lanes_.Join().status(),
                                lanes_.RecordAll().status(), lanes_.RecordBehind(3).status()}) {
    EXPECT_NE(refused.message().find("no copy stream"), std::string::npos) << refused.ToString();
  }
  driver_.create_stream_fails = {};
  Open();
  EXPECT_TRUE(lanes_.Health().ok());
}

TEST(CopyLanesCountTest, WhereProcessorsCopyThereIsOne) {
  const std::unique_ptr<Driver> driver = test::MakeDriver(DriverKind::kHost);
  auto store = CreateMemoryBackingStore(*driver, Tier::kHost, 1 << 20, 1 << 16);
  ASSERT_TRUE(store.ok()) << store.status().ToString();
  CopyLanes lanes(*driver, "lanes");
  ASSERT_TRUE(lanes.Open(**store).ok());
  EXPECT_EQ(lanes.count(), 1U);
  EXPECT_TRUE(lanes.Close().ok());
}

TEST(CopyLanesCountTest, AFileHasOne) {
  const std::unique_ptr<Driver> host = test::MakeDriver(DriverKind::kHost);
  test::FaultDriver driver(*host);
  driver.SetCopyEngine(true);
  auto store = CreateFileBackingStore(driver, 1 << 16, {.io_bytes = 1 << 13});
  ASSERT_TRUE(store.ok()) << store.status().ToString();
  CopyLanes lanes(driver, "lanes");
  ASSERT_TRUE(lanes.Open(**store).ok());
  EXPECT_EQ(lanes.count(), 1U);
  EXPECT_EQ(lanes.Of(0), lanes.Of(1));
  EXPECT_TRUE(lanes.Follow(1).ok());
  EXPECT_TRUE(lanes.RecordAll().ok());
  EXPECT_TRUE(lanes.Close().ok());
}

}  // namespace
}  // namespace weir
