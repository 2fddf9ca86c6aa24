// The policies whose border does not move.
#include "policy/resident.h"

#include <gtest/gtest.h>

namespace weir {
namespace {

PolicySnapshot Weights(uint32_t layers) {
  PolicySnapshot s;
  s.weights.layers = layers;
  s.weights.max_granules_per_layer = 20;
  s.weights.max_layers_away = layers;
  s.weights.max_in_place_per_layer = 16;
  return s;
}

TEST(StaticPolicy, KeepsAShareOfTheLayersAwayWhateverTheLoad) {
  StaticPolicy policy({.fraction = 0.25});
  for (const uint32_t waiting : {0u, 100u}) {
    PolicySnapshot s = Weights(40);
    s.demand.waiting = waiting;
    const PolicyDecision d = policy.Decide(s);
    EXPECT_EQ(d.placement, Placement::kLayer);
    EXPECT_EQ(d.layers, 10u);
    EXPECT_EQ(d.ring_slots, 2u);
    EXPECT_EQ(d.reason, "fixed at 10 of 40 layers");
  }
}

TEST(StaticPolicy, LayersThatWouldFreeNothingStay) {
  const PolicyDecision d = StaticPolicy({.fraction = 0.05}).Decide(Weights(40));
  EXPECT_EQ(d.layers, 0u);
  EXPECT_EQ(d.reason, "fixed at no layer: 2 would free nothing with 2 ring slots");
}

TEST(StaticPolicy, AShareOfEveryLayerIsTheFixedPolicy) {
  const PolicyDecision d =
      StaticPolicy({.fraction = 0.25, .placement = Placement::kStripe}).Decide(Weights(40));
  const PolicyDecision fixed = FixedPolicy({.granules_per_layer = 5}).Decide(Weights(40));
  EXPECT_EQ(d.placement, Placement::kStripe);
  EXPECT_EQ(d.granules_per_layer, 5u);
  EXPECT_EQ(d.granules_per_layer, fixed.granules_per_layer);
  EXPECT_EQ(d.reason, fixed.reason);
}

TEST(StaticPolicy, AShareReadInPlaceIsOfWhatCanBeReadSo) {
  const PolicyDecision d =
      StaticPolicy({.fraction = 0.25, .placement = Placement::kInPlace}).Decide(Weights(40));
  EXPECT_EQ(d.placement, Placement::kInPlace);
  EXPECT_EQ(d.granules_per_layer, 4u);
  EXPECT_EQ(d.amount(), 4u);
  EXPECT_EQ(d.reason, "fixed at 4 granules/layer read in place");
}

TEST(FixedPolicy, WhereNothingCanBeReadInPlaceNothingLeaves) {
  FixedPolicy policy({.granules_per_layer = 3, .placement = Placement::kInPlace});
  EXPECT_EQ(policy.Decide(Weights(40)).granules_per_layer, 3u);
  PolicySnapshot s = Weights(40);
  s.weights.max_in_place_per_layer = 0;  // stripes could leave
  const PolicyDecision d = policy.Decide(s);
  EXPECT_EQ(d.amount(), 0u);
  EXPECT_EQ(d.reason, "fixed at 0 granules/layer read in place, the most a layer can give");
}

// Weights that are read in place cross the link once for each 256 tokens.
TEST(StepCost, ReadingInPlaceIsWaitedForAndGrowsWithTheTokens) {
  StepCost cost{.fixed_ns = 1e6};
  EXPECT_EQ(cost.InPlaceNs(1, 1e6), 0) << "no link is known";
  cost.link_bytes_per_ns = 100;
  EXPECT_EQ(cost.InPlaceNs(1, 1e6), 1e4);
  EXPECT_EQ(cost.InPlaceNs(256, 1e6), 1e4);
  EXPECT_EQ(cost.InPlaceNs(512, 1e6), 2e4);
  EXPECT_EQ(cost.InPlaceNs(2048, 1e6), 8e4);
  EXPECT_EQ(cost.InPlaceNs(2048, 0), 0);
}

TEST(ZeroInferencePolicy, StreamsEveryLayerAlways) {
  const PolicyDecision d = ZeroInferencePolicy().Decide(Weights(40));
  EXPECT_EQ(d.placement, Placement::kLayer);
  EXPECT_EQ(d.layers, 40u);
  EXPECT_EQ(d.ring_slots, 2u);
}

TEST(ZeroInferencePolicy, KeepsTheWeightsOfAModelThatCanLendNone) {
  PolicySnapshot s = Weights(2);
  s.weights.max_layers_away = 0;
  const PolicyDecision d = ZeroInferencePolicy().Decide(s);
  EXPECT_EQ(d.layers, 0u);
  EXPECT_EQ(d.reason, "all weights stay resident");
}

}  // namespace
}  // namespace weir
