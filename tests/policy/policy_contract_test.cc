// One contract for every policy: D1 determinism, limits, D3 hold-off, sane text.
#include <cmath>
#include <limits>
#include <random>

#include <gtest/gtest.h>

#include "policy/registry.h"

namespace weir {
namespace {

uint64_t HoldSteps(const Policy& policy) {
  for (const auto& [key, value] : policy.Parameters()) {
    if (key == "hold_steps") return std::stoull(value);
  }
  return 0;
}

template <typename T>
T Pick(std::mt19937_64& random, std::initializer_list<T> values) {
  return values.begin()[random() % values.size()];
}

double AnyDouble(std::mt19937_64& random) {
  return Pick<double>(
      random, {0.0, 1.0, 1e-9, 2e4, 5e6, 1e12, 1e300, -1.0,
               std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()});
}

// Anything at all, consistent or not.
PolicySnapshot AnySnapshot(std::mt19937_64& random) {
  const auto any32 = [&] {
    return Pick<uint32_t>(random, {0, 1, 2, 3, 16, 64, 1000, 1u << 20, UINT32_MAX,
                                   static_cast<uint32_t>(random() % 4096)});
  };
  const auto any64 = [&] { return Pick<uint64_t>(random, {0, 1, 1u << 25, random(), UINT64_MAX}); };
  PolicySnapshot s;
  s.step = any64();
  s.now_ns = any64();
  s.granule_bytes = any64();
  s.pool_total = any32();
  s.pool_free = any32();
  s.weights = {any64(), any32(), any32(), any32(), any32()};
  s.weights.placement = static_cast<Placement>(random() % kPlacementNames.size());
  s.weights.layers_away = any32();
  s.weights.max_layers_away = any32();
  s.weights.granules_per_whole_layer = any32();
  s.weights.freed_granules = any32();
  s.weights.max_in_place_per_layer = any32();
  s.kv = {any32(), any32(), any32(), any32(), any32(), any32(), any32(), any32()};
  s.demand.running = any32();
  s.demand.decoding = any32();
  s.demand.waiting = any32();
  s.demand.max_running = any32();
  s.demand.waiting_blocks = any64();
  s.demand.expected_blocks = any64();
  s.demand.starved_blocks = random() % 4 ? 0 : any64();
  s.demand.tokens_per_seq = AnyDouble(random);
  s.demand.max_batched_tokens = any32();
  for (double* v :
       {&s.demand.asked_per_request, &s.demand.blocks_beside_output, &s.demand.output_spread,
        &s.demand.prefill_per_request, &s.demand.output_per_request}) {
    *v = AnyDouble(random);
  }
  s.cost = {AnyDouble(random), AnyDouble(random), AnyDouble(random), AnyDouble(random),
            AnyDouble(random), AnyDouble(random), AnyDouble(random)};
  s.step_ns = AnyDouble(random);
  s.stall_ns_per_step = AnyDouble(random);
  return s;
}

// What a decision gives KV, in layers or in granules of each layer.
uint32_t Given(const PolicyDecision& d) {
  return d.placement == Placement::kLayer ? d.layers - std::min(d.layers, d.ring_slots)
                                          : d.granules_per_layer;
}

// A server of one geometry under a load that jumps about; |away| is what is in force.
PolicySnapshot PlausibleSnapshot(std::mt19937_64& random, uint64_t step,
                                 const PolicyDecision& away) {
  PolicySnapshot s;
  s.step = step;
  s.granule_bytes = 32u << 20;
  s.pool_total = 3000;
  s.pool_free = static_cast<uint32_t>(random() % 8);
  s.weights = {uint64_t{48} << 30, 48, 24, away.granules_per_layer, 2};
  s.weights.placement = away.placement;
  s.weights.layers_away = away.layers;
  s.weights.max_layers_away = 48;
  s.weights.granules_per_whole_layer = 24;
  s.weights.max_in_place_per_layer = 24;
  constexpr uint32_t kFreed[] = {46, 24, 48};  // by placement: granules a layer's, or a layer
  s.weights.freed_granules = Given(away) * kFreed[static_cast<size_t>(away.placement)];
  s.kv.blocks_per_extent = 16;
  s.kv.mapped_extents = 600 + s.weights.freed_granules;
  s.kv.max_extents = 3000;
  const uint32_t blocks = s.kv.mapped_extents * 16;
  s.kv.used_blocks = static_cast<uint32_t>(random() % (blocks + 1));
  s.kv.free_blocks = blocks - s.kv.used_blocks;
  s.demand.running = static_cast<uint32_t>(random() % 256);
  s.demand.decoding = static_cast<uint32_t>(random() % (s.demand.running + 1));
  s.demand.waiting = random() % 2 ? static_cast<uint32_t>(random() % 200) : 0;
  s.demand.max_running = 256;
  s.demand.waiting_blocks = s.demand.waiting * 40u;
  s.demand.expected_blocks = s.kv.used_blocks + s.demand.waiting_blocks + random() % 4000;
  s.demand.tokens_per_seq = 200 + static_cast<double>(random() % 3000);
  s.demand.max_batched_tokens = 2048;
  s.demand.asked_per_request = 300;
  s.demand.blocks_beside_output = 10 + static_cast<double>(random() % 40);
  s.demand.output_spread = 0.5 + static_cast<double>(random() % 8) / 8;
  s.demand.output_per_request = random() % 2 ? 50 + static_cast<double>(random() % 500) : 0;
  s.demand.prefill_per_request = s.demand.output_per_request > 0 ? 400 : 0;
  s.cost = {Pick<double>(random, {2e6, 8e6, 2e7}), 2e4, 0.5, Pick<double>(random, {50.0, 380.0}),
            0};
  return s;
}

class PolicyContract : public testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Policy> Make() const {
    auto policy = MakePolicy(GetParam());
    EXPECT_TRUE(policy.ok()) << policy.status().ToString();
    return std::move(policy).value();
  }
};

TEST_P(PolicyContract, SameSnapshotsGiveSameDecisions) {
  const auto a = Make(), b = Make();
  std::mt19937_64 random(11);
  PolicyDecision away;
  for (uint64_t step = 0; step < 3000; ++step) {
    const PolicySnapshot s = PlausibleSnapshot(random, step, away);
    const PolicyDecision first = a->Decide(s), second = b->Decide(s);
    ASSERT_EQ(first.placement, second.placement);
    ASSERT_EQ(first.granules_per_layer, second.granules_per_layer);
    ASSERT_EQ(first.layers, second.layers);
    ASSERT_EQ(first.ring_slots, second.ring_slots);
    ASSERT_EQ(first.prompt_tokens, second.prompt_tokens);
    ASSERT_EQ(first.reason, second.reason);
    away = first;
  }
}

TEST_P(PolicyContract, DecisionsAreWithinLimitsForAnySnapshot) {
  std::mt19937_64 random(12);
  for (int stream = 0; stream < 400; ++stream) {
    const auto policy = Make();
    for (int i = 0; i < 25; ++i) {
      const PolicySnapshot s = AnySnapshot(random);
      const PolicyDecision d = policy->Decide(s);
      ASSERT_LE(d.granules_per_layer, d.placement == Placement::kInPlace
                                          ? s.weights.max_in_place_per_layer
                                          : s.weights.max_granules_per_layer)
          << d.reason;
      ASSERT_GE(d.ring_slots, d.placement == Placement::kLayer ? 1u : 2u);
      ASSERT_LE(d.layers, s.weights.max_layers_away) << d.reason;
      // One placement at a time, and never so few layers that evicting them frees nothing.
      ASSERT_EQ(d.placement == Placement::kLayer ? d.granules_per_layer : d.layers, 0u);
      ASSERT_TRUE(d.layers == 0 || d.layers > d.ring_slots) << d.reason;
      ASSERT_FALSE(d.reason.empty());
      ASSERT_LT(d.reason.size(), 512u);
      ASSERT_EQ(d.reason.find('\n'), std::string::npos);
    }
  }
}

TEST_P(PolicyContract, AnEmptySnapshotMovesNothing) {
  EXPECT_EQ(Make()->Decide(PolicySnapshot{}).amount(), 0u);
}

TEST_P(PolicyContract, OppositeMovesAreApartByTheHoldOff) {
  const uint64_t hold = HoldSteps(*Make());
  int moves = 0;
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE(seed);
    const auto policy = Make();
    std::mt19937_64 random(seed);
    PolicyDecision away;
    away.granules_per_layer = static_cast<uint32_t>(random() % 25);
    PolicyDecision target;
    uint64_t moved_at = 0;
    int direction = 0;
    for (uint64_t step = 0; step < 1500; step += 1 + random() % 3) {
      const PolicyDecision d = policy->Decide(PlausibleSnapshot(random, step, away));
      const int now = Given(d) > Given(target) ? 1 : Given(d) < Given(target) ? -1 : 0;
      if (step > 0 && now != 0) {
        if (direction != 0 && now != direction) {
          ASSERT_GE(step - moved_at, hold) << d.reason;
        }
        direction = now;
        moved_at = step;
        ++moves;
      }
      target = d;
      // The engine follows by itself, a granule per layer at a time, or a whole layer.
      if (d.placement != away.placement || d.ring_slots != away.ring_slots) {
        away = d;
        continue;
      }
      for (uint32_t PolicyDecision::*amount :
           {&PolicyDecision::granules_per_layer, &PolicyDecision::layers}) {
        if (away.*amount < d.*amount) ++(away.*amount);
        if (away.*amount > d.*amount) --(away.*amount);
      }
    }
  }
  if (hold > 0) {
    EXPECT_GT(moves, 100);  // the stream does shake policies that move
  }
}

TEST_P(PolicyContract, ReasonsShowNoNan) {
  const auto policy = Make();
  std::mt19937_64 random(13);
  for (uint64_t step = 0; step < 2000; ++step) {
    const PolicyDecision d = policy->Decide(PlausibleSnapshot(random, step, {}));
    ASSERT_EQ(d.reason.find("nan"), std::string::npos) << d.reason;
    ASSERT_EQ(d.reason.find("inf"), std::string::npos) << d.reason;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Builtins, PolicyContract,
    testing::Values("resident", "fixed{granules_per_layer=6}",
                    "fixed{granules_per_layer=6; placement=in_place; itl_ms=20}",
                    "static{fraction=0.4}", "static{fraction=0.4; placement=stripe}",
                    "static{fraction=0.4; placement=in_place}", "zero-inference", "oneiros",
                    "oneiros{hold_steps=5; cap=1; slots=2}", "oneiros{hold_steps=3; slots=1}",
                    "tide", "tide{hold_steps=5; min_gain=0; move_cost=0; quantum=3}",
                    "tide{tpot_ms=20; ttft_ms=500}", "tide{itl_ms=20}", "stress_random",
                    "stress_random{seed=9; hold_steps=1}"));

TEST(PolicyContractSuite, CoversEveryBuiltin) {
  // Add the new policy to the list above.
  EXPECT_EQ(ListPolicies().size(), 7u);
}

}  // namespace
}  // namespace weir
