// The sub-commands of weir-trace. Each file registers its own; commands.cc has the one list.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

namespace CLI {
class App;
}

namespace weir::trace_tool {

class TraceReader;

inline constexpr int kExitOk = 0;
inline constexpr int kExitFound = 1;     // check found a violation, diff a difference
inline constexpr int kExitUnusable = 2;  // the command line or the file cannot be used

// Adds its sub-command to |app|; when it is chosen, it runs and stores the exit status.
using AddCommand = void (*)(CLI::App& app, int* exit_status);

void AddCheckCommand(CLI::App& app, int* exit_status);
void AddDiffCommand(CLI::App& app, int* exit_status);
void AddExportCommand(CLI::App& app, int* exit_status);
void AddHistCommand(CLI::App& app, int* exit_status);
void AddPlotCommand(CLI::App& app, int* exit_status);
void AddRecordCommand(CLI::App& app, int* exit_status);
void AddReplayCommand(CLI::App& app, int* exit_status);
void AddReportCommand(CLI::App& app, int* exit_status);
void AddScriptCommand(CLI::App& app, int* exit_status);
void AddTopCommand(CLI::App& app, int* exit_status);

// Opens |path| and says on stderr what is missing from it. Throws TraceError with the path.
std::unique_ptr<TraceReader> OpenTrace(const std::string& path);
// Writes |text| to |path| whole or not at all; "-" is stdout. Throws TraceError.
void WriteFile(const std::string& path, const std::string& text);

// Represents a file that is written piece by piece and appears under its name when it is closed;
// "-" is stdout. What was not closed leaves nothing behind. Throws TraceError.
class OutputFile {
 public:
  explicit OutputFile(const std::string& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  void Write(std::string_view text);
  // How many bytes were written.
  uint64_t Close();

 private:
  [[noreturn]] void Fail();
  const std::string path_, partial_;
  std::FILE* file_ = nullptr;
  uint64_t bytes_ = 0;
};

// The whole program.
int Main(int argc, const char* const* argv);

}  // namespace weir::trace_tool
