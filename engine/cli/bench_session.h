// BenchSession: what the sub-commands of `weir bench` have in common, from the model's shape to the
// written report.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "engine/bench/workload.h"
#include "engine/cli/bench_commands.h"
#include "engine/cli/bench_runner.h"
#include "engine/cli/progress.h"
#include "engine/engine.h"

namespace weir::cli {

// Represents one benchmark: settings, then the model's shape, the workload, the engine, runs and
// the report, to be had in this order. One thread. Nothing can be done after an error.
class BenchSession {
 public:
  BenchSession(std::string command, const Config& config, const BenchOutput& output);

  // Until ReadModel they can still be changed.
  Settings& settings() { return settings_; }

  // Reads the shape alone, so that mistakes are found before weights are loaded.
  Status ReadModel();
  // Fills in vocabulary and context of the model.
  Status MakeRequests(bench::WorkloadOptions options);
  const bench::Workload& workload() const { return workload_; }
  Status OpenEngine();
  Engine& engine() { return *engine_; }

  // The first |count| requests of the workload, at once, over and over where there are fewer.
  Status Warm(uint64_t count);
  // As RunBench.
  enum class Prefixes : uint8_t { kFresh, kOfTheLastRun };  // what can be found in the cache
  Result<BenchRun> Run(const std::vector<bench::WorkloadRequest>& requests, Prefixes prefixes);
  // Memory's invariants, and that no block is used by nobody.
  Status CheckIntegrity() { return engine_->core().CheckIntegrity(); }

  // Prints a header and |table|; writes a file with |options| of the sub-command and |results|.
  Status Report(const std::string& table, nlohmann::ordered_json options,
                nlohmann::ordered_json results);

 private:
  std::string Header() const;
  nlohmann::ordered_json OptionsJson() const;
  nlohmann::ordered_json WorkloadJson() const;

  std::string command_;
  Settings settings_;
  const BenchOutput& output_;
  Progress progress_;
  ModelConfig model_;
  uint32_t max_model_len_ = 0;
  bench::WorkloadOptions workload_options_;
  bench::Workload workload_;
  std::unique_ptr<Engine> engine_;
  uint64_t salt_ = 0;
};

// How a benchmark ends: |prepared| and |run| are what became of its two halves.
int BenchExitCode(const Status& prepared, const Status& run, bool passed);

}  // namespace weir::cli
