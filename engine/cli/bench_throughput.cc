// weir bench throughput: all requests at once, as fast as the engine goes.
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "engine/cli/bench_commands.h"
#include "engine/cli/bench_metrics.h"
#include "engine/cli/bench_report.h"
#include "engine/cli/bench_session.h"

namespace weir::cli {
namespace {

Status Prepare(BenchSession& session, const ThroughputOptions& options) {
  WEIR_TRY(session.ReadModel());
  bench::WorkloadOptions workload = options.workload;
  workload.time_scale = 1;
  WEIR_TRY(session.MakeRequests(workload));
  return session.OpenEngine();
}

Status RunAndReport(BenchSession& session, const ThroughputOptions& options, bool* passed) {
  WEIR_TRY(session.Warm(options.warmups));
  std::vector<bench::WorkloadRequest> requests = session.workload().requests;
  for (bench::WorkloadRequest& r : requests) r.at_ns = 0;  // a trace file has times of its own
  const BenchRun run = WEIR_TRY(session.Run(requests, BenchSession::Prefixes::kFresh));
  if (!run.cancelled) WEIR_TRY(session.CheckIntegrity());
  const BenchSummary summary = SummariseBench(run);
  *passed = summary.Passed();
  const EngineInfo& info = session.engine().info();
  ReportLines lines(kBenchLabelWidth);
  RateRows(lines, summary);
  lines.Gap();
  EngineRows(lines, run, summary, info);
  TroubleRows(lines, run, summary);
  return session.Report(lines.Take(), {{"warmups", options.warmups}}, RunJson(run, summary, info));
}

}  // namespace

int ThroughputCommand(const Config& config, const ThroughputOptions& options) {
  BenchSession session("throughput", config, options.output);
  bool passed = false;
  const Status prepared = Prepare(session, options);
  const Status run = prepared.ok() ? RunAndReport(session, options, &passed) : OkStatus();
  return BenchExitCode(prepared, run, passed);
}

}  // namespace weir::cli
