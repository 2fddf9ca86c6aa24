// The command line: sub-commands, flags of the option table, help that teaches.
#pragma once

#include <string>
#include <vector>

#include "engine/cli/config.h"
#include "vmm/status.h"

namespace weir::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;  // the work failed
inline constexpr int kExitUsage = 2;   // the command line, configuration or model cannot be used
inline constexpr int kExitInterrupted = 130;

struct GenerateOptions {
  std::string prompt;
  std::string system;
  bool chat = false;
  bool raw = false;
  std::vector<std::string> stop;
};
struct ChatOptions {
  std::string system;
};
struct RunOptions {
  std::string prompts;  // empty: the built-in file
  uint64_t limit = 0;   // most prompts; 0: all
  double request_rate = 0;
  double kv_share = 0.10;  // of the KV wanted, in hbm_budget auto
  uint64_t arrival_seed = 0;
  bool verify = false;  // a third pass without a budget
  bool verbose = false;
  bool quiet = false;
  bool only = false;  // no comparison with resident
  std::string json;
  std::string out;
};

int GenerateCommand(const Config& config, const GenerateOptions& options);
int ChatCommand(const Config& config, const ChatOptions& options);
int RunCommand(const Config& config, const RunOptions& options);
int InfoCommand(const Config& config);
int PoliciesCommand();
int ServeCommand(const Config& config);

// "weir 0.1.0 (Release, commit ...)".
std::string VersionText();
std::string VersionNumber();  // "0.1.0"
// Of the tree this was built from, as git describes it ("-dirty": with changes); or "unknown".
std::string CommitText();

// "weir: error: ..." on stderr; returns |code|.
int Fail(const Status& status, int code);

// The whole program.
int Main(int argc, const char* const* argv);

}  // namespace weir::cli
