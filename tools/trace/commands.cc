#include "tools/trace/commands.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <utility>

#include <CLI/CLI.hpp>

#include "tools/trace/reader.h"

namespace weir::trace_tool {
namespace {

// In the order in which the help shows them.
constexpr AddCommand kCommands[] = {
    AddRecordCommand, AddReportCommand, AddCheckCommand, AddScriptCommand, AddExportCommand,
    AddPlotCommand,   AddTopCommand,    AddHistCommand,  AddDiffCommand,   AddReplayCommand,
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

OutputFile::OutputFile(const std::string& path) : path_(path), partial_(path + ".part") {
  file_ = path == "-" ? stdout : std::fopen(partial_.c_str(), "wb");
  if (file_ == nullptr) Fail();
}

OutputFile::~OutputFile() {
  if (file_ == nullptr || file_ == stdout) return;
  std::fclose(file_);
  std::remove(partial_.c_str());
}

void OutputFile::Fail() {
  throw TraceError((path_ == "-" ? "stdout" : path_) +
                   " cannot be written: " + std::strerror(errno));
}

void OutputFile::Write(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), file_) != text.size()) Fail();
  bytes_ += text.size();
}

uint64_t OutputFile::Close() {
  if (std::fflush(file_) != 0) Fail();
  if (file_ == stdout) return bytes_;
  const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
  if (!closed || std::rename(partial_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    std::remove(partial_.c_str());
    errno = error;
    Fail();
  }
  return bytes_;
}

void WriteFile(const std::string& path, const std::string& text) {
  OutputFile file(path);
  file.Write(text);
  file.Close();
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
