#include "policy/prompt_pace.h"

#include <gtest/gtest.h>

#include "policy/resident.h"
#include "policy/tide.h"

namespace weir {
namespace {

// A full KV and a long queue: 600 prompt tokens for 200 generated.
PolicySnapshot Full() {
  PolicySnapshot s;
  s.kv = {.blocks_per_extent = 16, .block_tokens = 16, .mapped_extents = 138, .used_blocks = 2200};
  s.kv.free_blocks = 8;
  s.demand = {.running = 50, .waiting = 20, .waiting_blocks = 20 * 38};
  s.demand.prefill_per_request = 600;
  s.demand.output_per_request = 200;
  return s;
}

TEST(PromptPace, IsWhatTakesThePlaceOfTheTokensGenerated) {
  const PolicySnapshot s = Full();
  EXPECT_EQ(PacedPromptTokens(s, 1), 150U);
  EXPECT_EQ(PacedPromptTokens(s, 1.25), 188U);
}

TEST(PromptPace, FillsAnEmptyKvSooner) {
  PolicySnapshot s = Full();
  s.demand.waiting_blocks = 10'000;
  s.kv.free_blocks = 640;
  s.kv.cached_blocks = 320;  // may be taken as well
  EXPECT_EQ(PacedPromptTokens(s, 1), 960U * 16 / 64);
  s.demand.running = 0;
  EXPECT_EQ(PacedPromptTokens(s, 1), 960U * 16 / 64);
}

TEST(PromptPace, SpreadsNoPromptThinnerThanThis) {
  PolicySnapshot s = Full();
  s.demand.prefill_per_request = 1;
  EXPECT_EQ(PacedPromptTokens(s, 1), 64U);
}

TEST(PromptPace, LetsAllInThatFit) {
  for (const bool cached : {false, true}) {
    PolicySnapshot s = Full();
    (cached ? s.kv.cached_blocks : s.kv.free_blocks) = 20 * 38;
    EXPECT_EQ(PacedPromptTokens(s, 1), 0U);
  }
  PolicySnapshot s = Full();
  s.demand.waiting = 0;
  EXPECT_EQ(PacedPromptTokens(s, 1), 0U);
}

TEST(PromptPace, IsNotKnownBeforeRequestsHaveEnded) {
  PolicySnapshot s = Full();
  s.demand.prefill_per_request = s.demand.output_per_request = 0;
  EXPECT_EQ(PacedPromptTokens(s, 1), 0U);
  s.demand.prefill_per_request = 600;
  EXPECT_EQ(PacedPromptTokens(s, 1), 0U);
}

TEST(PromptPace, IsOffAtZero) {
  EXPECT_EQ(PacedPromptTokens(Full(), 0), 0U);
}

TEST(PromptPace, IsWhatPoliciesThatAreGivenOneDecide) {
  EXPECT_EQ(TidePolicy().Decide(Full()).prompt_tokens, 0U);
  EXPECT_EQ(FixedPolicy(FixedConfig{}).Decide(Full()).prompt_tokens, 0U);
  TidePolicy tide(TideConfig{.prompt_pace = 1.25});
  EXPECT_EQ(tide.Decide(Full()).prompt_tokens, 188U);
  EXPECT_EQ(FixedPolicy(FixedConfig{.prompt_pace = 1.25}).Decide(Full()).prompt_tokens, 188U);
}

}  // namespace
}  // namespace weir
