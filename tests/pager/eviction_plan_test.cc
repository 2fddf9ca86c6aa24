#include "pager/eviction_plan.h"

#include <gtest/gtest.h>

#include "tests/pager/layouts.h"

namespace weir {
namespace {

using test::RegularLayout;
constexpr uint64_t kG = 64;  // granule size: nothing here touches memory

TEST(EvictionPlanTest, AnEmptyTargetLeavesEveryGateOpen) {
  const auto plan = EvictionPlan::Make(RegularLayout(4, {kG * 4, kG * 2}), kG, {});
  ASSERT_TRUE(plan.ok());
  EXPECT_TRUE(plan->chunks().empty());
  EXPECT_EQ(plan->chunk_of_gate(), std::vector<int32_t>(8, -1));
  EXPECT_EQ(plan->freed_granules(), 0U);
}

TEST(EvictionPlanTest, StripesAreTheLastWholeGranulesOfEachSegment) {
  // Segments of 5 and 3 granules that begin half a granule into the region: 4 and 2 whole granules.
  const auto layout = RegularLayout(6, {kG * 5, kG * 3}, kG / 2);
  EXPECT_EQ(EvictionPlan::MaxGranulesPerLayer(layout, kG), 6U);
  const auto plan = EvictionPlan::Make(layout, kG, {.granules_per_layer = 5, .ring_slots = 2});
  ASSERT_TRUE(plan.ok()) << plan.status().ToString();
  ASSERT_EQ(plan->chunks().size(), 12U);
  const StripeChunk& c = plan->chunks()[2];  // layer 1, segment 0: [8.5, 13.5) granules
  EXPECT_EQ(c.gate, 2U);
  EXPECT_EQ(c.count, 4U);  // all it can give; the smaller segment gives the fifth
  EXPECT_EQ(c.first.value, 9U);
  EXPECT_EQ(c.ring_slot, 1U);
  // Its last slot leaves first: ring granules in turns with layer 0's.
  EXPECT_EQ(c.RingGranule(3), 1U);
  EXPECT_EQ(c.RingGranule(0), 7U);
  EXPECT_EQ(plan->chunks()[3].RingGranule(0), 9U);
  EXPECT_TRUE(c.previous_pass);
  EXPECT_EQ(c.previous_user, 10U);  // layer 5, segment 0
  EXPECT_EQ(plan->chunks()[5].previous_user, 1U);
  EXPECT_FALSE(plan->chunks()[5].previous_pass);
  EXPECT_EQ(plan->chunks()[3].count, 1U);
  EXPECT_EQ(plan->ring_granules(), 10U);
  EXPECT_EQ(plan->evicted_granules(), 30U);
  EXPECT_EQ(plan->freed_granules(), 20U);
  EXPECT_EQ(plan->prefix_chunks(), 4U);
}

TEST(EvictionPlanTest, LayersThatAreNoMultipleOfTheRingWrapToTheLastUserOfTheSlot) {
  const auto plan = EvictionPlan::Make(RegularLayout(5, {kG * 2}), kG,
                                       {.granules_per_layer = 1, .ring_slots = 2});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->chunks()[0].previous_user, 4U);  // slot 0: layers 0, 2, 4
  EXPECT_EQ(plan->chunks()[1].previous_user, 3U);  // slot 1: layers 1, 3
}

TEST(EvictionPlanTest, TheSmallestLayerDecidesWhatASegmentGives) {
  auto layout = RegularLayout(4, {kG * 4, kG * 4});
  layout.layers[2][1].bytes = kG;
  EXPECT_EQ(EvictionPlan::MaxGranulesPerLayer(layout, kG), 5U);
}

TEST(EvictionPlanTest, MovingTheBorderByOneMovesOneGranulePerLayerAndSegmentShare) {
  const auto layout = RegularLayout(4, {kG * 7, kG * 3, kG * 12});
  std::vector<uint32_t> before(3, 0);
  for (uint32_t k = 1; k <= EvictionPlan::MaxGranulesPerLayer(layout, kG); ++k) {
    const auto plan = EvictionPlan::Make(layout, kG, {.granules_per_layer = k});
    ASSERT_TRUE(plan.ok());
    std::vector<uint32_t> now(3, 0);
    for (const StripeChunk& c : plan->chunks()) {
      if (c.gate < 3) now[c.gate] = c.count;
    }
    for (size_t s = 0; s < 3; ++s) EXPECT_GE(now[s], before[s]) << "k = " << k;
    before = now;
  }
  EXPECT_EQ(before, (std::vector<uint32_t>{7, 3, 12}));
}

TEST(EvictionPlanTest, AStripeKeepsItsRingGranulesWhateverElseLeaves) {
  const auto layout = RegularLayout(7, {kG * 7, kG * 3, kG * 12}, kG / 3);
  const size_t slots = layout.region_bytes / kG + 1;
  const uint32_t most = EvictionPlan::MaxGranulesPerLayer(layout, kG);
  for (const uint32_t ring : {2U, 3U}) {
    std::vector<int32_t> before(slots, -1);
    for (uint32_t k = 1; k <= most; ++k) {
      const auto plan =
          EvictionPlan::Make(layout, kG, {.granules_per_layer = k, .ring_slots = ring});
      ASSERT_TRUE(plan.ok());
      const std::vector<SlotPlace> now = plan->PlaceOfSlots(slots);
      for (size_t s = 0; s < slots; ++s) {
        if (before[s] >= 0) {
          EXPECT_EQ(now[s], before[s]) << "k = " << k << ", slot " << s;
        }
        EXPECT_LT(now[s], static_cast<int32_t>(plan->ring_granules()));
      }
      before = now;
    }
  }
}

TEST(EvictionPlanTest, WhatIsReadInPlaceNeedsNoRingAndNoGate) {
  const auto layout = RegularLayout(2, {kG * 5, kG * 3}, kG / 2);
  const EvictionTarget target{.placement = Placement::kInPlace, .granules_per_layer = 5};
  const auto plan = EvictionPlan::Make(layout, kG, target);
  ASSERT_TRUE(plan.ok()) << plan.status().ToString();  // as many layers as a ring would have slots
  EXPECT_TRUE(plan->chunks().empty());
  EXPECT_EQ(plan->chunk_of_gate(), std::vector<int32_t>(4, -1));
  EXPECT_EQ(plan->evicted_granules(), 10U);
  EXPECT_EQ(plan->freed_granules(), 10U);
  EXPECT_EQ(plan->prefix_chunks(), 0U);
  const std::vector<SlotPlace> place = plan->PlaceOfSlots(18);
  // Layer 0: [0.5, 5.5) gives 1 to 4, [5.5, 8.5) gives its last whole one.
  for (const uint32_t s : {1U, 2U, 3U, 4U, 7U}) EXPECT_EQ(place[s], kInBackingCopy) << s;
  for (const uint32_t s : {0U, 5U, 6U, 8U}) EXPECT_EQ(place[s], kAtHome) << s;
  EXPECT_EQ(plan->ToString(), "in place, 5 granules per layer: 10 evicted and freed");

  const auto greedy =
      EvictionPlan::Make(layout, kG, {.placement = Placement::kInPlace, .granules_per_layer = 7});
  EXPECT_EQ(greedy.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(greedy.status().message().find("at most 6"), std::string::npos);
}

TEST(EvictionPlanTest, WholeLayersAreEvenlySpacedAndShareTheRingInTurn) {
  const auto plan =
      EvictionPlan::Make(RegularLayout(12, {kG * 2, kG * 2}), kG,
                         {.placement = Placement::kLayer, .layers = 4, .ring_slots = 2});
  ASSERT_TRUE(plan.ok()) << plan.status().ToString();
  std::vector<uint32_t> layers, slots;
  for (const StripeChunk& c : plan->chunks()) {
    if (c.gate % 2 == 0) {
      layers.push_back(c.gate / 2);
      slots.push_back(c.ring_slot);
    }
  }
  EXPECT_EQ(layers, (std::vector<uint32_t>{1, 4, 7, 10}));
  EXPECT_EQ(slots, (std::vector<uint32_t>{0, 1, 0, 1}));
  EXPECT_EQ(plan->evicted_granules(), 16U);
  EXPECT_EQ(plan->ring_granules(), 8U);
}

TEST(EvictionPlanTest, AGranuleThatTwoSegmentsShareComesThroughTheGateOfTheFirst) {
  // Segment 0 is 2.5 granules, segment 1 is 2.5: the middle granule is shared.
  const auto plan =
      EvictionPlan::Make(RegularLayout(4, {kG * 5 / 2, kG * 5 / 2}), kG,
                         {.placement = Placement::kLayer, .layers = 3, .ring_slots = 2});
  ASSERT_TRUE(plan.ok()) << plan.status().ToString();
  EXPECT_EQ(plan->chunks()[0].count, 3U);
  EXPECT_EQ(plan->chunks()[1].count, 2U);
  // The slot is free for another layer only when the second reader has gone.
  EXPECT_EQ(plan->chunks()[4].previous_user, 1U);
}

TEST(EvictionPlanTest, RefusalsSayWhatIsAccepted) {
  const auto layout = RegularLayout(4, {kG * 4});
  const auto message = [&](const EvictionTarget& target) {
    const auto plan = EvictionPlan::Make(layout, kG, target);
    EXPECT_EQ(plan.status().code(), StatusCode::kInvalidArgument);
    return plan.status().message();
  };
  EXPECT_NE(message({.granules_per_layer = 5}).find("at most 4"), std::string::npos);
  EXPECT_NE(message({.granules_per_layer = 1, .ring_slots = 1}).find("at least 2"),
            std::string::npos);
  EXPECT_NE(message({.granules_per_layer = 1, .ring_slots = 4}).find("more than 4 layers"),
            std::string::npos);
  EXPECT_NE(message({.placement = Placement::kLayer, .layers = 2}).find("more than 2 layers"),
            std::string::npos);
  EXPECT_NE(message({.placement = Placement::kLayer, .layers = 5}).find("has 4"),
            std::string::npos);
  EXPECT_NE(message({.placement = Placement::kLayer, .layers = 3, .ring_slots = 0}).find("least 1"),
            std::string::npos);
}

TEST(EvictionPlanTest, LayersThatTakeTurnsInOneSlotWaitForEachOther) {
  const auto plan =
      EvictionPlan::Make(RegularLayout(8, {kG * 2, kG * 2}), kG,
                         {.placement = Placement::kLayer, .layers = 3, .ring_slots = 1});
  ASSERT_TRUE(plan.ok()) << plan.status().ToString();
  EXPECT_EQ(plan->freed_granules(), 8U);
  EXPECT_EQ(plan->prefix_chunks(), 2U);  // the first layer's
  ASSERT_EQ(plan->chunks().size(), 6U);
  EXPECT_EQ(plan->chunks()[2].previous_user, 1U);
  EXPECT_FALSE(plan->chunks()[2].previous_pass);
  EXPECT_EQ(plan->chunks()[0].previous_user, 5U);
  EXPECT_TRUE(plan->chunks()[0].previous_pass);
}

TEST(EvictionPlanTest, TheMostLayersAreAllWhereLayersAreAlike) {
  const auto layout = RegularLayout(8, {kG * 2, kG * 2});
  EXPECT_EQ(EvictionPlan::MaxLayers(layout, kG, 1), 8U);
  EXPECT_EQ(EvictionPlan::MaxLayers(layout, kG, 2), 8U);
  EXPECT_EQ(EvictionPlan::MaxLayers(layout, kG, 8), 0U);
  EXPECT_EQ(EvictionPlan::LeastLayerGranules(layout, kG), 4U);
}

// Two chunks a layer, of 4 granules and of 1; the first two layers have come home, and half a
// third.
TEST(EvictionPlanTest, BetweenTwoBordersStripesHaveTheirOwnLengths) {
  const auto layout = RegularLayout(6, {kG * 4, kG});
  const EvictionTarget most{.granules_per_layer = 5, .ring_slots = 2};
  const std::vector<uint32_t> granules{0, 0, 0, 0, 2, 1, 4, 1, 4, 1, 4, 1};
  const auto plan = EvictionPlan::Between(layout, kG, most, granules);
  ASSERT_TRUE(plan.ok()) << plan.status().ToString();
  EXPECT_FALSE(plan->even());
  EXPECT_EQ(plan->target(), most);
  EXPECT_EQ(plan->evicted_granules(), 18U);
  EXPECT_EQ(plan->ring_granules(), 10U);
  ASSERT_EQ(plan->chunks().size(), 8U);
  EXPECT_EQ(plan->chunks()[0].gate, 4U);
  EXPECT_EQ(plan->chunks()[0].previous_user, 4U);  // layer 4
  EXPECT_TRUE(plan->chunks()[0].previous_pass);
  EXPECT_EQ(plan->prefix_chunks(), 4U);
  EXPECT_EQ(plan->chunks()[4].previous_user, 0U);
  EXPECT_FALSE(plan->chunks()[4].previous_pass);
  EXPECT_NE(plan->ToString().find("at most 5 granules per layer"), std::string::npos);
  // One layer is left: its stripe follows itself, and the other slot has no granule.
  const auto last =
      EvictionPlan::Between(layout, kG, most, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0}).value();
  EXPECT_EQ(last.ring_granules(), 3U);
  EXPECT_EQ(last.freed_granules(), 0U);
  EXPECT_EQ(last.chunks()[0].previous_user, 0U);
  EXPECT_EQ(last.chunks()[0].RingGranule(2), 1U);  // the odd slot's
  const auto whole = EvictionPlan::Between(layout, kG, most, {4, 1, 4, 1, 4, 1, 4, 1, 4, 1, 4, 1});
  EXPECT_TRUE(whole->even());
}

TEST(EvictionPlanTest, NoStripeHasMoreThanThereIs) {
  const auto layout = RegularLayout(4, {kG * 4, kG});
  const EvictionTarget most{.granules_per_layer = 3, .ring_slots = 2};
  const auto plan = EvictionPlan::Between(layout, kG, most, {3, 0, 3, 0, 4, 0, 3, 0});
  EXPECT_NE(plan.status().message().find("gate 4 has 3 granules, 4 of them asked"),
            std::string::npos)
      << plan.status().ToString();
  EXPECT_FALSE(EvictionPlan::Between(layout, kG, most, {3, 0}).ok());
  const EvictionTarget in_place{.placement = Placement::kInPlace, .granules_per_layer = 3};
  EXPECT_FALSE(EvictionPlan::Between(layout, kG, in_place, std::vector<uint32_t>(8, 0)).ok());
}

TEST(EvictionPlanTest, AMalformedLayoutIsRefused) {
  auto layout = RegularLayout(4, {kG * 4});
  layout.layers[1][0].offset -= 1;
  EXPECT_FALSE(EvictionPlan::Make(layout, kG, {}).ok());
  layout = RegularLayout(4, {kG * 4});
  layout.layers[3][0].bytes += 1;
  EXPECT_FALSE(EvictionPlan::Make(layout, kG, {}).ok());
  layout = RegularLayout(4, {kG * 4});
  layout.layers[2].push_back({});
  EXPECT_FALSE(EvictionPlan::Make(layout, kG, {}).ok());
  EXPECT_FALSE(EvictionPlan::Make(RegularLayout(4, {kG}), 65, {}).ok());
  layout = RegularLayout(4, {kG * 4});
  layout.lookup = {kG, kG};
  EXPECT_FALSE(EvictionPlan::Make(layout, kG, {}).ok());
  layout = test::WithLookup(RegularLayout(4, {kG * 4}), kG);
  ++layout.lookup.bytes;
  EXPECT_FALSE(EvictionPlan::Make(layout, kG, {}).ok());
}

}  // namespace
}  // namespace weir
