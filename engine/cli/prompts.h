// Prompts files: JSON Lines, one request a line; texts that many requests begin with are stored
// once.
//
//   {"define": "support", "text": "You answer questions of customers ..."}
//   {"prefix": "support", "prompt": "Where is my parcel?", "max_tokens": 40}
//   {"system": "Answer in one word.", "prompt": "Capital of Peru?"}
//   {"prompt": "Write a haiku."}
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/status.h"

namespace weir::cli {

struct PromptEntry {
  std::string group;   // name of the prefix; empty: none
  std::string system;  // the prefix's text, or its own
  std::string prompt;
  uint32_t max_tokens = 0;  // 0: the job's default
  size_t line = 0;          // in its file
};

// kInvalidArgument with the line: not JSON, not UTF-8, an unknown key or prefix, no prompt.
Result<std::vector<PromptEntry>> ParsePrompts(std::string_view text, const std::string& path);
Result<std::vector<PromptEntry>> ReadPrompts(const std::string& path);

// The file that 'weir run' takes when none is named: of the source tree, or as installed.
std::string DefaultPromptsPath();

// [{"role": "system", ...}, {"role": "user", ...}] for a chat template.
std::string MessagesJson(std::string_view system, std::string_view prompt);

}  // namespace weir::cli
