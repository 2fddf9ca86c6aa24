#include "policy/prompt_limit.h"

#include <gtest/gtest.h>

#include "policy/resident.h"
#include "policy/tide.h"

namespace weir {
namespace {

constexpr double kMs = 1e6;

// 50 sequences decode behind 400 tokens each: 5 ms, and 20 us for each prompt token.
PolicySnapshot Decoding() {
  PolicySnapshot s;
  s.granule_bytes = 1 << 20;
  s.weights = {.layers = 10, .max_granules_per_layer = 8};
  s.kv = {.blocks_per_extent = 16, .block_tokens = 16, .mapped_extents = 138, .used_blocks = 1250};
  s.kv.free_blocks = 958;
  s.demand = {.running = 51, .decoding = 50, .tokens_per_seq = 400, .max_batched_tokens = 8192};
  s.cost = {
      .fixed_ns = 3 * kMs, .per_token_ns = 2e4, .per_context_ns = 50, .link_bytes_per_ns = 100};
  return s;
}

TEST(PromptLimit, LeavesAStepAsLongAsTheTarget) {
  const PolicySnapshot s = Decoding();
  const BesidePrompts beside{.decoding = 50, .context = 50 * 400, .prompt = 0};
  ASSERT_DOUBLE_EQ(beside.StepNs(s.cost, 0), 5 * kMs);
  const uint32_t tokens = PromptTokensFor(s, 15);
  EXPECT_NEAR(tokens, 10e3 / 20.05, 1) << "each is computed, and read";
  EXPECT_LE(beside.StepNs(s.cost, tokens), 15 * kMs);
  EXPECT_GT(beside.StepNs(s.cost, tokens + 2), 15 * kMs);
}

TEST(PromptLimit, CountsWhatAPromptsTokensAttendTo) {
  PolicySnapshot s = Decoding();
  s.demand.prefill_per_request = 4000;
  s.cost.per_pair_ns =
      10;  // those at its end to nearly 4000 others: twice as dear as their products
  // Its KV is read once a step, 0.2 ms.
  const uint32_t tokens = PromptTokensFor(s, 15.2);
  EXPECT_NEAR(tokens * (20 + (4000 - tokens / 2.0) * 10e-3), 10e3, 100);
}

TEST(PromptLimit, CountsWhatIsCachedOfAPromptAsWell) {
  PolicySnapshot s = Decoding();
  s.demand.prefill_per_request = 100;
  s.cost.per_pair_ns = 10;
  const uint32_t alone = PromptTokensFor(s, 15);
  s.cost.per_context_ns /= 10;  // the same context in all
  s.demand.tokens_per_seq *= 10;
  EXPECT_LT(PromptTokensFor(s, 15), 0.8 * alone);
}

TEST(PromptLimit, CountsWhatIsAway) {
  PolicySnapshot s = Decoding();
  s.cost.copy_interference = 0.1;
  s.weights.granules_per_layer = 5;
  const double bytes = 50 << 20;
  EXPECT_NEAR(PromptTokensFor(s, 20.24288), 498, 1) << "copies slow the step";
  s.cost.copy_interference = 0;
  s.weights.placement = Placement::kLayer;
  s.weights.granules_per_layer = 0;
  s.weights.layers_away = 5;
  s.weights.granules_per_whole_layer = 10;
  s.cost.copy_interference = 0.1;
  EXPECT_NEAR(PromptTokensFor(s, 20.24288), 498, 1);
  s.weights.placement = Placement::kInPlace;
  s.weights.granules_per_layer = 5;
  // Read again for every 256 rows.
  EXPECT_NEAR(PromptTokensFor(s, 15 + bytes / 100 / kMs * 548 / 256), 498, 1);
}

TEST(PromptLimit, SpreadsNoPromptThinnerThanThis) {
  EXPECT_EQ(PromptTokensFor(Decoding(), 5.1), 64U);
  EXPECT_EQ(PromptTokensFor(Decoding(), 0.1), 64U) << "a target that nothing can keep";
  PolicySnapshot s = Decoding();
  s.weights.granules_per_layer = 8;
  s.cost.link_bytes_per_ns = 1;  // the step waits for the link, 84 ms
  EXPECT_EQ(PromptTokensFor(s, 20), 64U);
}

TEST(PromptLimit, IsNoneWithoutATargetOrAnybodyWhoWaitsForATokenOrKnownCosts) {
  EXPECT_EQ(PromptTokensFor(Decoding(), 0), 0U);
  EXPECT_EQ(PromptTokensFor(Decoding(), 1000), 0U) << "a step cannot be as long";
  PolicySnapshot s = Decoding();
  s.demand.decoding = 0;
  EXPECT_EQ(PromptTokensFor(s, 15), 0U);
  s = Decoding();
  s.cost = {};
  EXPECT_EQ(PromptTokensFor(s, 15), 0U);
}

TEST(PromptLimit, SaysHowManyMayDecodeIfEachComesWithPrompts) {
  const StepCost cost{.fixed_ns = 3 * kMs, .per_token_ns = 2e4, .per_context_ns = 50};
  const BesidePrompts step{.decoding = 100, .context = 100 * 400, .prompt = 0};
  // 3 ms, and 20 + 20 + 3 * 20 us each.
  EXPECT_NEAR(DecodingWithin(cost, step, 3, 8 * kMs), 50 - 50.0 * 3 / 2 * 50 / 1e5, 0.1);
  EXPECT_EQ(DecodingWithin(cost, step, 3, 20 * kMs), 100);
  EXPECT_EQ(DecodingWithin(cost, step, 3, 2 * kMs), 0);
}

TEST(PromptLimit, IsWhatPoliciesThatAreGivenATargetDecide) {
  EXPECT_EQ(TidePolicy().Decide(Decoding()).prompt_tokens, 0U);
  EXPECT_EQ(FixedPolicy(FixedConfig{}).Decide(Decoding()).prompt_tokens, 0U);
  TidePolicy tide(TideConfig{.itl_ms = 15});
  EXPECT_EQ(tide.Decide(Decoding()).prompt_tokens, PromptTokensFor(Decoding(), 15));
  EXPECT_EQ(FixedPolicy(FixedConfig{.itl_ms = 15}).Decide(Decoding()).prompt_tokens,
            PromptTokensFor(Decoding(), 15));
}

}  // namespace
}  // namespace weir
