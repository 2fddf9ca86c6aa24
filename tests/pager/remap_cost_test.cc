#include "pager/remap_cost.h"

#include <gtest/gtest.h>

namespace weir {
namespace {

TEST(RemapCost, UnmeasuredFollowsFromWhatMappingTook) {
  RemapCost cost;
  EXPECT_EQ(cost.at_rest_ns(), 0);
  cost.SetMapping(40'000);
  EXPECT_EQ(cost.at_rest_ns(), 80'000);
  cost.ObserveAtRest(512, 512 * 75'000);
  EXPECT_EQ(cost.at_rest_ns(), 75'000);
}

// A move that was dear or cheap by chance is forgotten within a few.
TEST(RemapCost, FollowsWhatItBecomes) {
  RemapCost cost;
  for (int i = 0; i < 100; ++i) cost.ObserveAtRest(128, 128 * 50'000);
  cost.ObserveAtRest(128, 128 * 100'000);
  EXPECT_GT(cost.at_rest_ns(), 65'000);
  EXPECT_LT(cost.at_rest_ns(), 75'000);
  for (int i = 0; i < 6; ++i) cost.ObserveAtRest(128, 128 * 100'000);
  EXPECT_GT(cost.at_rest_ns(), 97'000);
  EXPECT_LE(cost.at_rest_ns(), 100'000);
}

}  // namespace
}  // namespace weir
