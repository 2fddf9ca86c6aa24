#include "engine/cli/metrics.h"

#include <algorithm>

#include <gtest/gtest.h>

#include "engine/cli/job.h"

namespace weir::cli {
namespace {

TEST(Metrics, PercentilesInterpolateAsNumpyDoes) {
  EXPECT_DOUBLE_EQ(Percentile({}, 50), 0);
  EXPECT_DOUBLE_EQ(Percentile({7}, 99), 7);
  EXPECT_DOUBLE_EQ(Percentile({4, 1, 3, 2}, 50), 2.5);
  EXPECT_DOUBLE_EQ(Percentile({1, 2, 3, 4}, 90), 3.7);
  EXPECT_DOUBLE_EQ(Percentile({1, 2, 3, 4}, 0), 1);
  EXPECT_DOUBLE_EQ(Percentile({1, 2, 3, 4}, 100), 4);
}

StepRecord Step(TimeNs start, TimeNs length, uint32_t running, uint32_t capacity) {
  StepRecord r;
  r.start_ns = start;
  r.step_ns = length;
  r.running = running;
  r.kv_capacity = capacity;
  return r;
}

TEST(Metrics, MeansAreWeightedByTheTimeOfTheSteps) {
  const std::vector<StepRecord> steps = {Step(0, 10, 1, 100), Step(10, 30, 5, 200)};
  EXPECT_DOUBLE_EQ(
      TimeWeightedMean(steps, [](const StepRecord& r) { return double{1} * r.running; }), 4);
}

TEST(Metrics, ASpanOfTimeWithoutAStepShowsTheOneThatCoversIt) {
  const std::vector<StepRecord> steps = {Step(0, 80, 1, 100), Step(80, 20, 5, 200)};
  const auto values =
      OverTime(steps, 4, [](const StepRecord& r) { return double{1} * r.kv_capacity; });
  EXPECT_EQ(values, (std::vector<double>{100, 100, 100, 200}));
}

TEST(Metrics, SparklinesScaleFromZero) {
  const std::vector<double> values = {0, 7, 14};
  EXPECT_EQ(Sparkline(values, 0), "▁▅█");
  EXPECT_EQ(Sparkline(values, 7), "▁██");
  EXPECT_EQ(Sparkline(std::vector<double>{0, 0}, 0), "▁▁");
}

RequestRecord Record(std::vector<int32_t> tokens) {
  RequestRecord r;
  r.submitted = r.finished = true;
  r.reason = FinishReason::kLength;
  r.prompt_tokens = 10;
  r.tokens = std::move(tokens);
  r.submitted_ns = 1'000'000;
  r.first_token_ns = 5'000'000;
  r.last_token_ns = 9'000'000;
  r.gaps_ms = {2, 2};
  return r;
}

TEST(Metrics, ASummaryCountsTokensRatesAndStalls) {
  JobResult job;
  job.requests = {Record({1, 2, 3}), Record({4, 5, 6})};
  job.steps = {Step(0, 1'000'000, 2, 100), Step(1'000'000, 3'000'000, 2, 300)};
  job.wall_ns = 2'000'000'000;
  job.pager.stall_ns = 1'000'000;
  job.pager.bytes_copied = 4'000;
  job.prefix = {.queried_tokens = 20, .hit_tokens = 5};
  const JobSummary s = Summarise(job);
  EXPECT_EQ(s.failed, 0U);
  EXPECT_DOUBLE_EQ(s.output_per_s, 3);
  EXPECT_DOUBLE_EQ(s.total_per_s, 13);
  EXPECT_DOUBLE_EQ(s.ttft_ms.p50, 4);
  EXPECT_DOUBLE_EQ(s.latency_ms.p99, 8);
  EXPECT_EQ(s.gap_ms.count, 4U);
  EXPECT_DOUBLE_EQ(s.stall_share, 0.25);
  EXPECT_DOUBLE_EQ(s.streamed_per_s, 2000);
  EXPECT_DOUBLE_EQ(s.prefix_hit_rate, 0.25);
  EXPECT_EQ(s.kv_start, 100U);
  EXPECT_EQ(s.kv_peak, 300U);
  EXPECT_DOUBLE_EQ(s.kv_mean, 250);
}

TEST(Metrics, TokensAreComparedRequestByRequest) {
  JobResult a, b;
  a.requests = {Record({1, 2}), Record({3}), Record({9})};
  b.requests = {Record({1, 2}), Record({4}), Record({8})};
  b.requests[2].reason = FinishReason::kError;
  const TokenComparison c = CompareTokens(a, b);
  EXPECT_EQ(c.compared, 2U);
  EXPECT_EQ(c.different, 1U);
  EXPECT_EQ(c.first, (std::vector<size_t>{1}));
}

TEST(Metrics, ArrivalsAreSeededAndHaveTheRateAskedFor) {
  EXPECT_EQ(ArrivalTimes(3, 0, 1), (std::vector<TimeNs>{0, 0, 0}));
  const auto times = ArrivalTimes(10'000, 50, 7);
  EXPECT_EQ(times, ArrivalTimes(10'000, 50, 7));
  EXPECT_NE(times, ArrivalTimes(10'000, 50, 8));
  EXPECT_EQ(times.front(), 0U);
  EXPECT_NEAR(static_cast<double>(times.back()) / 1e9, 200, 10);
  EXPECT_TRUE(std::is_sorted(times.begin(), times.end()));
}

}  // namespace
}  // namespace weir::cli
