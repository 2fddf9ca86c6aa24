// Config: what a user chose, and where each choice comes from.
//
// Precedence: flag, environment (WEIR_<SECTION>_<KEY>), configuration file (TOML), default.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/cli/option_table.h"
#include "vmm/status.h"

namespace weir::cli {

// Holds an API key of `weir serve`. No option: options are shown.
inline constexpr std::string_view kApiKeyVariable = "WEIR_SERVER_API_KEY";

// Represents settings under construction: layers are applied from the weakest to the strongest, and
// the source of each value is remembered. A failed call may leave the layer half applied.
class Config {
 public:
  Config() = default;

  // A default that differs from the table's, such as of one subcommand.
  Status SetDefault(std::string_view name, std::string_view text, std::string_view source);
  // kIo or kNotFound: no such file. kInvalidArgument: "weir.toml:3: unknown key ..." .
  Status ApplyFile(const std::string& path);
  Status ApplyToml(std::string_view text, const std::string& path);
  // Reads only names that start with WEIR_ and one of the sections; others are somebody else's.
  Status ApplyEnvironment(const std::map<std::string, std::string>& environment);
  Status ApplyFlag(const OptionInfo& option, std::string_view text);

  const Settings& settings() const { return settings_; }
  Settings& settings() { return settings_; }
  // "default", "weir.toml:3", "environment WEIR_...", "flag --...".
  std::string SourceOf(const OptionInfo& option) const;
  bool IsDefault(const OptionInfo& option) const;
  // The whole configuration as TOML, each value with its source as a comment. ApplyToml reads it
  // back to the same settings.
  std::string ToToml() const;

 private:
  Status Set(const OptionInfo& option, std::string_view text, std::string source);

  Settings settings_;
  std::map<std::string, std::string>
      sources_;  // by OptionInfo::name(); absent: the table's default
  std::map<std::string, std::string> default_sources_;
};

// The variables of this process.
std::map<std::string, std::string> ProcessEnvironment();

// docs/configuration.md, from the table.
std::string ConfigurationPage();
// weir.example.toml, from the table: every option with its default, commented out.
std::string ExampleToml();

}  // namespace weir::cli
