// The program's log: stderr, text or one JSON object a line.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "engine/cli/option_table.h"

namespace weir::cli {

// A named value of a message: `name=value` in text, a member of the object in JSON.
struct LogField {
  LogField(std::string_view key, std::string_view text) : name(key), value(text) {}
  LogField(std::string_view key, uint64_t number)
      : name(key), value(std::to_string(number)), is_number(true) {}
  std::string_view name;
  std::string value;
  bool is_number = false;
};
using LogFields = std::initializer_list<LogField>;

void StartLog(const Settings& settings);
// Any thread. Control characters in messages and values (line ends, escapes) become spaces: neither
// can forge a line. Callers pass no prompt text below level debug, and no key at all.
void LogDebug(std::string_view message, LogFields fields = {});
void LogInfo(std::string_view message, LogFields fields = {});
void LogWarn(std::string_view message, LogFields fields = {});
void LogError(std::string_view message, LogFields fields = {});

}  // namespace weir::cli
