#include "tools/trace/commands.h"

#include <cstdio>
#include <exception>
#include <fstream>

#include <CLI/CLI.hpp>

#include "tools/trace/reader.h"

namespace weir::trace_tool {
namespace {

// In the order in which the help shows them.
constexpr AddCommand kCommands[] = {
    AddRecordCommand,
    AddReportCommand,
    AddCheckCommand,
    AddScriptCommand,
};

}  // namespace

std::unique_ptr<TraceReader> OpenTrace(const std::string& path) {
  try {
    auto reader = std::make_unique<TraceReader>(OpenFile(path));
    if (!reader->meta_problem().empty()) {
      std::fprintf(stderr, "weir-trace: %s: %s\n", path.c_str(), reader->meta_problem().c_str());
    }
    for (const std::string& line : reader->losses().Lines()) {
      std::fprintf(stderr, "weir-trace: %s: %s\n", path.c_str(), line.c_str());
    }
    return reader;
  } catch (const TraceError& error) {
    const std::string what = error.what();
    throw TraceError(what.starts_with(path) ? what : path + ": " + what);
  }
}

void WriteFile(const std::string& path, const std::string& text) {
  if (path == "-") {
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() ||
        std::fflush(stdout) != 0) {
      throw TraceError("stdout: the text could not be written");
    }
    return;
  }
  const std::string partial = path + ".part";
  std::ofstream file(partial, std::ios::binary | std::ios::trunc);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  file.close();
  if (!file || std::rename(partial.c_str(), path.c_str()) != 0) {
    std::remove(partial.c_str());
    throw TraceError(path + ": cannot be written");
  }
}

int Main(int argc, const char* const* argv) {
  CLI::App app{"weir-trace: what happened to the memory of a weir server", "weir-trace"};
  app.require_subcommand(1);
  app.set_version_flag("--version", "weir-trace, trace format " + std::to_string(kTraceVersion));
  app.footer("docs/tracing.md answers ten common questions with the commands to ask.");
  int exit_status = kExitOk;
  for (const AddCommand add : kCommands) add(app, &exit_status);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int status = app.exit(error);
    return status == 0 ? kExitOk : kExitUnusable;
  } catch (const TraceError& error) {
    std::fprintf(stderr, "weir-trace: error: %s\n", error.what());
    return kExitUnusable;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "weir-trace: error: %s\n", error.what());
    return kExitUnusable;
  }
  return exit_status;
}

}  // namespace weir::trace_tool
