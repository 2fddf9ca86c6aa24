#include "engine/cli/bench_metrics.h"

#include <algorithm>
#include <numeric>

#include "engine/cli/size_text.h"

namespace weir::cli {
namespace {

double Ms(TimeNs from, TimeNs to) {
  return to > from ? static_cast<double>(to - from) / 1e6 : 0;
}

double Seconds(TimeNs ns) {
  return static_cast<double>(ns) / 1e9;
}

void AddSteps(const BenchRun& run, BenchSummary* s) {
  std::vector<double> step_ms;
  double rows = 0;
  TimeNs time = 0;
  for (const StepRecord& r : run.steps) {
    step_ms.push_back(static_cast<double>(r.step_ns) / 1e6);
    rows += r.rows;
    time += r.step_ns;
    s->kv_peak = std::max(s->kv_peak, r.kv_capacity);
    s->away_peak = std::max(s->away_peak, r.evicted_granules);
  }
  s->steps = run.steps.size();
  if (!run.steps.empty()) {
    s->mean_rows = rows / static_cast<double>(run.steps.size());
    s->kv_start = run.steps.front().kv_capacity;
  }
  s->mean_running =
      TimeWeightedMean(run.steps, [](const StepRecord& r) { return double{1} * r.running; });
  s->step_ms = DistributionOf(std::move(step_ms));
  if (time > 0)
    s->stall_share = static_cast<double>(run.pager.stall_ns) / static_cast<double>(time);
}

}  // namespace

Distribution DistributionOf(std::vector<double> values) {
  Distribution d;
  if (values.empty()) return d;
  std::sort(values.begin(), values.end());
  d.count = values.size();
  d.mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  d.min = values.front();
  d.p10 = PercentileOfSorted(values, 10);
  d.p50 = PercentileOfSorted(values, 50);
  d.p90 = PercentileOfSorted(values, 90);
  d.p95 = PercentileOfSorted(values, 95);
  d.p99 = PercentileOfSorted(values, 99);
  d.max = values.back();
  return d;
}

Result<Goodput> ParseGoodput(const std::vector<std::string>& bounds) {
  Goodput out;
  for (const std::string& bound : bounds) {
    const size_t colon = bound.find(':');
    const std::string key = bound.substr(0, colon);
    std::optional<double>* const place = key == "ttft"   ? &out.ttft_ms
                                         : key == "tpot" ? &out.tpot_ms
                                         : key == "e2el" ? &out.e2el_ms
                                                         : nullptr;
    if (place == nullptr || colon == std::string::npos) {
      return InvalidArgument("--goodput: \"" + OneLine(bound, 40) +
                             "\" is not accepted; give ttft:MS, tpot:MS or e2el:MS");
    }
    const Result<double> ms = ParseReal(bound.substr(colon + 1), 0, 1e12);
    if (!ms.ok()) return ms.status().WithContext("--goodput " + key);
    *place = *ms;
  }
  return out;
}

RequestTimes TimesOf(const BenchRecord& r) {
  RequestTimes t;
  t.ttft_ms = Ms(r.due_ns, r.first_ns);
  t.e2el_ms = Ms(r.due_ns, r.last_ns);
  if (r.output_tokens > 1) t.tpot_ms = Ms(r.first_ns, r.last_ns) / (r.output_tokens - 1);
  return t;
}

bool IsGood(const RequestTimes& t, const Goodput& bounds) {
  const auto within = [](double value, const std::optional<double>& bound) {
    return !bound || value <= *bound;
  };
  return within(t.ttft_ms, bounds.ttft_ms) && within(t.tpot_ms, bounds.tpot_ms) &&
         within(t.e2el_ms, bounds.e2el_ms);
}

BenchSummary SummariseBench(const BenchRun& run) {
  BenchSummary s;
  std::vector<double> ttft;
  std::vector<double> tpot;
  std::vector<double> e2el;
  for (const BenchRecord& r : run.requests) {
    ++s.requests;
    if (r.failed()) {
      ++s.failed;
      continue;
    }
    if (r.output_tokens != r.wanted_tokens) ++s.other_length;
    s.prompt_tokens += r.prompt_tokens;
    s.cached_tokens += r.cached_tokens;
    s.output_tokens += r.output_tokens;
    const RequestTimes t = TimesOf(r);
    ttft.push_back(t.ttft_ms);
    e2el.push_back(t.e2el_ms);
    if (r.output_tokens > 1) tpot.push_back(t.tpot_ms);
  }
  s.ttft_ms = DistributionOf(std::move(ttft));
  s.tpot_ms = DistributionOf(std::move(tpot));
  s.e2el_ms = DistributionOf(std::move(e2el));
  s.itl_ms = DistributionOf(run.gaps_ms);
  s.wall_s = Seconds(run.wall_ns);
  if (s.wall_s > 0) {
    s.requests_per_s = static_cast<double>(s.requests - s.failed) / s.wall_s;
    s.output_per_s = static_cast<double>(s.output_tokens) / s.wall_s;
    s.total_per_s = static_cast<double>(s.prompt_tokens + s.output_tokens) / s.wall_s;
  }
  const TimeNs busy = run.wall_ns - std::min(run.idle_ns, run.wall_ns);
  if (busy > run.core.compute_ns) {
    s.host_s = Seconds(busy - run.core.compute_ns);
    s.host_share = s.host_s / Seconds(busy);
  }
  AddSteps(run, &s);
  return s;
}

}  // namespace weir::cli
