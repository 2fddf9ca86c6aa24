#include "engine/cli/metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

namespace weir::cli {
namespace {

double Ms(TimeNs ns) {
  return static_cast<double>(ns) / 1e6;
}

}  // namespace

double Percentile(std::vector<double> values, double percent) {
  std::sort(values.begin(), values.end());
  return PercentileOfSorted(values, percent);
}

double PercentileOfSorted(std::span<const double> values, double percent) {
  if (values.empty()) return 0;
  const double rank = percent / 100 * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(rank);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (rank - static_cast<double>(low));
}

Percentiles PercentilesOf(const std::vector<double>& values) {
  return {.count = values.size(),
          .p50 = Percentile(values, 50),
          .p90 = Percentile(values, 90),
          .p99 = Percentile(values, 99)};
}

std::string Sparkline(std::span<const double> values, double top) {
  constexpr std::array<std::string_view, 8> kBars = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  if (top <= 0) {
    for (const double v : values) top = std::max(top, v);
  }
  std::string out;
  for (const double v : values) {
    const double share = top > 0 ? std::clamp(v / top, 0.0, 1.0) : 0;
    out += kBars[std::min<size_t>(7, static_cast<size_t>(std::lround(share * 7)))];
  }
  return out;
}

double TimeWeightedMean(std::span<const StepRecord> records, double (*value)(const StepRecord&)) {
  double sum = 0;
  double time = 0;
  for (const StepRecord& r : records) {
    sum += value(r) * static_cast<double>(r.step_ns);
    time += static_cast<double>(r.step_ns);
  }
  return time > 0 ? sum / time : 0;
}

std::vector<double> OverTime(std::span<const StepRecord> records, size_t buckets,
                             double (*value)(const StepRecord&)) {
  std::vector<double> out;
  if (records.empty() || buckets == 0) return out;
  const TimeNs start = records.front().start_ns;
  const TimeNs span = records.back().start_ns + records.back().step_ns - start;
  size_t at = 0;
  for (size_t b = 0; b < buckets; ++b) {
    const TimeNs end = start + span * (b + 1) / buckets;
    const size_t first = at;
    while (at < records.size() && records[at].start_ns < end) ++at;
    // A span without a step's start shows the step that covers it.
    const auto part =
        at > first ? records.subspan(first, at - first) : records.subspan(at > 0 ? at - 1 : 0, 1);
    out.push_back(TimeWeightedMean(part, value));
  }
  return out;
}

WeightPagerStats Difference(WeightPagerStats now, const WeightPagerStats& before) {
  now.steps -= before.steps;
  now.chunks_copied -= before.chunks_copied;
  now.bytes_copied -= before.bytes_copied;
  now.gate_arrivals -= before.gate_arrivals;
  now.faults -= before.faults;
  now.stall_ns -= before.stall_ns;
  now.repairs -= before.repairs;
  now.granules_remapped -= before.granules_remapped;
  now.transitions -= before.transitions;
  return now;
}

JobSummary Summarise(const JobResult& job) {
  JobSummary s;
  std::vector<double> ttft;
  std::vector<double> latency;
  std::vector<double> gaps;
  for (const RequestRecord& r : job.requests) {
    ++s.requests;
    if (r.failed()) ++s.failed;
    s.prompt_tokens += r.prompt_tokens;
    s.output_tokens += r.tokens.size();
    if (!r.tokens.empty()) ttft.push_back(Ms(r.first_token_ns - r.submitted_ns));
    if (!r.tokens.empty()) latency.push_back(Ms(r.last_token_ns - r.submitted_ns));
    gaps.insert(gaps.end(), r.gaps_ms.begin(), r.gaps_ms.end());
  }
  s.ttft_ms = PercentilesOf(ttft);
  s.latency_ms = PercentilesOf(latency);
  s.gap_ms = PercentilesOf(gaps);
  s.wall_s = static_cast<double>(job.wall_ns) / 1e9;
  if (s.wall_s > 0) {
    s.output_per_s = static_cast<double>(s.output_tokens) / s.wall_s;
    s.total_per_s = static_cast<double>(s.output_tokens + s.prompt_tokens) / s.wall_s;
    s.requests_per_s = static_cast<double>(s.requests - s.failed) / s.wall_s;
    s.streamed_per_s = static_cast<double>(job.pager.bytes_copied) / s.wall_s;
  }
  double step_ns = 0;
  for (const StepRecord& r : job.steps) {
    s.peak_running = std::max(s.peak_running, r.running);
    s.kv_peak = std::max(s.kv_peak, r.kv_capacity);
    s.away_peak = std::max(s.away_peak, r.evicted_granules);
    step_ns += static_cast<double>(r.step_ns);
  }
  s.peak_running = std::max(s.peak_running, job.core.peak_running);
  if (!job.steps.empty()) {
    s.kv_start = job.steps.front().kv_capacity;
    s.kv_end = job.steps.back().kv_capacity;
    s.step_ms = step_ns / 1e6 / static_cast<double>(job.steps.size());
  }
  s.mean_running =
      TimeWeightedMean(job.steps, [](const StepRecord& r) { return double{1} * r.running; });
  s.kv_mean =
      TimeWeightedMean(job.steps, [](const StepRecord& r) { return double{1} * r.kv_capacity; });
  if (step_ns > 0) s.stall_share = static_cast<double>(job.pager.stall_ns) / step_ns;
  if (job.prefix.queried_tokens > 0) {
    s.prefix_hit_rate =
        static_cast<double>(job.prefix.hit_tokens) / static_cast<double>(job.prefix.queried_tokens);
  }
  return s;
}

TokenComparison CompareTokens(const JobResult& a, const JobResult& b) {
  TokenComparison c;
  const size_t n = std::min(a.requests.size(), b.requests.size());
  for (size_t i = 0; i < n; ++i) {
    if (a.requests[i].failed() || b.requests[i].failed()) continue;
    ++c.compared;
    if (a.requests[i].tokens == b.requests[i].tokens) continue;
    ++c.different;
    if (c.first.size() < 8) c.first.push_back(i);
  }
  return c;
}

}  // namespace weir::cli
