#include "engine/scheduler.h"

#include <deque>
#include <map>
#include <memory>

#include <gtest/gtest.h>

namespace weir {
namespace {

constexpr uint32_t kVocab = 1000;

// Sequences of ten prompt tokens on plenty of KV, in steps that compute nothing.
class SchedulerTest : public ::testing::Test {
 protected:
  SchedulerTest() {
    blocks_.AddExtent(0);
    options_.max_sequences = 8;
  }
  Scheduler& scheduler() {
    if (!scheduler_) scheduler_ = std::make_unique<Scheduler>(blocks_, options_, [](uint32_t) {});
    return *scheduler_;
  }
  Sequence& Add(const SamplingParams& sampling, uint32_t prompt_tokens = 10) {
    Sequence& s = sequences_.emplace_back();
    s.id = s.arrival = sequences_.size();
    s.tokens.assign(prompt_tokens, static_cast<int32_t>(s.id));
    s.prompt_tokens = prompt_tokens;
    s.sampling = sampling;
    s.sampling.max_tokens = 20;
    s.root = PrefixRoot(0);
    s.logit_edits = MostLogitEdits(s.sampling, prompt_tokens + 20, 2, kVocab);
    scheduler().Add(&s);
    return s;
  }
  // Returns the tokens of each sequence, by its number.
  std::map<uint64_t, uint32_t> Step(uint32_t prompt_tokens = 0) {
    std::vector<ScheduledSequence> batch;
    scheduler().Schedule(&batch, prompt_tokens);
    scheduler().OnSubmitted(batch);
    scheduler().OnComputed(batch);
    std::map<uint64_t, uint32_t> tokens;
    for (const ScheduledSequence& s : batch) {
      EXPECT_GT(s.tokens, 0U);
      tokens[s.sequence->id] = s.tokens;
      if (s.end == s.sequence->length()) s.sequence->tokens.push_back(0);  // sampled
    }
    return tokens;
  }

  BlockManager blocks_{{.blocks_per_extent = 64, .max_extents = 1}};
  SchedulerOptions options_;
  std::deque<Sequence> sequences_;
  std::unique_ptr<Scheduler> scheduler_;
};

SamplingParams WithPenalty() {
  SamplingParams p;
  p.repetition_penalty = 1.1;
  return p;
}

TEST(MostLogitEdits, IsWhatBiasesPenaltiesAndTheMinimumMayTouch) {
  SamplingParams p;
  EXPECT_EQ(MostLogitEdits(p, 30, 2, kVocab), 0U);
  p.logit_bias = {{3, 1.0F}, {4, -1.0F}};
  EXPECT_EQ(MostLogitEdits(p, 30, 2, kVocab), 2U);
  p.stop_token_ids = {7};
  EXPECT_EQ(MostLogitEdits(p, 30, 2, kVocab), 2U) << "only masked before min_tokens";
  p.min_tokens = 5;
  EXPECT_EQ(MostLogitEdits(p, 30, 2, kVocab), 5U);
  p.presence_penalty = 0.5;
  EXPECT_EQ(MostLogitEdits(p, 30, 2, kVocab), 35U);
  EXPECT_EQ(MostLogitEdits(p, 5000, 2, kVocab), kVocab);
}

TEST_F(SchedulerTest, SequencesWhoseLogitEditsDoNotFitTogetherTakeTurns) {
  options_.max_logit_edits = 70;  // of two, with 30 each
  for (int i = 0; i < 3; ++i) Add(WithPenalty());
  Step();
  EXPECT_EQ(scheduler().running(), 2U);
  EXPECT_EQ(scheduler().waiting(), 1U);
  Step();
  EXPECT_EQ(scheduler().running(), 2U);
  scheduler().Finish(&sequences_[0]);
  Step();
  EXPECT_EQ(scheduler().running(), 2U);
  EXPECT_EQ(scheduler().waiting(), 0U);
}

TEST_F(SchedulerTest, OneSequenceAlwaysRunsAndOthersWithoutEditsRunBesideIt) {
  options_.max_logit_edits = 10;
  Add(WithPenalty());
  for (int i = 0; i < 3; ++i) Add({});
  Step();
  EXPECT_EQ(scheduler().running(), 4U);
}

using Tokens = std::map<uint64_t, uint32_t>;

TEST_F(SchedulerTest, PromptsTakeNoMoreOfAStepThanTheyMay) {
  Add({}, 10);
  Add({}, 30);
  Add({}, 5);
  EXPECT_EQ(Step(16), (Tokens{{1, 10}, {2, 6}}));
  EXPECT_EQ(scheduler().decoding(), 1U);
  // A sequence that decodes goes on whatever prompts take.
  EXPECT_EQ(Step(16), (Tokens{{1, 1}, {2, 16}}));
  EXPECT_EQ(Step(16), (Tokens{{1, 1}, {2, 8}, {3, 5}}));
  EXPECT_EQ(scheduler().decoding(), 3U);
  EXPECT_EQ(Step(16), (Tokens{{1, 1}, {2, 1}, {3, 1}}));
}

TEST_F(SchedulerTest, APromptThatHasToWaitForItsTurnIsLeftOut) {
  options_.max_prefill_chunk = 8;
  Add({}, 30);
  Add({}, 30);
  EXPECT_EQ(Step(), (Tokens{{1, 8}, {2, 8}}));
  EXPECT_EQ(Step(8), (Tokens{{1, 8}}));
  EXPECT_EQ(Step(12), (Tokens{{1, 8}, {2, 4}}));
  EXPECT_EQ(Step(8), (Tokens{{1, 6}, {2, 2}}));
  EXPECT_EQ(Step(8), (Tokens{{1, 1}, {2, 8}}));
}

// However little of a prompt is computed in a step, no other sequence gets what it needs.
TEST_F(SchedulerTest, AdmissionTakesTheBlocksOfTheWholePrompt) {
  Add({}, 40 * kBlockTokens);
  Add({}, 30 * kBlockTokens);
  EXPECT_EQ(Step(1), (Tokens{{1, 1}}));
  EXPECT_EQ(blocks_.counts().used, 40U);
  EXPECT_EQ(Step(1), (Tokens{{1, 1}}));
  EXPECT_EQ(scheduler().running(), 1U) << "of 64 blocks";
  EXPECT_EQ(scheduler().stats().preemptions, 0U);
}

TEST_F(SchedulerTest, WithoutALimitAllRun) {
  for (int i = 0; i < 5; ++i) Add(WithPenalty());
  Step();
  EXPECT_EQ(scheduler().running(), 5U);
}

}  // namespace
}  // namespace weir
