#include "tools/trace/busy_time.h"

#include <algorithm>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace weir::trace_tool {
namespace {

TEST(BusyTime, WhatOverlapsCountsOnce) {
  BusyTime busy;
  EXPECT_EQ(busy.ns(), 0U);
  busy.Add(10, 20);
  busy.Add(15, 25);  // two lanes
  busy.Add(25, 30);  // without a gap
  EXPECT_EQ(busy.ns(), 20U);
  busy.Add(40, 45);
  busy.Add(35, 50);  // one ends within another, and was told of first
  EXPECT_EQ(busy.ns(), 35U);
  busy.Add(0, 100);
  EXPECT_EQ(busy.ns(), 100U);
  busy.Add(60, 50);
  busy.Add(50, 50);
  EXPECT_EQ(busy.ns(), 100U);
}

TEST(BusyTime, IsTheLengthOfTheUnionOfWhatTwoLanesDid) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    std::mt19937_64 rng(seed);
    BusyTime busy;
    std::vector<bool> taken(40'000);
    uint64_t now[2] = {0, 0};
    while (std::max(now[0], now[1]) < 39'000) {
      uint64_t& lane = now[now[0] <= now[1] ? 0 : 1];  // roughly in the order of ends
      const uint64_t begin = lane + rng() % 30;
      lane = begin + 1 + rng() % 40;
      busy.Add(begin, lane);
      for (uint64_t t = begin; t < lane; ++t) taken[t] = true;
    }
    EXPECT_EQ(busy.ns(), static_cast<uint64_t>(std::count(taken.begin(), taken.end(), true)));
  }
}

TEST(BusyTime, ForgetsGapsOfLongAgo) {
  BusyTime busy;
  for (uint64_t i = 0; i < 1000; ++i) busy.Add(10 * i, 10 * i + 5);
  EXPECT_EQ(busy.ns(), 5000U);
  busy.Add(0, 10'000);  // fills the gaps that are still known, and the end
  EXPECT_EQ(busy.ns(), 5000U + 5 * (BusyTime::kMostOpen + 1));
}

}  // namespace
}  // namespace weir::trace_tool
