// BenchRunner: a workload through an engine, request by request and step by step, timed.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/bench/workload.h"
#include "engine/cli/metrics.h"
#include "engine/cli/progress.h"
#include "engine/engine.h"

namespace weir::cli {

// What became of one request. Times are those of the engine's driver.
struct BenchRecord {
  bool finished = false;
  FinishReason reason = FinishReason::kNone;
  std::string error;  // of a refused or failed request
  uint32_t wanted_tokens = 0;
  uint32_t prompt_tokens = 0;
  uint32_t cached_tokens = 0;
  uint32_t output_tokens = 0;
  TimeNs due_ns = 0;    // when it came; it may have been taken in later, after a step
  TimeNs first_ns = 0;  // when its first token was reported; 0: none
  TimeNs last_ns = 0;

  bool failed() const { return !finished || reason == FinishReason::kError; }
};

// Represents one run of a workload. Counters are of the run alone.
struct BenchRun {
  std::vector<BenchRecord> requests;  // in the order of the workload
  std::vector<double> gaps_ms;        // between two reports of a request's tokens
  std::vector<StepRecord> steps;
  TimeNs start_ns = 0;
  TimeNs wall_ns = 0;  // from the start to the last token
  TimeNs idle_ns = 0;  // of that, slept because there was nothing to do
  CoreStats core;
  uint64_t preemptions = 0;
  uint64_t recomputed_tokens = 0;
  WeightPagerStats pager;
  PrefixCacheStats prefix;
  uint64_t kv_blocks_moved = 0;
  uint32_t peak_running = 0;
  uint32_t peak_waiting = 0;
  bool cancelled = false;  // by Ctrl-C

  TimeNs FirstTokens() const;  // when the last request had its first token
};

struct BenchRunOptions {
  std::string label;             // of the progress
  uint64_t cache_salt = 0;       // runs share prefixes only within one
  Progress* progress = nullptr;  // may be null
};

// Runs |requests| at their times (at_ns from the start), greedily and without an early end. The
// engine must be idle and is idle afterwards, unless cancelled. It may report tokens of a step
// later than that step's end: times are taken where tokens are reported. An error is a defect of
// the engine; requests that fail are in the result.
Result<BenchRun> RunBench(Engine& engine, std::span<const bench::WorkloadRequest> requests,
                          const BenchRunOptions& options);

}  // namespace weir::cli
