#include "policy/oneiros.h"

#include <gtest/gtest.h>

namespace weir {
namespace {

// 40 layers of 10 granules, one block each; loading a layer takes |ratio| times its compute.
class OneirosTest : public testing::Test {
 protected:
  static constexpr uint32_t kLayers = 40, kLayerGranules = 10, kResident = 100;

  OneirosTest() {
    s_.granule_bytes = 1 << 20;
    s_.weights.layers = kLayers;
    s_.weights.max_layers_away = kLayers;
    s_.weights.granules_per_whole_layer = kLayerGranules;
    s_.kv.max_extents = 10'000;
    s_.demand.max_running = 1000;
    s_.cost.link_bytes_per_ns = 1;
    Ratio(2);
    InForce({});
  }

  // A pass computes for as long as |layers| / |ratio| loads take.
  void Ratio(double ratio) {
    s_.step_ns = kLayerGranules * static_cast<double>(s_.granule_bytes) * kLayers / ratio;
  }

  void InForce(const PolicyDecision& d) {
    s_.weights.placement = d.placement;
    s_.weights.layers_away = d.layers;
    s_.weights.freed_granules = (d.layers - std::min(d.layers, d.ring_slots)) * kLayerGranules;
    s_.kv.mapped_extents = kResident + s_.weights.freed_granules;
  }

  void Load(uint32_t used, uint32_t waiting_blocks) {
    s_.kv.used_blocks = used;
    s_.demand.waiting = waiting_blocks > 0 ? 1 : 0;
    s_.demand.waiting_blocks = waiting_blocks;
  }

  PolicyDecision Step(OneirosPolicy& policy) {
    const PolicyDecision d = policy.Decide(s_);
    ++s_.step;
    InForce(d);
    return d;
  }

  PolicySnapshot s_;
};

TEST_F(OneirosTest, LoadsThatHideBehindThePassFollowTheCircularSchedule) {
  // The published bounds for 40 layers.
  EXPECT_EQ(OneirosPolicy::MaxHidden(40, 4, 1), 7u);
  EXPECT_EQ(OneirosPolicy::MaxHidden(40, 4, 2), 8u);
  EXPECT_EQ(OneirosPolicy::MaxHidden(40, 2, 1), 12u);
  EXPECT_EQ(OneirosPolicy::MaxHidden(40, 2, 2), 18u);
  EXPECT_EQ(OneirosPolicy::MaxHidden(40, 10, 1), 2u);
  EXPECT_EQ(OneirosPolicy::MaxHidden(40, 10, 2), 2u);
  EXPECT_EQ(OneirosPolicy::MaxHidden(40, 75, 1), 0u);  // PCIe: nothing hides
  EXPECT_EQ(OneirosPolicy::MaxHidden(40, 0.1, 2), 38u);
  EXPECT_DOUBLE_EQ(OneirosPolicy::Stretch(40, 4, 7, 1), 1.0);
  EXPECT_DOUBLE_EQ(OneirosPolicy::Stretch(40, 4, 15, 1), 2.0);
  EXPECT_DOUBLE_EQ(OneirosPolicy::Stretch(40, 4, 18, 2), 2.0);
}

TEST_F(OneirosTest, NothingIsLentWhileKvHoldsTheLoad) {
  OneirosPolicy policy({});
  Load(60, 40);
  const PolicyDecision d = Step(policy);
  EXPECT_EQ(d.layers, 0u);
  EXPECT_EQ(d.reason, "load fits, all weights resident");
}

TEST_F(OneirosTest, TheFewestLayersThatCoverTheShortfallAreLentAtOnce) {
  OneirosPolicy policy({});
  Load(100, 35);  // 35 blocks short: four layers
  const PolicyDecision d = Step(policy);
  EXPECT_EQ(d.placement, Placement::kLayer);
  EXPECT_EQ(d.ring_slots, 1u);  // both hide, and one slot loads a layer less
  EXPECT_EQ(d.layers, 5u);
  EXPECT_EQ(d.reason,
            "135 blocks needed, 100 there: 0 -> 4 of 40 layers lent, 5 take turns in 1 slots");
}

TEST_F(OneirosTest, TwoSlotsTakeOverWhereOneWouldStall) {
  OneirosPolicy policy({});
  Load(100, 150);
  const PolicyDecision d = Step(policy);  // one slot hides 12 layers, two hide 18
  EXPECT_EQ(d.ring_slots, 2u);
  EXPECT_EQ(d.layers, 17u);
}

TEST_F(OneirosTest, NoMoreIsLentThanHidesBehindTheCompute) {
  for (const auto& [slots, layers] : {std::pair{0u, 10u}, {1u, 8u}, {2u, 10u}}) {
    OneirosPolicy policy({.slots = slots});
    Ratio(4);
    InForce({});
    Load(100, 5000);
    EXPECT_EQ(Step(policy).layers, layers) << slots;
  }
}

TEST_F(OneirosTest, NoMoreIsLentThanTheCap) {
  OneirosPolicy policy({.cap = 0.25});
  Ratio(0.5);
  Load(100, 5000);
  const PolicyDecision d = Step(policy);
  EXPECT_EQ(d.layers - d.ring_slots, 10u);
}

TEST_F(OneirosTest, ALinkThatHidesNothingLendsNothingUnlessARequestCouldNeverRun) {
  OneirosPolicy policy({});
  Ratio(75);
  Load(100, 5000);
  EXPECT_EQ(Step(policy).layers, 0u);
  Load(0, 130);
  s_.demand.starved_blocks = 130;
  const PolicyDecision d = Step(policy);
  EXPECT_EQ(d.layers - d.ring_slots, 3u);
}

TEST_F(OneirosTest, LayersComeHomeAfterAmpleRoomHasLasted) {
  OneirosPolicy policy({.hold_steps = 10});
  Load(100, 35);
  ASSERT_EQ(Step(policy).layers, 5u);
  Load(110, 0);  // 110 * 1.2 needs four layers still
  for (int i = 0; i < 30; ++i) ASSERT_EQ(Step(policy).layers, 5u);
  Load(60, 0);
  for (int i = 0; i < 10; ++i) ASSERT_EQ(Step(policy).layers, 5u) << i;
  EXPECT_EQ(Step(policy).layers, 0u);
}

TEST_F(OneirosTest, ABriefLullBringsNothingHome) {
  OneirosPolicy policy({.hold_steps = 10});
  Load(100, 35);
  for (int i = 0; i < 100; ++i) {
    Load(i % 8 == 0 ? 135 : 60, 0);
    if (i == 0) Load(100, 35);
    ASSERT_EQ(Step(policy).layers, 5u) << i;
  }
}

TEST_F(OneirosTest, AShorterPassBringsHomeWhatNoLongerHides) {
  OneirosPolicy policy({.hold_steps = 10});
  Load(100, 150);
  ASSERT_EQ(Step(policy).layers, 17u);
  Ratio(10);      // hides two layers
  Load(50, 190);  // still wanted, but not in use
  PolicyDecision d;
  for (int i = 0; i < 12; ++i) d = Step(policy);
  EXPECT_EQ(d.layers - d.ring_slots, 2u);
}

TEST_F(OneirosTest, WaitingRequestsThatTheSchedulerWouldNotRunNeedNoKv) {
  OneirosPolicy policy({});
  Load(90, 1000);
  s_.demand.running = s_.demand.max_running = 4;
  EXPECT_EQ(Step(policy).layers, 0u);
}

}  // namespace
}  // namespace weir
