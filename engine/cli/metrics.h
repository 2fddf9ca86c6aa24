// Metrics of one job: what vLLM's benchmark reports, and what happened to memory meanwhile.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace weir::cli {

// The |percent|-th percentile by linear interpolation between the two nearest ranks, as numpy and
// vLLM's benchmark; 0 of nothing. |percent| in [0, 100].
double Percentile(std::vector<double> values, double percent);
// The same of values in ascending order.
double PercentileOfSorted(std::span<const double> values, double percent);

struct Percentiles {
  uint64_t count = 0;
  double p50 = 0, p90 = 0, p99 = 0;
};
Percentiles PercentilesOf(const std::vector<double>& values);

// |values| as one character each from ▁ to █ (scaled from 0 to |top|; 0: to the largest).
std::string Sparkline(std::span<const double> values, double top);

// One quantity over the job's time, as means over |buckets| equal spans of it.
std::vector<double> OverTime(std::span<const StepRecord> records, size_t buckets,
                             double (*value)(const StepRecord&));
// The mean of |value| over the time of the steps.
double TimeWeightedMean(std::span<const StepRecord> records, double (*value)(const StepRecord&));

// What was counted after |before|; the longest stall stays that of all time.
WeightPagerStats Difference(WeightPagerStats now, const WeightPagerStats& before);

// What became of one request.
struct RequestRecord {
  bool submitted = false;
  bool finished = false;
  FinishReason reason = FinishReason::kNone;
  std::string error;  // of a refused or failed request
  uint32_t prompt_tokens = 0;
  uint32_t cached_tokens = 0;
  std::vector<int32_t> tokens;
  std::string text;
  TimeNs submitted_ns = 0;
  TimeNs first_token_ns = 0;
  TimeNs last_token_ns = 0;
  std::vector<double> gaps_ms;  // between one token and the next

  bool failed() const { return !finished || reason == FinishReason::kError; }
};

// Represents one pass over all requests under one policy.
struct JobResult {
  std::string label;   // "tide"
  std::string policy;  // the spec
  std::vector<RequestRecord> requests;
  std::vector<StepRecord> steps;
  EngineInfo info;
  TimeNs wall_ns = 0;  // first submission to last token
  TimeNs open_ns = 0;  // loading and calibrating
  CoreStats core;
  uint64_t preemptions = 0;
  uint64_t recomputed_tokens = 0;
  WeightPagerStats pager;  // of the job alone, without loading and calibrating
  PrefixCacheStats prefix;
  uint64_t kv_blocks_moved = 0;
  bool cancelled = false;
};

// Represents the figures of a report's column.
struct JobSummary {
  uint64_t requests = 0, failed = 0;
  uint64_t prompt_tokens = 0, output_tokens = 0;
  double wall_s = 0;
  double output_per_s = 0, total_per_s = 0, requests_per_s = 0;
  Percentiles ttft_ms, gap_ms, latency_ms;
  double mean_running = 0;
  uint32_t peak_running = 0;
  uint32_t kv_start = 0, kv_peak = 0, kv_end = 0;  // capacity in blocks
  double kv_mean = 0;
  uint32_t away_peak = 0;     // granules of weights
  double stall_share = 0;     // of the steps' time
  double step_ms = 0;         // mean
  double streamed_per_s = 0;  // bytes, over the wall time
  double prefix_hit_rate = 0;
};
JobSummary Summarise(const JobResult& job);

struct TokenComparison {
  uint64_t compared = 0;
  uint64_t different = 0;
  std::vector<size_t> first;  // up to 8 requests that differ
};
// Requests that finished in both.
TokenComparison CompareTokens(const JobResult& a, const JobResult& b);

}  // namespace weir::cli
