#include "engine/cli/bench_report.h"

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include "engine/cli/size_text.h"

namespace weir::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kColumnWidth = 11;
constexpr size_t kMostSpans = 1000;
constexpr size_t kMostErrors = 5;

std::string Right(const std::string& text, size_t width) {
  return text.size() < width ? std::string(width - text.size(), ' ') + text : text;
}

double Seconds(TimeNs ns) {
  return static_cast<double>(ns) / 1e9;
}

}  // namespace

void ReportLines::Row(std::string_view label, const std::string& value) {
  std::string line = "  " + std::string(label);
  line.resize(std::max(line.size() + 1, label_width_ + 2), ' ');
  out_ += line + value + "\n";
}

void DistributionHead(ReportLines& out) {
  std::string heads;
  for (const char* head : {"mean", "p10", "p50", "p90", "p95", "p99"}) {
    heads += Right(head, kColumnWidth);
  }
  out.Row("", heads);
}

void DistributionRow(ReportLines& out, std::string_view label, const Distribution& d, int digits) {
  std::string cells;
  for (const double v : {d.mean, d.p10, d.p50, d.p90, d.p95, d.p99}) {
    cells += Right(d.count > 0 ? Fixed(v, digits) : "-", kColumnWidth);
  }
  out.Row(label, cells);
}

void RateRows(ReportLines& out, const BenchSummary& s) {
  out.Row("wall time, s", Fixed(s.wall_s, 2));
  out.Row("requests/s", Fixed(s.requests_per_s, 2));
  out.Row("output tokens/s", Fixed(s.output_per_s, 1));
  out.Row("prompt + output tokens/s", Fixed(s.total_per_s, 1));
  out.Row("requests ended / failed", Grouped(s.requests - s.failed) + " / " + Grouped(s.failed));
}

void EngineRows(ReportLines& out, const BenchRun& run, const BenchSummary& s,
                const EngineInfo& info) {
  out.Row("prompt tokens computed / cached",
          Grouped(s.prompt_tokens - s.cached_tokens) + " / " + Grouped(s.cached_tokens));
  out.Row("output tokens", Grouped(s.output_tokens));
  out.Row("steps / mean step, ms", Grouped(s.steps) + " / " + Fixed(s.step_ms.mean, 2));
  out.Row("tokens a step, mean", Fixed(s.mean_rows, 1));
  out.Row("running at once, mean / peak",
          Fixed(s.mean_running, 1) + " / " + std::to_string(run.peak_running));
  out.Row("preemptions / tokens redone",
          Grouped(run.preemptions) + " / " + Grouped(run.recomputed_tokens));
  out.Row("KV capacity, start / peak, blocks", Grouped(s.kv_start) + " / " + Grouped(s.kv_peak));
  out.Row("weights away at the peak", HumanSize(s.away_peak * info.granule_bytes));
  out.Row("border moves / time, s",
          Grouped(run.core.border_moves) + " / " + Fixed(Seconds(run.core.border_ns), 3));
  out.Row("weights streamed", HumanSize(run.pager.bytes_copied));
  out.Row("gates passed / faults",
          Grouped(run.pager.gate_arrivals) + " / " + Grouped(run.pager.faults));
  out.Row("stalled in gates", Fixed(Seconds(run.pager.stall_ns), 3) + " s, " +
                                  Fixed(s.stall_share * 100, 1) + " % of the steps");
  if (run.core.queued_steps > 0) {
    out.Row("device idle between queued steps", IdleText(run.core));
    out.Row("host time a step, us", Fixed(HostMicroseconds(run.core), 1));
  }
  out.Row("host time outside compute",
          Fixed(s.host_s, 3) + " s, " + Fixed(s.host_share * 100, 1) + " % of the time not idle");
}

std::string IdleText(const CoreStats& stats) {
  const auto steps = static_cast<double>(stats.queued_steps);
  const auto idle = static_cast<double>(stats.idle_ns);
  const double all = idle + static_cast<double>(stats.queued_ns);
  return Fixed(idle / steps / 1e3, 1) + " us, " + Fixed(all > 0 ? idle / all * 100 : 0, 2) +
         " % of the time";
}

double HostMicroseconds(const CoreStats& stats) {
  return stats.queued_steps == 0 ? 0
                                 : static_cast<double>(stats.step_ns - stats.waited_ns) / 1e3 /
                                       static_cast<double>(stats.steps);
}

void TroubleRows(ReportLines& out, const BenchRun& run, const BenchSummary& s) {
  size_t shown = 0;
  for (size_t i = 0; i < run.requests.size() && shown < kMostErrors; ++i) {
    if (run.requests[i].error.empty()) continue;
    out.Text("request #" + std::to_string(i + 1) +
             " failed: " + OneLine(run.requests[i].error, 300));
    ++shown;
  }
  if (s.other_length > 0) {
    out.Text(Grouped(s.other_length) + " requests did not generate the tokens asked for");
  }
  if (run.core.failed_steps > 0) out.Text(Grouped(run.core.failed_steps) + " steps failed");
  if (run.cancelled) out.Text("interrupted: the figures are of what had ended");
}

Json DistributionJson(const Distribution& d) {
  return {{"count", d.count}, {"mean", d.mean}, {"min", d.min}, {"p10", d.p10}, {"p50", d.p50},
          {"p90", d.p90},     {"p95", d.p95},   {"p99", d.p99}, {"max", d.max}};
}

Json RunJson(const BenchRun& run, const BenchSummary& s, const EngineInfo& info) {
  return {{"wall_s", s.wall_s},
          {"requests", s.requests},
          {"failed", s.failed},
          {"other_length", s.other_length},
          {"cancelled", run.cancelled},
          {"requests_per_s", s.requests_per_s},
          {"output_tokens_per_s", s.output_per_s},
          {"total_tokens_per_s", s.total_per_s},
          {"prompt_tokens", s.prompt_tokens},
          {"prompt_tokens_computed", s.prompt_tokens - s.cached_tokens},
          {"prompt_tokens_cached", s.cached_tokens},
          {"output_tokens", s.output_tokens},
          {"steps", s.steps},
          {"failed_steps", run.core.failed_steps},
          {"step_ms", DistributionJson(s.step_ms)},
          {"mean_batch_tokens", s.mean_rows},
          {"mean_running", s.mean_running},
          {"peak_running", run.peak_running},
          {"peak_waiting", run.peak_waiting},
          {"preemptions", run.preemptions},
          {"recomputed_tokens", run.recomputed_tokens},
          {"kv_blocks_start", s.kv_start},
          {"kv_blocks_peak", s.kv_peak},
          {"kv_blocks_moved", run.kv_blocks_moved},
          {"peak_away_bytes", s.away_peak * info.granule_bytes},
          {"border_moves", run.core.border_moves},
          {"border_refusals", run.core.border_refusals},
          {"border_s", Seconds(run.core.border_ns)},
          {"granules_remapped", run.pager.granules_remapped},
          {"streamed_bytes", run.pager.bytes_copied},
          {"gate_arrivals", run.pager.gate_arrivals},
          {"gate_faults", run.pager.faults},
          {"stall_s", Seconds(run.pager.stall_ns)},
          {"stall_share", s.stall_share},
          {"repairs", run.pager.repairs},
          {"idle_s", Seconds(run.idle_ns)},
          {"compute_s", Seconds(run.core.compute_ns)},
          {"host_outside_compute_s", s.host_s},
          {"host_us_a_step", HostMicroseconds(run.core)}};
}

Json SeriesJson(const BenchRun& run, const EngineInfo& info) {
  const size_t spans = std::min(run.steps.size(), kMostSpans);
  Json j;
  if (spans == 0) return j;
  const auto over_time = [&](double (*value)(const StepRecord&)) {
    return OverTime(run.steps, spans, value);
  };
  const TimeNs first = run.steps.front().start_ns;
  const TimeNs length = run.steps.back().start_ns + run.steps.back().step_ns - first;
  const double offset = first > run.start_ns ? Seconds(first - run.start_ns) : 0;
  std::vector<double> ends;
  for (size_t i = 1; i <= spans; ++i) {
    ends.push_back(offset + Seconds(length) * static_cast<double>(i) / static_cast<double>(spans));
  }
  std::vector<double> away =
      over_time([](const StepRecord& r) { return double{1} * r.evicted_granules; });
  for (double& granules : away) granules *= static_cast<double>(info.granule_bytes);
  j["span_end_s"] = ends;
  j["running"] = over_time([](const StepRecord& r) { return double{1} * r.running; });
  j["waiting"] = over_time([](const StepRecord& r) { return double{1} * r.waiting; });
  j["batch_tokens"] = over_time([](const StepRecord& r) { return double{1} * r.rows; });
  j["step_ms"] =
      over_time([](const StepRecord& r) { return static_cast<double>(r.step_ns) / 1e6; });
  j["kv_used_blocks"] = over_time([](const StepRecord& r) { return double{1} * r.kv_used; });
  j["kv_capacity_blocks"] =
      over_time([](const StepRecord& r) { return double{1} * r.kv_capacity; });
  j["weights_away_bytes"] = away;
  return j;
}

}  // namespace weir::cli
