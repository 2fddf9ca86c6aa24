// `weir-trace plot`: the picture of a trace.
#include <cstdio>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "tools/trace/commands.h"
#include "tools/trace/error.h"
#include "tools/trace/plot.h"

namespace weir::trace_tool {
namespace {

struct PlotOptions {
  std::string file, path;
  TimelineOptions timeline;
  bool serving = false;
};

int RunPlot(const PlotOptions& options) {
  const std::string path = options.path.empty() ? options.file + ".html" : options.path;
  const bool svg = path.ends_with(".svg");
  if (!svg && !path.ends_with(".html")) {
    throw TraceError("-o " + path + ": a plot is an .html or an .svg file");
  }
  const auto reader = OpenTrace(options.file);
  Timeline timeline(*reader, options.timeline);
  if (options.serving) {
    TimelineOptions later = options.timeline;
    later.from_s = timeline.serving_from_s();
    timeline = Timeline(*reader, later);
  }
  WriteFile(path, svg ? PlotSvg(timeline, *reader) : PlotHtml(timeline, *reader));
  std::fprintf(stderr, "weir-trace: %s: %.3f s from %.3f s on, %zu columns of %.1f ms\n",
               path.c_str(), timeline.seconds(), timeline.from_s(), timeline.columns().size(),
               timeline.column_s() * 1e3);
  return kExitOk;
}

}  // namespace

void AddPlotCommand(CLI::App& app, int* exit_status) {
  auto options = std::make_shared<PlotOptions>();
  CLI::App* command = app.add_subcommand("plot", "one picture: memory, layers, faults, throughput");
  command->add_option("file", options->file, "the trace")->required();
  command->add_option("-o,--output", options->path,
                      "an .html file (shows values under the pointer) or an .svg file [the trace's "
                      "name and .html]");
  command->add_option("--from", options->timeline.from_s, "seconds since the trace began")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--to", options->timeline.to_s, "seconds since the trace began; 0: the end")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--serving", options->serving,
                    "from the first step of requests on: without loading and calibration");
  command->add_option("--columns", options->timeline.columns, "steps of the time axis [400]")
      ->check(CLI::Range(10, 5000));
  command->footer(
      "Examples:\n"
      "  weir-trace plot run.trace -o run.html\n"
      "  weir-trace plot run.trace --from 12.5 --to 13 -o half-a-second.svg");
  command->callback([options, exit_status] { *exit_status = RunPlot(*options); });
}

}  // namespace weir::trace_tool
