#include "vmm/clock_map.h"

#include <cmath>
#include <random>

#include <gtest/gtest.h>

namespace weir {
namespace {

// A device whose clock is far from the host's and runs at another rate.
struct Clocks {
  double drift = 0;  // host seconds less device seconds, a device second
  uint64_t HostOf(uint64_t device_ns) const {
    const auto apart = static_cast<double>(static_cast<int64_t>(device_ns - kDevice));
    return kHost + (device_ns - kDevice) + static_cast<uint64_t>(std::llround(drift * apart));
  }
  static constexpr uint64_t kDevice = 1'790'000'000'000'000'000;
  static constexpr uint64_t kHost = 4'000'000'000'000;
};

uint64_t Apart(uint64_t a, uint64_t b) {
  return a > b ? a - b : b - a;
}

TEST(ClockMap, KnowsNothingBeforeABoundOnBothSides) {
  ClockMap map;
  map.Bound(5, 10, ClockMap::kNever);
  map.Bound(5, ClockMap::kEver, 20);
  EXPECT_FALSE(map.known());
  EXPECT_EQ(map.ToHost(5), 0U);
  map.Bound(5, 100, 120);
  EXPECT_TRUE(map.known());
  EXPECT_EQ(map.ToHost(5), 110U);
  EXPECT_EQ(map.error_ns(), 10U);
}

TEST(ClockMap, OneSidedBoundsNarrowIt) {
  ClockMap map;
  map.Bound(1000, 5000, 5100);
  map.Bound(1000, 5060, ClockMap::kNever);
  map.Bound(1000, ClockMap::kEver, 5080);
  EXPECT_EQ(map.ToHost(1000), 5070U);
  EXPECT_EQ(map.error_ns(), 10U);
}

TEST(ClockMap, EveryTimeIsWithinTheErrorItTellsWhateverTheDrift) {
  for (const double drift : {0.0, 3e-6, -40e-6, 150e-6, -190e-6}) {
    SCOPED_TRACE(drift);
    std::mt19937_64 random(7);
    const Clocks clocks{drift};
    ClockMap map;
    uint64_t device = Clocks::kDevice;
    for (int i = 0; i < 1000; ++i) {
      device += 20'000'000 + random() % 100'000'000;
      const uint64_t host = clocks.HostOf(device);
      map.Bound(device, host - random() % 8'000, host + random() % 12'000);
      EXPECT_LE(Apart(map.ToHost(device), host), map.error_ns() + 1);
      // A step since then, bounded by its own launch and collection.
      const uint64_t begin = device + random() % 5'000'000;
      const uint64_t end = begin + 10'000'000;
      map.Bound(begin, clocks.HostOf(begin) - random() % 500'000, ClockMap::kNever);
      map.Bound(end, ClockMap::kEver, clocks.HostOf(end) + random() % 30'000);
      EXPECT_LE(Apart(map.ToHost(begin), clocks.HostOf(begin)), map.error_ns(begin) + 1);
      device = end;
    }
    EXPECT_EQ(map.contradictions(), 0U);
    EXPECT_NEAR(map.drift(), drift, 2e-6);
    EXPECT_LT(map.error_ns(), 6'000U);
  }
}

TEST(ClockMap, ABoundOfAnEarlierMomentCounts) {
  ClockMap map;
  map.Bound(1'000'000'000, 1'000'000'000, 1'000'100'000);
  map.Bound(999'000'000, 999'040'000, 999'060'000);  // 1 ms before: the drift is 200 ns at most
  EXPECT_NEAR(static_cast<double>(map.ToHost(1'000'000'000)), 1'000'050'000.0, 300);
  EXPECT_LE(map.error_ns(), 10'300U);
}

TEST(ClockMap, AClockThatIsSetIsFollowed) {
  const Clocks clocks;
  ClockMap map;
  for (uint64_t i = 0; i < 50; ++i) {
    const uint64_t device = Clocks::kDevice + i * 100'000'000;
    map.Bound(device, clocks.HostOf(device) - 5'000, clocks.HostOf(device) + 5'000);
  }
  constexpr uint64_t kJump = 3'000'000;
  for (uint64_t i = 50; i < 60; ++i) {
    const uint64_t device = Clocks::kDevice + i * 100'000'000;
    const uint64_t host = clocks.HostOf(device) + kJump;
    map.Bound(device, host - 5'000, host + 5'000);
    EXPECT_LE(Apart(map.ToHost(device), host), map.error_ns() + 1);
  }
  EXPECT_EQ(map.contradictions(), 1U);
}

}  // namespace
}  // namespace weir
