// weir bench serve-trace: requests arrive over time, as at a server; what each had to wait.
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "engine/cli/bench_commands.h"
#include "engine/cli/bench_metrics.h"
#include "engine/cli/bench_report.h"
#include "engine/cli/bench_session.h"
#include "engine/cli/size_text.h"

namespace weir::cli {
namespace {

using Json = nlohmann::ordered_json;

// Requests that kept every bound.
uint64_t CountGood(const BenchRun& run, const Goodput& bounds) {
  uint64_t good = 0;
  for (const BenchRecord& r : run.requests) {
    if (!r.failed() && IsGood(TimesOf(r), bounds)) ++good;
  }
  return good;
}

double LastArrival(const bench::Workload& workload) {
  return workload.requests.empty() ? 0 : static_cast<double>(workload.requests.back().at_ns) / 1e9;
}

Json BoundsJson(const Goodput& g) {
  Json j = Json::object();
  if (g.ttft_ms) j["ttft_ms"] = *g.ttft_ms;
  if (g.tpot_ms) j["tpot_ms"] = *g.tpot_ms;
  if (g.e2el_ms) j["e2el_ms"] = *g.e2el_ms;
  return j;
}

Json ArrivalsJson(const bench::WorkloadOptions& o) {
  const bench::ArrivalOptions& a = o.arrivals;
  Json j = {{"burstiness", a.burstiness}, {"time_scale", o.time_scale}};
  if (a.request_rate > 0) j["request_rate"] = a.request_rate;
  if (a.ramp_up != bench::RampUp::kNone) {
    j["ramp_up_strategy"] = a.ramp_up == bench::RampUp::kLinear ? "linear" : "exponential";
    j["ramp_up_start_rps"] = a.ramp_start;
    j["ramp_up_end_rps"] = a.ramp_end;
  }
  return j;
}

Json RequestsJson(const BenchRun& run) {
  Json requests = Json::array();
  for (const BenchRecord& r : run.requests) {
    const RequestTimes t = TimesOf(r);
    Json j = {{"due_s",
               r.due_ns > run.start_ns ? static_cast<double>(r.due_ns - run.start_ns) / 1e9 : 0.0},
              {"prompt_tokens", r.prompt_tokens},
              {"cached_tokens", r.cached_tokens},
              {"output_tokens", r.output_tokens},
              {"ttft_ms", t.ttft_ms},
              {"tpot_ms", t.tpot_ms},
              {"e2el_ms", t.e2el_ms}};
    if (!r.error.empty()) j["error"] = r.error;
    requests.push_back(std::move(j));
  }
  return requests;
}

Status Prepare(BenchSession& session, const ServeTraceOptions& options, Goodput* bounds) {
  *bounds = WEIR_TRY(ParseGoodput(options.goodput));
  WEIR_TRY(session.ReadModel());
  WEIR_TRY(session.MakeRequests(options.workload));
  return session.OpenEngine();
}

std::string Table(const BenchSession& session, const BenchRun& run, const BenchSummary& s,
                  const EngineInfo& info, const std::optional<uint64_t>& good) {
  ReportLines lines(kBenchLabelWidth);
  RateRows(lines, s);
  lines.Row("last arrival, s", Fixed(LastArrival(session.workload()), 2));
  if (good) {
    lines.Row("goodput, requests/s",
              Fixed(s.wall_s > 0 ? static_cast<double>(*good) / s.wall_s : 0, 2) + " (" +
                  Grouped(*good) + " of " + Grouped(s.requests) + ")");
  }
  lines.Row("waiting / running at the peak",
            std::to_string(run.peak_waiting) + " / " + std::to_string(run.peak_running));
  lines.Gap();
  DistributionHead(lines);
  DistributionRow(lines, "time to first token, ms", s.ttft_ms, 1);
  DistributionRow(lines, "time per output token, ms", s.tpot_ms, 2);
  DistributionRow(lines, "between tokens, ms", s.itl_ms, 2);
  DistributionRow(lines, "request latency, ms", s.e2el_ms, 1);
  lines.Gap();
  EngineRows(lines, run, s, info);
  TroubleRows(lines, run, s);
  return lines.Take();
}

Status RunAndReport(BenchSession& session, const ServeTraceOptions& options, const Goodput& bounds,
                    bool* passed) {
  WEIR_TRY(session.Warm(options.warmups));
  const BenchRun run =
      WEIR_TRY(session.Run(session.workload().requests, BenchSession::Prefixes::kFresh));
  if (!run.cancelled) WEIR_TRY(session.CheckIntegrity());
  const BenchSummary s = SummariseBench(run);
  *passed = s.Passed();
  const EngineInfo& info = session.engine().info();
  Json results = RunJson(run, s, info);
  results["last_arrival_s"] = LastArrival(session.workload());
  results["ttft_ms"] = DistributionJson(s.ttft_ms);
  results["tpot_ms"] = DistributionJson(s.tpot_ms);
  results["itl_ms"] = DistributionJson(s.itl_ms);
  results["e2el_ms"] = DistributionJson(s.e2el_ms);
  std::optional<uint64_t> good;
  if (!options.goodput.empty()) {
    good = CountGood(run, bounds);
    results["good_requests"] = *good;
    results["goodput_requests_per_s"] = s.wall_s > 0 ? static_cast<double>(*good) / s.wall_s : 0.0;
  }
  results["series"] = SeriesJson(run, info);
  results["request"] = RequestsJson(run);
  Json given = {{"warmups", options.warmups},
                {"arrivals", ArrivalsJson(options.workload)},
                {"goodput", BoundsJson(bounds)}};
  return session.Report(Table(session, run, s, info, good), std::move(given), std::move(results));
}

}  // namespace

int ServeTraceCommand(const Config& config, const ServeTraceOptions& options) {
  BenchSession session("serve-trace", config, options.output);
  bool passed = false;
  Goodput bounds;
  const Status prepared = Prepare(session, options, &bounds);
  const Status run = prepared.ok() ? RunAndReport(session, options, bounds, &passed) : OkStatus();
  return BenchExitCode(prepared, run, passed);
}

}  // namespace weir::cli
