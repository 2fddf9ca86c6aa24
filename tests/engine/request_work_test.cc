#include "engine/request_work.h"

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace weir {
namespace {

constexpr uint32_t kPrompt = 160;

struct Running {
  uint32_t output = 0, generated = 0;
  uint32_t blocks() const { return (kPrompt + generated + kBlockTokens - 1) / kBlockTokens; }
};

// Sequences that each generate a token a step, and are replaced when they end. They begin together,
// or spread over their lives if they are alike.
class Slots {
 public:
  Slots(uint32_t n, double mean, bool alike) : random_(1), mean_(mean), alike_(alike) {
    for (uint32_t i = 0; i < n; ++i) running_.push_back({.output = Draw()});
    if (!alike) return;
    for (uint32_t i = 0; i < n; ++i) running_[i].generated = running_[i].output * i / n;
  }
  void Step(RequestWork* work) {
    uint64_t generated = 0;
    uint32_t blocks = 0;
    for (Running& r : running_) {
      ++r.generated;
      generated += r.generated;
      blocks += r.blocks();
    }
    const auto n = static_cast<uint32_t>(running_.size());
    work->ObserveStep(blocks, n, generated, n);
    held_ = static_cast<double>(blocks) / n;
    for (Running& r : running_) {
      if (r.generated < r.output) continue;
      work->ObserveEnd(kPrompt, r.output);
      r = {.output = Draw()};
    }
  }
  void CancelAll(RequestWork* work) {
    for (Running& r : running_) {
      work->ObserveCancelled(kPrompt, r.generated);
      r = {.output = Draw()};
    }
  }
  double held() const { return held_; }  // blocks a sequence, after the last step

 private:
  uint32_t Draw() {
    if (alike_) return static_cast<uint32_t>(mean_);
    return 1 + static_cast<uint32_t>(std::geometric_distribution<uint32_t>(1 / mean_)(random_));
  }
  std::mt19937_64 random_;
  double mean_;
  bool alike_;
  std::vector<Running> running_;
  double held_ = 0;
};

double Blocks(const RequestWork& work) {
  return work.blocks_beside_output() +
         work.output_spread() * work.output_per_request() / kBlockTokens;
}

TEST(RequestWork, NothingIsSaidBeforeSomeHaveEnded) {
  RequestWork work;
  work.ObserveStep(20, 2, 0, 2);
  for (int i = 0; i < 15; ++i) work.ObserveEnd(100, 10);
  EXPECT_EQ(work.output_per_request(), 0);
  EXPECT_EQ(work.prefill_per_request(), 0);
  EXPECT_EQ(work.blocks_beside_output(), 10);
  work.ObserveEnd(100, 10);
  EXPECT_GT(work.output_per_request(), 0);
  EXPECT_EQ(work.prefill_per_request(), 100);
}

TEST(RequestWork, FindsWhatASequenceHoldsInTheSteadyState) {
  for (const bool alike : {false, true}) {
    RequestWork work;
    Slots slots(64, 300, alike);
    double held = 0;
    for (int step = 0; step < 6000; ++step) {
      slots.Step(&work);
      if (step >= 2000) held += slots.held() / 4000;
    }
    EXPECT_NEAR(work.output_per_request(), 300, alike ? 10 : 60);
    EXPECT_NEAR(work.output_spread(), alike ? 0.5 : 1, 0.2);
    EXPECT_NEAR(Blocks(work) / held, 1, 0.12) << alike;
  }
}

// All were admitted at once, so all are young, and a quarter has ended: the mean over what was held
// so far is far from what will be.
TEST(RequestWork, IsNotMisledByAStart) {
  RequestWork work;
  Slots slots(64, 300, false);
  double held_so_far = 0;
  for (int step = 0; step < 80; ++step) {
    slots.Step(&work);
    held_so_far += slots.held() / 80;
  }
  const double steady = (kPrompt + 300.0) / kBlockTokens + 0.5;
  ASSERT_LT(held_so_far, 0.5 * steady);
  EXPECT_NEAR(Blocks(work) / steady, 1, 0.3);
}

TEST(RequestWork, ManyCancelledAtOnceDoNotMakeRequestsShort) {
  RequestWork work;
  Slots slots(150, 300, true);
  for (int step = 0; step < 3000; ++step) slots.Step(&work);
  EXPECT_NEAR(work.output_per_request(), 300, 10);
  for (int step = 0; step < 150; ++step) slots.Step(&work);
  slots.CancelAll(&work);
  EXPECT_GT(work.output_per_request(), 220);
}

// A client that always hangs up after so many tokens is a load like any other.
TEST(RequestWork, TokensOfCancelledRequestsCount) {
  RequestWork work;
  for (int i = 0; i < 1000; ++i) {
    for (int token = 0; token < 50; ++token) work.ObserveStep(12, 1, 0, 1);
    work.ObserveCancelled(kPrompt, 50);
  }
  EXPECT_NEAR(work.output_per_request(), 50, 1);
  EXPECT_EQ(work.prefill_per_request(), kPrompt);
}

}  // namespace
}  // namespace weir
