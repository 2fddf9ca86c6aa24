// The table of options: one row for each thing a user can choose, from which the configuration
// file, the environment, the flags, --help, the echo and docs/configuration.md all follow.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/options.h"
#include "engine/sampler.h"
#include "vmm/status.h"

namespace weir::cli {

enum class LogFormat : uint8_t { kText, kJson };
enum class BudgetMode : uint8_t { kAuto, kBytes };

// What `weir serve` takes beside the engine. Times in seconds.
struct ServeSettings {
  std::string host = "127.0.0.1";
  uint32_t port = 8000;
  std::string api_key_file;       // empty: none
  std::string served_model_name;  // empty: from the model's path
  uint32_t http_threads = 1;
  uint32_t max_connections = 4096;
  uint32_t max_queued_requests = 512;
  uint64_t max_queued_tokens = 262144;
  uint32_t max_queued_per_tenant = 256;
  double request_timeout = 0;  // 0: none
  double shutdown_timeout = 30;
  bool vllm_metrics = true;
  bool log_requests = true;
};

// Represents everything chosen: what the engine takes, and what the programs around it take.
struct Settings {
  EngineOptions engine;
  // kAuto: room for everything (generate, chat), or the tight budget of the main job (run).
  BudgetMode budget_mode = BudgetMode::kAuto;
  SamplingParams sampling;
  std::string log_level = "warn";
  LogFormat log_format = LogFormat::kText;
  ServeSettings serve;
  Settings();
};

enum class OptionType : uint8_t { kText, kSwitch, kSize, kCount, kReal, kChoice };

struct OptionInfo {
  std::string section;
  std::string key;
  OptionType type = OptionType::kText;
  std::string accepted;    // "a size", "0 to 20", "cpu, cuda or auto"
  std::string help;        // one line: meaning, unit, what 0 does
  std::string short_flag;  // "-m", or empty
  std::string flag;        // "--max-num-seqs"
  std::function<Status(Settings&, std::string_view text)> set;  // unchanged after an error
  std::function<std::string(const Settings&)> get;              // |set| reads it back

  std::string name() const { return section + "." + key; }
  std::string environment() const;  // "WEIR_MEMORY_HBM_BUDGET"
};

const std::vector<OptionInfo>& OptionTable();
// Null when there is none.
const OptionInfo* FindOption(std::string_view section, std::string_view key);
std::vector<std::string> Sections();  // in order
std::string_view OptionTypeName(OptionType type);

}  // namespace weir::cli
