// The program's log: stderr, text or one JSON object a line.
#pragma once

#include <string_view>

#include "engine/cli/option_table.h"

namespace weir::cli {

void StartLog(const Settings& settings);
// Control characters in |message| (line ends, escapes) become spaces: a message cannot forge a
// line. Callers pass no prompt text below level debug.
void LogDebug(std::string_view message);
void LogInfo(std::string_view message);
void LogWarn(std::string_view message);

}  // namespace weir::cli
