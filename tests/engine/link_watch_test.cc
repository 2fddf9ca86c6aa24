#include "engine/link_watch.h"

#include <gtest/gtest.h>

namespace weir {
namespace {

constexpr TimeNs kSecond = 1'000'000'000;
constexpr TimeNs kMs = 1'000'000;

// 50 GB/s; a step streams 900 MB and would take 20 ms without them.
class LinkWatchTest : public ::testing::Test {
 protected:
  LinkWatchTest() {
    link.SetExpected(Tier::kPeer, 50);
    link.SetExpectedOfProbe(40);
  }
  // A step over a link of |rate| bytes/ns.
  bool Step(double rate) {
    const auto stream = static_cast<TimeNs>(900e6 / rate);
    const TimeNs step = std::max<TimeNs>(20 * kMs, stream);
    now += step;
    return link.ObserveStep(
        {.bytes = 900'000'000, .copies = 48, .stall_ns = step - 20 * kMs, .step_ns = step}, 45,
        now);
  }

  LinkWatch link;
  TimeNs now = kSecond;
};

TEST_F(LinkWatchTest, ASoundLinkIsNeverSlowHoweverBusy) {
  for (const double rate : {60.0, 50.0, 40.0, 30.0}) {
    for (int i = 0; i < 100; ++i) ASSERT_FALSE(Step(rate)) << rate;
  }
  EXPECT_TRUE(link.good());
  EXPECT_EQ(link.report().troubles(), 0U);
}

TEST_F(LinkWatchTest, ATenthIsSlowAfterEightStepsInARowAndSaidOnce) {
  for (int i = 0; i < 7; ++i) ASSERT_FALSE(Step(5));
  ASSERT_FALSE(Step(50));  // not in a row
  for (int i = 0; i < 7; ++i) ASSERT_FALSE(Step(5));
  EXPECT_TRUE(Step(5));
  EXPECT_EQ(link.state(), LinkState::kSlow);
  EXPECT_NEAR(link.report().measured_bytes_per_ns, 5, 0.1);
  EXPECT_EQ(link.report().expected_bytes_per_ns, 50);
  EXPECT_EQ(link.learnt_before(), 45);
  EXPECT_NE(link.report().cause.find("tier peer gives 5 GB/s, 50 GB/s expected"), std::string::npos)
      << link.report().cause;
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(Step(5));
  EXPECT_EQ(link.report().slow, 1U);
}

TEST_F(LinkWatchTest, AStepThatWaitedForOtherReasonsThanBytesIsNotTheLinks) {
  for (int i = 0; i < 100; ++i) {
    // Few bytes in many copies: what starting them costs is no sign of a slow link.
    ASSERT_FALSE(link.ObserveStep(
        {.bytes = 48 << 12, .copies = 48, .stall_ns = kMs * 9 / 10, .step_ns = 2 * kMs}, 45, now));
    ASSERT_FALSE(link.ObserveStep({.bytes = 0, .stall_ns = kMs, .step_ns = kMs}, 45, now));
  }
}

TEST_F(LinkWatchTest, BackOffDoublesFromOneSecondToAMinute) {
  link.Held(DriverError("gone"), 0, now);
  EXPECT_EQ(link.report().cause, "copies from tier peer fail: driver error: gone");
  TimeNs expected = kSecond;
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(link.report().backoff_ns, expected);
    EXPECT_FALSE(link.ProbeDue(now + expected - 1));
    now += expected;
    ASSERT_TRUE(link.ProbeDue(now));
    EXPECT_FALSE(link.OnProbe(i % 2 == 0 ? Result<double>(DriverError("still gone")) : 29.0, now));
    expected = std::min(2 * expected, 60 * kSecond);
  }
  EXPECT_EQ(link.report().backoff_ns, 60 * kSecond);
  now += 60 * kSecond;
  EXPECT_TRUE(link.OnProbe(30.0, now));  // three quarters
  EXPECT_TRUE(link.good());
  EXPECT_FALSE(link.ProbeDue(now + 1000 * kSecond));
  EXPECT_EQ(link.report().recovered, 1U);
}

TEST_F(LinkWatchTest, ATroubleSoonAfterTheOneBeforeWaitsLongerALaterOneStartsAnew) {
  link.Held(DriverError("gone"), 0, now);
  ASSERT_TRUE(link.OnProbe(40.0, now += kSecond));
  link.Held(DriverError("gone"), 0, now += 59 * kSecond);
  EXPECT_EQ(link.report().backoff_ns, 2 * kSecond);
  ASSERT_TRUE(link.OnProbe(40.0, now += 2 * kSecond));
  link.Held(DriverError("gone"), 0, now += 60 * kSecond);
  EXPECT_EQ(link.report().backoff_ns, kSecond);
  link.Lost(DriverError("for good"), now);
  EXPECT_EQ(link.report().backoff_ns, 2 * kSecond);
  EXPECT_TRUE(link.OnProbe(1.0, now)) << "slow is better than nothing";
}

TEST_F(LinkWatchTest, WithoutAMeasuredLinkNoStepIsJudgedAndAnyProbeThatSucceedsIsGood) {
  LinkWatch blind;
  for (int i = 0; i < 100; ++i) {
    EXPECT_FALSE(blind.ObserveStep(
        {.bytes = 1, .copies = 1, .stall_ns = kSecond, .step_ns = kSecond}, 0, now));
  }
  blind.Held(DriverError("gone"), 0, now);
  EXPECT_TRUE(blind.OnProbe(1e-6, now));
}

}  // namespace
}  // namespace weir
