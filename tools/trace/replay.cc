// `weir-trace replay`: hands over to weir-trace-replay, which has the engine in it and this has
// not.
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <unistd.h>

#include "tools/trace/commands.h"
#include "tools/trace/error.h"

namespace weir::trace_tool {

void AddReplayCommand(CLI::App& app, int* /*exit_status*/) {
  CLI::App* command =
      app.add_subcommand("replay", "run a recorded workload again, in simulation (replay --help)");
  command->set_help_flag("");
  command->prefix_command();
  command->callback([command] {
    constexpr const char* kProgram = "weir-trace-replay";
    std::error_code error;
    const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
    const std::string beside = error ? kProgram : (self.parent_path() / kProgram).string();
    std::vector<std::string> args = command->remaining();
    std::vector<char*> argv = {const_cast<char*>(kProgram)};
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    execv(beside.c_str(), argv.data());
    execvp(kProgram, argv.data());
    throw TraceError(std::string(kProgram) + ": " + std::strerror(errno) +
                     "; it belongs beside weir-trace (a build of some folders only has none)");
  });
}

}  // namespace weir::trace_tool
