// `weir-trace export`: a trace in the formats of other programs.
#include <cstdio>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "tools/trace/commands.h"
#include "tools/trace/perfetto.h"
#include "tools/trace/script.h"
#include "tools/trace/text.h"

namespace weir::trace_tool {
namespace {

struct ExportOptions {
  std::string file;
  std::string path;
  bool perfetto = false;
  bool csv = false;
  bool json = false;
};

int RunExport(const ExportOptions& options) {
  if (options.perfetto + options.csv + options.json != 1) {
    throw TraceError("export: one format is needed: --perfetto, --csv or --jsonl");
  }
  const std::string ending = options.perfetto ? ".json" : options.csv ? ".csv" : ".jsonl";
  const std::string path = options.path.empty() ? options.file + ending : options.path;
  const auto reader = OpenTrace(options.file);
  OutputFile file(path);
  uint64_t written = 0;
  if (options.perfetto) {
    ChromeTraceWriter writer(*reader, [&](std::string_view text) { file.Write(text); });
    reader->ForEach([&](const TraceEvent& event) { writer.Add(event); });
    writer.Finish();
    written = writer.written();
  } else {
    if (options.csv) file.Write("time_ns,seconds,thread,type,cause,a0,a1,a2,a3,a4,a5\n");
    reader->ForEach([&](const TraceEvent& event) {
      file.Write((options.csv ? EventCsv(event, *reader) : EventJson(event, *reader)) + "\n");
      ++written;
    });
  }
  const uint64_t bytes = file.Close();
  if (path == "-") return kExitOk;
  std::fprintf(
      stderr, "weir-trace: %s: %s events, %s%s\n", path.c_str(), Grouped(written).c_str(),
      HumanBytes(static_cast<double>(bytes)).c_str(),
      options.perfetto ? "; open it at https://ui.perfetto.dev or in chrome://tracing" : "");
  return kExitOk;
}

}  // namespace

void AddExportCommand(CLI::App& app, int* exit_status) {
  auto options = std::make_shared<ExportOptions>();
  CLI::App* command = app.add_subcommand("export", "for Perfetto, or every record for a program");
  command->add_option("file", options->file, "the trace")->required();
  command->add_flag("--perfetto", options->perfetto,
                    "Chrome trace events: ui.perfetto.dev and chrome://tracing open them");
  command->add_flag("--csv", options->csv, "every record as a line of numbers");
  command->add_flag("--jsonl", options->json, "every record as a JSON object in a line");
  command->add_option("-o,--output", options->path,
                      "file to write; - is stdout [the trace's name and .json, .csv or .jsonl]");
  command->footer(
      "Example: weir-trace export --perfetto run.trace\n"
      "writes run.trace.json: drag it into https://ui.perfetto.dev (it stays in your browser).");
  command->callback([options, exit_status] { *exit_status = RunExport(*options); });
}

}  // namespace weir::trace_tool
