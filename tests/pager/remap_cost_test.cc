#include "pager/remap_cost.h"

#include <gtest/gtest.h>

namespace weir {
namespace {

TEST(RemapCost, UnmeasuredFollowsFromWhatIsKnown) {
  RemapCost cost;
  EXPECT_EQ(cost.at_rest_ns(), 0);
  EXPECT_EQ(cost.behind_gates_ns(), 0);
  cost.SetMapping(40'000);
  EXPECT_EQ(cost.at_rest_ns(), 80'000);
  EXPECT_EQ(cost.behind_gates_ns(), 160'000);
  cost.ObserveAtRest(512, 512 * 75'000);
  EXPECT_EQ(cost.at_rest_ns(), 75'000);
  EXPECT_EQ(cost.behind_gates_ns(), 150'000);
  EXPECT_EQ(cost.gate_ns(), 15'000);  // a tenth of a remap behind gates
}

TEST(RemapCost, AtRestAndBehindGatesAreApart) {
  RemapCost cost;
  cost.ObserveAtRest(512, 512 * 75'000);
  cost.ObserveBehindGate(2, 2 * 130'000, 40'000);
  cost.ObserveAtRest(512, 512 * 60'000);
  EXPECT_EQ(cost.behind_gates_ns(), 130'000);
  EXPECT_EQ(cost.gate_ns(), 40'000);
  EXPECT_LT(cost.at_rest_ns(), 65'000);
}

// A part that was dear or cheap by chance is forgotten within a few.
TEST(RemapCost, FollowsWhatItBecomes) {
  RemapCost cost;
  const auto part = [&](uint64_t ns) {
    for (int layer = 0; layer < 64; ++layer) cost.ObserveBehindGate(2, 2 * ns, ns / 4);
  };
  for (int i = 0; i < 100; ++i) part(100'000);
  part(200'000);
  EXPECT_GT(cost.behind_gates_ns(), 130'000);
  EXPECT_LT(cost.behind_gates_ns(), 150'000);
  for (int i = 0; i < 6; ++i) part(200'000);
  EXPECT_GT(cost.behind_gates_ns(), 195'000);
  EXPECT_LE(cost.behind_gates_ns(), 200'000);
}

// A gate that only copies, of a part that moves other layers' granules.
TEST(RemapCost, AGateWithoutRemapsTellsOnlyOfItself) {
  RemapCost cost;
  cost.ObserveBehindGate(2, 2 * 130'000, 40'000);
  cost.ObserveBehindGate(0, 0, 20'000);
  EXPECT_EQ(cost.behind_gates_ns(), 130'000);
  EXPECT_LT(cost.gate_ns(), 40'000);
  EXPECT_GT(cost.gate_ns(), 20'000);
}

}  // namespace
}  // namespace weir
