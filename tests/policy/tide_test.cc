#include "policy/tide.h"

#include <gtest/gtest.h>

namespace weir {
namespace {

// The worked example of docs/policies.md: 24 GiB of weights in 48 layers of 16 granules of 32 MiB,
// 138 granules (4.3 GiB) of KV, a peer GPU as backing.
PolicySnapshot Example() {
  PolicySnapshot s;
  s.granule_bytes = 32u << 20;
  s.weights = {uint64_t{24} << 30, 48, 14, 0, 2};
  s.kv.blocks_per_extent = 16;
  s.kv.mapped_extents = 138;
  s.kv.max_extents = 1000;
  s.kv.used_blocks = 2208;
  s.demand.running = 44;
  s.demand.waiting = 20;
  s.demand.max_running = 256;
  s.demand.waiting_blocks = 20 * 40;
  s.demand.expected_blocks = 64 * 50;
  s.demand.tokens_per_seq = 700;
  s.cost = {6.4e6, 2e4, 33, 380, 0};
  return s;
}

TEST(Tide, PredictsBlocksRunningAndTimeOfATarget) {
  const PolicySnapshot s = Example();
  const auto none = TidePolicy::Predict(s, 0);
  EXPECT_EQ(none.kv_blocks, 138 * 16);
  EXPECT_NEAR(none.running, 2208 / 50.0, 1e-9);
  const auto one = TidePolicy::Predict(s, 1);
  EXPECT_EQ(one.kv_blocks, (138 + 46) * 16);  // 48 granules minus the ring's two
  EXPECT_NEAR(one.running, 58.88, 1e-9);
  // 1.5 GiB over the link in 4.2 ms hides behind 8.9 ms of compute.
  EXPECT_NEAR(one.step_ns, 6.4e6 + 58.88 * (2e4 + 700 * 33), 1);
  const auto eight = TidePolicy::Predict(s, 8);
  EXPECT_EQ(eight.running, 64);
  EXPECT_NEAR(eight.step_ns, 8.0 * 48 * (32 << 20) / 380, 1);
}

TEST(Tide, CountsFromWhereTheWeightsAreNow) {
  PolicySnapshot s = Example();
  s.weights.granules_per_layer = 3;
  s.kv.mapped_extents = 138 + 3 * 46;
  EXPECT_EQ(TidePolicy::Predict(s, 0).kv_blocks, 138 * 16);
  EXPECT_EQ(TidePolicy::Predict(s, 3).kv_blocks, (138 + 3 * 46) * 16);
}

TEST(Tide, EvictsWhileRequestsWaitAndItPays) {
  TidePolicy tide;
  const PolicyDecision d = tide.Decide(Example());
  EXPECT_EQ(d.granules_per_layer, 2u);  // holds all 64; a third granule would only cost
  EXPECT_EQ(d.reason, "20 waiting: +31 % tokens/s, 44 -> 64 running for 0 -> 2 granules/layer");
}

TEST(Tide, EvictsNothingWhenNobodyWaits) {
  PolicySnapshot s = Example();
  s.demand.waiting = 0;
  s.demand.waiting_blocks = 0;
  s.kv.free_blocks = 100;
  TidePolicy tide;
  EXPECT_EQ(tide.Decide(s).granules_per_layer, 0u);
}

TEST(Tide, EvictsNothingOverALinkTooSlow) {
  PolicySnapshot s = Example();
  s.cost.link_bytes_per_ns = 50;  // a host link: one granule a layer is 32 ms of streaming
  TidePolicy tide;
  EXPECT_EQ(tide.Decide(s).granules_per_layer, 0u);
}

TEST(Tide, EvictsNothingBeforeTheLinkIsMeasured) {
  PolicySnapshot s = Example();
  s.cost.link_bytes_per_ns = 0;
  TidePolicy tide;
  const PolicyDecision d = tide.Decide(s);
  EXPECT_EQ(d.granules_per_layer, 0u);
  EXPECT_EQ(d.reason, "step cost or link speed not measured yet");
}

TEST(Tide, EvictsNothingWhenTheSchedulerCapBindsAlready) {
  PolicySnapshot s = Example();
  s.demand.max_running = 44;
  TidePolicy tide;
  EXPECT_EQ(tide.Decide(s).granules_per_layer, 0u);
}

TEST(Tide, EvictsForARunningSequenceAboutToBeStopped) {
  PolicySnapshot s = Example();
  s.demand.running = 64;
  s.demand.waiting = 0;
  s.demand.waiting_blocks = 0;
  s.kv.free_blocks = 10;  // fewer than one block each
  TidePolicy tide;
  EXPECT_EQ(tide.Decide(s).granules_per_layer, 2u);
}

TEST(Tide, PrefersMoreRunningRequestsAmongNearEquals) {
  // Bound by the link: tokens/s are all but flat beyond the knee, as each granule brings its share
  // of sequences and of streaming.
  PolicySnapshot s = Example();
  s.demand.waiting = 400;
  s.demand.waiting_blocks = 400 * 40;
  s.demand.expected_blocks = 444 * 50;
  TidePolicy eager, thrifty(TideConfig{.tie_tolerance = 0});
  const uint32_t more = eager.Decide(s).granules_per_layer;
  const uint32_t fewer = thrifty.Decide(s).granules_per_layer;
  EXPECT_GE(more, fewer);
  double best = 0;
  for (uint32_t e = 0; e <= 14; ++e) best = std::max(best, TidePolicy::Predict(s, e).tokens_per_s);
  EXPECT_GE(TidePolicy::Predict(s, more).tokens_per_s, best * 0.95);
}

TEST(Tide, BringsWeightsHomeWhenTheLoadFits) {
  TidePolicy tide;
  PolicySnapshot s = Example();
  ASSERT_EQ(tide.Decide(s).granules_per_layer, 2u);
  s.weights.granules_per_layer = 2;
  s.kv.mapped_extents += 2 * 46;
  s.demand = {.running = 10,
              .waiting = 0,
              .max_running = 256,
              .waiting_blocks = 0,
              .expected_blocks = 500,
              .tokens_per_seq = 700,
              .preemptions = 0};
  s.kv.used_blocks = 400;
  s.kv.free_blocks = 3280;
  s.step = 63;
  EXPECT_EQ(tide.Decide(s).granules_per_layer, 2u) << "within the hold-off";
  s.step = 64;
  const PolicyDecision d = tide.Decide(s);
  EXPECT_EQ(d.granules_per_layer, 0u);
  EXPECT_EQ(d.reason, "500 of 2208 blocks expected, load fits: 2 -> 0 granules/layer");
}

TEST(Tide, KeepsWeightsAwayWithoutHeadroom) {
  TidePolicy tide;
  PolicySnapshot s = Example();
  s.weights.granules_per_layer = 2;
  s.kv.mapped_extents += 2 * 46;
  s.demand.waiting = 0;
  s.demand.waiting_blocks = 0;
  s.kv.used_blocks = 1800;
  s.kv.free_blocks = 1880;
  s.demand.expected_blocks = 2100;  // fits 2208, but not with 15 % to spare
  EXPECT_EQ(tide.Decide(s).granules_per_layer, 1u);
  s.demand.expected_blocks = 2700;
  s.step = 100;
  EXPECT_EQ(tide.Decide(s).granules_per_layer, 1u);
}

TEST(Tide, BringsWeightsHomeWhenStreamingStopsPaying) {
  TidePolicy tide;
  PolicySnapshot s = Example();
  s.weights.granules_per_layer = 4;
  s.kv.mapped_extents += 4 * 46;
  s.demand.waiting = 400;
  s.demand.expected_blocks = 444 * 50;
  s.cost.link_bytes_per_ns = 40;  // something else took the link
  const PolicyDecision d = tide.Decide(s);
  EXPECT_EQ(d.granules_per_layer, 0u);
  EXPECT_NE(d.reason.find("streaming no longer pays"), std::string::npos) << d.reason;
  TidePolicy never(TideConfig{.restore_gain = 0});
  EXPECT_EQ(never.Decide(s).granules_per_layer, 4u);
}

TEST(Tide, TargetsAreMultiplesOfTheQuantum) {
  for (uint32_t waiting = 1; waiting < 300; waiting += 7) {
    PolicySnapshot s = Example();
    s.demand.waiting = waiting;
    s.demand.expected_blocks = (44 + waiting) * 50;
    TidePolicy tide(TideConfig{.quantum = 4});
    const uint32_t e = tide.Decide(s).granules_per_layer;
    EXPECT_TRUE(e % 4 == 0 || e == 14) << e;
  }
}

TEST(Tide, ADecisionIsCheapForAHugeModel) {
  PolicySnapshot s = Example();
  s.weights.max_granules_per_layer = UINT32_MAX;
  TidePolicy tide(TideConfig{.quantum = 1});
  EXPECT_LE(tide.Decide(s).granules_per_layer, UINT32_MAX);  // returns, and soon
}

}  // namespace
}  // namespace weir
