#include <cstdio>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/trace/check.h"
#include "tools/trace/commands.h"
#include "tools/trace/script.h"
#include "tools/trace/text.h"

namespace weir::trace_tool {
namespace {

struct CheckOptions {
  std::string file;
  bool complete = false;
  bool partial = false;
  bool json = false;
  uint64_t limit = 10;
};

std::string Verdict(const InvariantChecker& checker, bool whole) {
  if (checker.violation_count() != 0) return "FAILED";
  return whole ? "passed" : "inconclusive";
}

void PrintText(const TraceReader& reader, const InvariantChecker& checker, uint64_t limit,
               bool whole) {
  std::string out;
  uint64_t shown = 0;
  for (const Violation& v : checker.violations()) {
    if (shown++ == limit) break;
    out += fmt::format("{}  {}\n    at byte {} of the file, thread {}, {:.9f} s:\n    {}\n", v.rule,
                       v.what, v.event.offset, v.event.record.thread,
                       reader.SecondsOf(v.event.record.time_ns), EventLine(v.event, reader));
  }
  if (checker.violation_count() > limit) {
    out += fmt::format("... {} violations in all:", Grouped(checker.violation_count()));
    for (const auto& [rule, n] : checker.counts()) out += fmt::format(" {} {}", rule, Grouped(n));
    out += "\n";
  }
  for (const std::string& note : checker.notes()) out += "note: " + note + "\n";
  out += fmt::format("{}: {} records, {} plans, {} steps, {} armed gates passed, {} of stall\n",
                     Verdict(checker, whole), Grouped(reader.records()), Grouped(checker.plans()),
                     Grouped(checker.steps()), Grouped(checker.passes()),
                     HumanNs(static_cast<double>(checker.stall_ns())));
  WriteFile("-", out);
}

void PrintJson(const TraceReader& reader, const InvariantChecker& checker, bool whole) {
  nlohmann::ordered_json root;
  root["verdict"] = Verdict(checker, whole);
  root["records"] = reader.records();
  root["plans"] = checker.plans();
  root["steps"] = checker.steps();
  root["gates_passed"] = checker.passes();
  root["stall_ns"] = checker.stall_ns();
  root["violations"] = checker.violation_count();
  root["by_rule"] = checker.counts();
  root["first"] = nlohmann::ordered_json::array();
  for (const Violation& v : checker.violations()) {
    nlohmann::ordered_json item;
    item["rule"] = v.rule;
    item["what"] = v.what;
    item["offset"] = v.event.offset;
    item["event"] = nlohmann::ordered_json::parse(EventJson(v.event, reader));
    root["first"].push_back(std::move(item));
  }
  root["notes"] = checker.notes();
  root["losses"] = reader.losses().Lines();
  WriteFile("-", root.dump(2) + "\n");
}

int RunCheck(const CheckOptions& options) {
  const auto reader = OpenTrace(options.file);
  InvariantChecker checker(reader->meta(), reader->header().mask);
  reader->ForEach([&](const TraceEvent& event) { checker.Add(event); });
  checker.Finish(options.complete);
  const bool whole = options.partial || (checker.conclusive() && !reader->losses().any());
  if (options.json) {
    PrintJson(*reader, checker, whole);
  } else {
    PrintText(*reader, checker, options.limit, whole);
  }
  if (checker.violation_count() != 0) return kExitFound;
  return whole ? kExitOk : kExitUnusable;
}

}  // namespace

void AddCheckCommand(CLI::App& app, int* exit_status) {
  auto options = std::make_shared<CheckOptions>();
  CLI::App* command = app.add_subcommand("check", "verify the memory invariants from a trace");
  command->add_option("file", options->file, "the trace")->required();
  command->add_flag("--complete", options->complete,
                    "the process has ended: nothing may be left mapped or open");
  command->add_flag("--partial", options->partial,
                    "accept a trace with losses: only what is there is checked");
  command->add_flag("--json", options->json, "for programs");
  command->add_option("--limit", options->limit, "violations to show (default 10)");
  command->footer(
      "Example: weir-trace check run.trace && echo complete and sound\n"
      "Exit status: 0 verified, 1 violated, 2 not conclusive (records are missing) or not "
      "readable.");
  command->callback([options, exit_status] { *exit_status = RunCheck(*options); });
}

}  // namespace weir::trace_tool
