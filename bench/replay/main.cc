// weir-trace-replay (`weir-trace replay`): what a recorded run would have been with another policy,
// budget, link or load.
#include <cstdio>
#include <exception>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "bench/replay/recorded_workload.h"
#include "bench/replay/simulation.h"
#include "tools/trace/commands.h"
#include "tools/trace/diff.h"
#include "tools/trace/text.h"

namespace weir::replay {
namespace {

using trace_tool::TraceError;

struct Options {
  std::string file;
  SimulationOptions simulation;
  std::string budget;
  bool json = false;
};

uint64_t ParseBytes(const std::string& text) {
  size_t end = 0;
  double value = 0;
  try {
    value = std::stod(text, &end);
  } catch (const std::exception&) {
    end = 0;
  }
  const std::string unit = text.substr(end);
  const double factor = unit.empty()    ? 1
                        : unit == "KiB" ? 1024.0
                        : unit == "MiB" ? 1024.0 * 1024
                        : unit == "GiB" ? 1024.0 * 1024 * 1024
                                        : 0;
  if (end == 0 || factor == 0 || !(value > 0) || value * factor > 1e15) {
    throw TraceError("--hbm-budget " + text +
                     ": a size is a number with KiB, MiB or GiB, such as " + "320MiB");
  }
  return static_cast<uint64_t>(value * factor);
}

void Gather(trace_tool::TraceReader& reader, trace_tool::Summary* summary) {
  reader.ForEach([&](const trace_tool::TraceEvent& e) { summary->Add(e); });
}

std::string About(const RecordedWorkload& w) {
  uint64_t shared = 0;
  for (const RecordedRequest& q : w.requests) shared += q.prefix_of >= 0 ? 1 : 0;
  std::string out =
      fmt::format("{} requests over {:.3f} s, {} share a prefix; {} decisions\n", w.requests.size(),
                  static_cast<double>(w.end_ns - std::min(w.end_ns, w.begin_ns)) * 1e-9, shared,
                  w.decisions.size());
  out += fmt::format(
      "a step costs {} + {} a token + {} a token of context + {:.3f} ns a streamed byte "
      "({} steps, {:.1f} % off on average)\n",
      trace_tool::HumanNs(w.fit.fixed_ns), trace_tool::HumanNs(w.fit.per_token_ns),
      fmt::format("{:.1f} ns", w.fit.per_context_ns), w.fit.per_byte_ns,
      trace_tool::Grouped(w.fit.steps), w.fit.error * 100);
  out += fmt::format("pause between steps {}, link {}, map or unmap {}\n",
                     trace_tool::HumanNs(w.pause_ns), trace_tool::HumanRate(w.link_bytes_per_s),
                     trace_tool::HumanNs(w.op_ns));
  if (w.left_out != 0) {
    out += fmt::format("left out: {} requests whose output length the trace does not tell\n",
                       w.left_out);
  }
  if (w.unknown_prefixes != 0) {
    out += fmt::format("{} requests shared blocks whose origin was not recorded; they do not now\n",
                       w.unknown_prefixes);
  }
  return out;
}

int Replay(Options options) {
  const auto reader = trace_tool::OpenTrace(options.file);
  RecordedWorkload workload;
  try {
    workload = RecordedWorkload::FromTrace(*reader);
  } catch (const TraceError& error) {
    throw TraceError(options.file + ": " + error.what());
  }
  if (!options.budget.empty()) options.simulation.budget_bytes = ParseBytes(options.budget);
  const bool scratch = options.simulation.trace_path.empty();
  if (scratch) {
    options.simulation.trace_path = "/tmp/weir-replay-" + std::to_string(getpid()) + ".trace";
  }
  options.simulation.command = "weir-trace replay --policy " + options.simulation.policy;
  const auto result = Simulate(workload, reader->meta(), options.simulation);
  if (!result.ok()) {
    std::remove(options.simulation.trace_path.c_str());
    throw TraceError("the replay failed: " + result.status().ToString());
  }
  const auto simulated = trace_tool::OpenTrace(options.simulation.trace_path);
  if (scratch) std::remove(options.simulation.trace_path.c_str());
  trace_tool::Summary a(*reader, workload.begin_ns, workload.end_ns);
  trace_tool::Summary b(*simulated, result->begin_ns, result->end_ns);
  Gather(*reader, &a);
  Gather(*simulated, &b);
  const auto rows = trace_tool::Diff(a, b);
  if (options.json) {
    trace_tool::WriteFile("-", trace_tool::DiffJson(rows).dump(2) + "\n");
  } else {
    std::string out = About(workload);
    if (result->refused != 0) {
      out += fmt::format("{} requests can never fit this budget\n", result->refused);
    }
    if (result->failed != 0) out += fmt::format("{} requests failed\n", result->failed);
    trace_tool::WriteFile("-", out + "\n" + trace_tool::DiffText(rows, "recorded", "replayed"));
  }
  if (!scratch) {
    std::fprintf(stderr, "weir-trace: %s: the simulated run, for every other command\n",
                 options.simulation.trace_path.c_str());
  }
  if (result->violations != 0) {
    throw TraceError(fmt::format("the simulated device found {} mistakes", result->violations));
  }
  return trace_tool::kExitOk;
}

}  // namespace

int Main(int argc, char** argv) {
  CLI::App app{"replays a recorded run in simulation", "weir-trace replay"};
  Options options;
  app.add_option("file", options.file, "the trace")->required();
  app.add_option("--policy", options.simulation.policy,
                 "recorded: the trace's decisions [recorded]; or a policy, as weir run takes it");
  app.add_option("--hbm-budget", options.budget, "device memory, such as 320MiB [as recorded]");
  app.add_option("--rate", options.simulation.rate, "requests come this much faster [1]")
      ->check(CLI::Range(1e-6, 1e6));
  app.add_option("--link", options.simulation.link, "the link is this much faster [1]")
      ->check(CLI::Range(1e-6, 1e6));
  app.add_option("-o,--output", options.simulation.trace_path,
                 "keep the simulated run as a trace, for report, plot, diff, check");
  app.add_flag("--json", options.json, "the comparison, for programs");
  app.footer(
      "Examples:\n"
      "  weir-trace replay run.trace                       how well does the simulation agree?\n"
      "  weir-trace replay run.trace --policy resident -o resident.trace\n"
      "  weir-trace replay run.trace --policy 'tide{hold_steps=128}' --hbm-budget 280MiB\n"
      "Exit status: 0, or 2 when the trace or an option cannot be used.");
  try {
    app.parse(argc, argv);
    return Replay(options);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? trace_tool::kExitOk : trace_tool::kExitUnusable;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "weir-trace: error: %s\n", error.what());
    return trace_tool::kExitUnusable;
  }
}

}  // namespace weir::replay

int main(int argc, char** argv) {
  return weir::replay::Main(argc, argv);
}
