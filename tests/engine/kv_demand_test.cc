#include "engine/kv_demand.h"

#include <map>
#include <memory>
#include <random>
#include <set>
#include <tuple>

#include <gtest/gtest.h>

namespace weir {
namespace {

std::unique_ptr<Sequence> Request(std::vector<int32_t> prompt, uint32_t max_tokens,
                                  uint64_t salt = 0) {
  auto s = std::make_unique<Sequence>();
  s->prompt_tokens = static_cast<uint32_t>(prompt.size());
  s->tokens = std::move(prompt);
  s->sampling.max_tokens = max_tokens;
  s->root = PrefixRoot(salt);
  return s;
}

std::vector<int32_t> Tokens(size_t n, int32_t first) {
  std::vector<int32_t> t(n);
  for (size_t i = 0; i < n; ++i) t[i] = first + static_cast<int32_t>(i);
  return t;
}

TEST(KvDemandTest, CountsASharedSystemPromptOnce) {
  KvDemand demand(KvDemand::Sharing::kPrefixes);
  std::vector<std::unique_ptr<Sequence>> requests;
  for (int i = 0; i < 100; ++i) {
    std::vector<int32_t> prompt = Tokens(160, 0);  // 10 blocks in common
    prompt.push_back(1000 + i);
    requests.push_back(Request(prompt, 15));  // 161 + 15 tokens: one block of its own
    demand.Enqueue(*requests.back());
  }
  EXPECT_EQ(demand.waiting_blocks(), 10u + 100);
  EXPECT_EQ(demand.expected_blocks(), 10u + 100);
  requests[0]->state = SequenceState::kRunning;
  demand.Admit(*requests[0]);
  // The prefix is there already: only the tails wait.
  EXPECT_EQ(demand.waiting_blocks(), 99u);
  EXPECT_EQ(demand.expected_blocks(), 110u);
}

TEST(KvDemandTest, CountsEveryBlockOfEveryRequestWithoutSharing) {
  KvDemand demand(KvDemand::Sharing::kNone);
  auto a = Request(Tokens(160, 0), 16);
  auto b = Request(Tokens(160, 0), 16);
  demand.Enqueue(*a);
  demand.Enqueue(*b);
  EXPECT_EQ(demand.expected_blocks(), 22u);
  EXPECT_EQ(demand.waiting_blocks(), 20u);
}

TEST(KvDemandTest, KeepsTenantsApart) {
  KvDemand demand(KvDemand::Sharing::kPrefixes);
  auto a = Request(Tokens(160, 0), 16, 1);
  auto b = Request(Tokens(160, 0), 16, 2);
  demand.Enqueue(*a);
  demand.Enqueue(*b);
  EXPECT_EQ(demand.expected_blocks(), 22u);
}

// Against a count from scratch after every step of random lives.
TEST(KvDemandTest, EqualsARecountAfterAnyHistory) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const auto pick = [&](uint32_t n) { return static_cast<uint32_t>(random() % n); };
    KvDemand demand(KvDemand::Sharing::kPrefixes);
    std::vector<std::unique_ptr<Sequence>> all;
    for (int step = 0; step < 300; ++step) {
      const uint32_t action = pick(5);
      if (action == 0 || all.empty()) {
        std::vector<int32_t> prompt = Tokens(1 + pick(70), static_cast<int32_t>(pick(2)) * 100);
        if (pick(2) == 0) prompt.back() = 7;
        all.push_back(Request(prompt, 1 + pick(40), pick(2)));
        demand.Enqueue(*all.back());
      } else {
        const size_t i = pick(static_cast<uint32_t>(all.size()));
        Sequence& s = *all[i];
        if (action == 1 && s.state == SequenceState::kWaiting) {
          s.state = SequenceState::kRunning;
          demand.Admit(s);
        } else if (action == 2 && s.state == SequenceState::kRunning) {
          s.state = SequenceState::kWaiting;
          demand.Requeue(s);
        } else if (action == 3 && s.state == SequenceState::kRunning &&
                   s.output_tokens() < s.sampling.max_tokens) {
          s.tokens.push_back(1);
        } else if (action == 4) {
          demand.Forget(s, s.state);
          all.erase(all.begin() + static_cast<std::ptrdiff_t>(i));
        }
      }
      std::set<std::tuple<uint64_t, uint64_t>> known, running, waiting;
      uint64_t expected = 0, waits = 0;
      for (const auto& s : all) {
        const uint64_t full = s->prompt_tokens / kBlockTokens;
        ASSERT_EQ(s->prompt_hashes.size(), full);
        expected += (s->prompt_tokens + s->sampling.max_tokens + 15) / 16 - full;
        if (s->state == SequenceState::kWaiting) waits += (s->length() + 15) / 16 - full;
        for (const PrefixHash& h : s->prompt_hashes) {
          known.insert({h.low, h.high});
          (s->state == SequenceState::kRunning ? running : waiting).insert({h.low, h.high});
        }
      }
      for (const auto& h : waiting) waits += running.contains(h) ? 0U : 1U;
      ASSERT_EQ(demand.expected_blocks(), expected + known.size());
      ASSERT_EQ(demand.waiting_blocks(), waits);
    }
    for (const auto& s : all) demand.Forget(*s, s->state);
    EXPECT_EQ(demand.expected_blocks(), 0u);
    EXPECT_EQ(demand.waiting_blocks(), 0u);
  }
}

}  // namespace
}  // namespace weir
