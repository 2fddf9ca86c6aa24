// `weir-trace hist`: how long things take, as histograms.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/trace/commands.h"
#include "tools/trace/error.h"
#include "tools/trace/histogram.h"
#include "tools/trace/reader.h"
#include "tools/trace/schema.h"
#include "tools/trace/text.h"

namespace weir::trace_tool {
namespace {

const std::vector<std::string> kMeasures = {"step", "stall", "copy", "remap"};

struct HistOptions {
  std::string file;
  std::vector<std::string> of = kMeasures;
  bool by = false;
  bool json = false;
  size_t width = 50;
};

// Represents durations in rows of 1, 2, 5 times a power of ten.
class Rows {
 public:
  void Add(uint64_t ns) {
    ++rows_[RowOf(ns)];
    all_.Add(ns);
  }
  const Histogram& all() const { return all_; }

  // The row that |ns| is in: 3 k + (0, 1, 2) for [1, 2), [2, 5), [5, 10) times 10^k; -1: 0.
  static int RowOf(uint64_t ns) {
    if (ns == 0) return -1;
    uint64_t power = 1;
    int row = 0;
    while (ns / power >= 10) {
      power *= 10;
      row += 3;
    }
    return row + (ns / power >= 5 ? 2 : ns / power >= 2 ? 1 : 0);
  }
  static double EdgeOf(int row) {
    constexpr double kSteps[] = {1, 2, 5};
    return row < 0 ? 0 : kSteps[row % 3] * std::pow(10, row / 3);
  }

  std::string Text(const std::string& name, size_t width) const {
    std::string out =
        fmt::format("{}: {} of {} in all; p50 {}, p90 {}, p99 {}, p99.9 {}, most {}\n", name,
                    Grouped(all_.count()), HumanNs(all_.sum()), Ns(all_.Percentile(0.5)),
                    Ns(all_.Percentile(0.9)), Ns(all_.Percentile(0.99)), Ns(all_.Percentile(0.999)),
                    Ns(all_.max()));
    if (rows_.empty()) return out;
    uint64_t most = 0;
    for (const auto& [row, n] : rows_) most = std::max(most, n);
    for (int row = rows_.begin()->first; row <= rows_.rbegin()->first; ++row) {
      const auto it = rows_.find(row);
      const uint64_t n = it == rows_.end() ? 0 : it->second;
      const auto bar = static_cast<size_t>(
          static_cast<double>(n) * static_cast<double>(width) / static_cast<double>(most) + 0.5);
      std::string line =
          fmt::format("  {:>7} .. {:>7}  {:>10}  {:>6}  {}", Edge(row), Edge(row + 1), Grouped(n),
                      Percent(static_cast<double>(n), static_cast<double>(all_.count())),
                      std::string(std::max<size_t>(bar, n != 0 ? 1 : 0), '#'));
      line.erase(line.find_last_not_of(' ') + 1);
      out += line + "\n";
    }
    return out;
  }

  nlohmann::ordered_json Json() const {
    nlohmann::ordered_json json = {
        {"count", all_.count()},           {"sum_ns", all_.sum()},
        {"p50_ns", all_.Percentile(0.5)},  {"p90_ns", all_.Percentile(0.9)},
        {"p99_ns", all_.Percentile(0.99)}, {"max_ns", all_.max()}};
    json["rows"] = nlohmann::ordered_json::array();
    for (const auto& [row, n] : rows_) {
      json["rows"].push_back({{"from_ns", EdgeOf(row)}, {"to_ns", EdgeOf(row + 1)}, {"count", n}});
    }
    return json;
  }

 private:
  static std::string Ns(uint64_t ns) { return HumanNs(static_cast<double>(ns)); }
  static std::string Edge(int row) {
    const double ns = EdgeOf(row);
    constexpr const char* kUnits[] = {"ns", "us", "ms", "s"};
    double value = ns;
    size_t unit = 0;
    while (value >= 1000 && unit < 3) {
      value /= 1000;
      ++unit;
    }
    return fmt::format("{:g} {}", value, kUnits[unit]);
  }
  std::map<int, uint64_t> rows_;
  Histogram all_;
};

// Which measure a record counts for, what of, and how long it took; false: for none.
bool Measure(const TraceRecord& r, std::string* measure, std::string* part, uint64_t* ns) {
  switch (static_cast<TraceType>(r.type)) {
    case TraceType::kStepEnd:
      *measure = "step";
      *part = CauseName(CauseKind::kStepKind, r.cause);
      *ns = r.args[3];
      return true;
    case TraceType::kFaultMajor:
    case TraceType::kFaultMinor:
      *measure = "stall";
      *part = FaultCauseName(r.cause);
      *ns = r.args[3];
      return true;
    case TraceType::kCopy:
    case TraceType::kFill:
      *measure = "copy";
      *part = std::string(r.type == static_cast<uint16_t>(TraceType::kCopy) ? "stripe" : "fill") +
              " from " + TierName(r.cause);
      *ns = r.args[5] > r.args[4] ? r.args[5] - r.args[4] : 0;
      return true;
    case TraceType::kPlanCommit:
    case TraceType::kPlanRollback:
      *measure = "remap";
      *part = RemapCauseName(r.cause);
      *ns = r.args[3];
      return true;
    default: return false;
  }
}

int RunHist(const HistOptions& options) {
  const auto reader = OpenTrace(options.file);
  std::map<std::string, std::map<std::string, Rows>> measures;
  reader->ForEach([&](const TraceEvent& event) {
    std::string measure, part;
    uint64_t ns = 0;
    if (!Measure(event.record, &measure, &part, &ns)) return;
    if (std::find(options.of.begin(), options.of.end(), measure) == options.of.end()) return;
    measures[measure][options.by ? part : ""].Add(ns);
  });
  std::string out;
  nlohmann::ordered_json root;
  for (const std::string& name : options.of) {
    const auto found = measures.find(name);
    if (found == measures.end()) {
      out += name + ": none in this trace\n";
      root[name] = nullptr;
      continue;
    }
    for (const auto& [part, rows] : found->second) {
      const std::string title = part.empty() ? name : name + ", " + part;
      out += (out.empty() ? "" : "\n") + rows.Text(title, options.width);
      root[title] = rows.Json();
    }
  }
  WriteFile("-", options.json ? root.dump(2) + "\n" : out);
  return kExitOk;
}

}  // namespace

void AddHistCommand(CLI::App& app, int* exit_status) {
  auto options = std::make_shared<HistOptions>();
  CLI::App* command =
      app.add_subcommand("hist", "histograms: steps, waits at gates, copies, plans");
  command->add_option("file", options->file, "the trace")->required();
  command->add_option("--of", options->of, "any of step, stall, copy, remap [all]")
      ->delimiter(',')
      ->check(CLI::IsMember(kMeasures));
  command->add_flag("--by", options->by,
                    "one for each kind of step, cause of a fault, source, cause of a plan");
  command->add_flag("--json", options->json, "for programs");
  command->add_option("--width", options->width, "columns of the longest bar [50]")
      ->check(CLI::Range(1, 500));
  command->footer(
      "Example: weir-trace hist run.trace --of stall --by\n"
      "A step's time holds its stall; a fill counts once for each run of slots it brings home.");
  command->callback([options, exit_status] { *exit_status = RunHist(*options); });
}

}  // namespace weir::trace_tool
