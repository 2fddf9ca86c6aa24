// The options of the table as flags of one sub-command.
#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/cli/config.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace weir::cli {

// Represents the shared flags of one sub-command, and --config and --print-config. Values stay
// text: the table reads them. Outlives the parsing.
class TableFlags {
 public:
  // Those of |without|'s sections are left out: they mean nothing to |app|.
  void AddTo(CLI::App& app, bool positional_model, const std::set<std::string>& without);
  // File, environment and flags, in this order, on top of |config|.
  Status Apply(Config* config) const;
  bool print() const { return print_; }

 private:
  std::string file_;
  bool print_ = false;
  std::map<std::string, std::string> texts_;  // by name; nodes do not move
  std::vector<std::pair<CLI::Option*, const OptionInfo*>> flags_;
};

}  // namespace weir::cli
