#include "engine/scheduler.h"

#include <deque>
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
  Sequence& Add(const SamplingParams& sampling) {
    Sequence& s = sequences_.emplace_back();
    s.id = s.arrival = sequences_.size();
    s.tokens.assign(10, static_cast<int32_t>(s.id));
    s.prompt_tokens = 10;
    s.sampling = sampling;
    s.sampling.max_tokens = 20;
    s.root = PrefixRoot(0);
    s.logit_edits = MostLogitEdits(s.sampling, 30, 2, kVocab);
    scheduler().Add(&s);
    return s;
  }
  void Step() {
    std::vector<ScheduledSequence> batch;
    scheduler().Schedule(&batch);
    scheduler().OnSubmitted(batch);
    scheduler().OnComputed(batch);
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

TEST_F(SchedulerTest, WithoutALimitAllRun) {
  for (int i = 0; i < 5; ++i) Add(WithPenalty());
  Step();
  EXPECT_EQ(scheduler().running(), 5U);
}

}  // namespace
}  // namespace weir
