// Report: what the main job found, for people and for programs.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "engine/cli/metrics.h"
#include "engine/cli/prompts.h"

namespace weir::cli {

// Represents the whole main job: one result a policy, over the same prompts.
struct RunReport {
  std::string model;
  std::string prompts_path;
  std::vector<PromptEntry> prompts;
  bool chat_template = false;
  bool tight_budget = false;  // made by MakeTightBudget
  uint64_t kv_wanted_bytes = 0;
  double expected_tokens = 0;
  double request_rate = 0;
  std::vector<JobResult> jobs;  // the first is the one under test

  // Whether tokens are the same whatever the schedule, as on the CPU.
  bool TokensMustAgree() const;
  // No request failed, nothing was cancelled, and all jobs gave the same tokens where they must.
  bool Passed() const;
};

// Side by side columns.
std::string ReportText(const RunReport& report);
nlohmann::ordered_json ReportJson(const RunReport& report);
// One JSON object a line: index, group, prompt, and the text of the first job.
std::string OutputsJsonl(const RunReport& report);

}  // namespace weir::cli
