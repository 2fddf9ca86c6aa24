// Report of benchmarks: lines for people, JSON for programs.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json_fwd.hpp>

#include "engine/cli/bench_metrics.h"
#include "engine/cli/bench_runner.h"
#include "engine/engine.h"

namespace weir::cli {

// Represents lines of a label and a value each.
class ReportLines {
 public:
  explicit ReportLines(size_t label_width) : label_width_(label_width) {}
  void Row(std::string_view label, const std::string& value);
  void Text(const std::string& line) { out_ += line + "\n"; }
  void Gap() { out_ += '\n'; }
  std::string Take() { return std::move(out_); }

 private:
  size_t label_width_;
  std::string out_;
};

inline constexpr size_t kBenchLabelWidth = 36;

// The column heads of distributions, and one of them: mean, p10, p50, p90, p95, p99.
void DistributionHead(ReportLines& out);
void DistributionRow(ReportLines& out, std::string_view label, const Distribution& d, int digits);

// Requests, tokens and rates over the wall time.
void RateRows(ReportLines& out, const BenchSummary& summary);
// Steps, the border and what moved.
void EngineRows(ReportLines& out, const BenchRun& run, const BenchSummary& summary,
                const EngineInfo& info);
// How long the device waited before steps that were queued in time: each, and of their time.
std::string IdleText(const CoreStats& stats);
// What the engine's thread does for a step, where the device runs steps by itself: scheduling,
// inputs, launches, accepting tokens, moving the border; most of it while another step runs. 0
// where that thread runs the steps.
double HostMicroseconds(const CoreStats& stats);
// Up to five failed requests with their reasons, other lengths, an interruption.
void TroubleRows(ReportLines& out, const BenchRun& run, const BenchSummary& summary);

nlohmann::ordered_json DistributionJson(const Distribution& d);
// What RateRows and EngineRows show, unrounded.
nlohmann::ordered_json RunJson(const BenchRun& run, const BenchSummary& summary,
                               const EngineInfo& info);
// Running, waiting, KV and weights away over time, as means over equal spans; one a step when there
// are few steps.
nlohmann::ordered_json SeriesJson(const BenchRun& run, const EngineInfo& info);

}  // namespace weir::cli
