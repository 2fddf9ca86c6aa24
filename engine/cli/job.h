// Job: many requests through one engine, timed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/cli/metrics.h"
#include "engine/cli/progress.h"
#include "engine/cli/prompts.h"
#include "engine/engine.h"

namespace weir::cli {

struct JobRequest {
  std::string group;
  std::string text;                // as the model sees it
  bool add_special_tokens = true;  // false: a chat template wrote them
  SamplingParams sampling;
};

struct JobOptions {
  std::string label;
  double request_rate = 0;  // requests a second, Poisson arrivals; 0: all at once
  uint64_t arrival_seed = 0;
  Progress* progress = nullptr;  // may be null
  // After each request's end, in order of ending.
  std::function<void(size_t index, const RequestRecord& record)> on_finished;
};

// Prompts through the model's chat template; as "system\n\nprompt" when it has none.
// kInvalidArgument names the prompt.
Result<std::vector<JobRequest>> MakeRequests(const Engine& engine,
                                             const std::vector<PromptEntry>& prompts,
                                             const SamplingParams& defaults);

// Submission offsets in nanoseconds: exponential gaps of mean 1/rate (seeded), all 0 for rate 0.
std::vector<TimeNs> ArrivalTimes(size_t requests, double rate, uint64_t seed);

// Opens an engine for |options| and runs everything through it. An error is one of opening or a
// defect of the engine; requests that fail are in the result. Ctrl-C ends it early (cancelled).
Result<JobResult> RunJob(const EngineOptions& options, const std::vector<PromptEntry>& prompts,
                         const SamplingParams& sampling, const JobOptions& job);

}  // namespace weir::cli
