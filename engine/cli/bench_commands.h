// weir bench: measures the engine under made-up or recorded load. docs/benchmarking.md.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/bench/workload.h"
#include "engine/cli/config.h"
#include "engine/cli/table_flags.h"

namespace weir::cli {

struct BenchOutput {
  std::string json;           // file to write everything measured to; empty: none
  std::string save_requests;  // file; empty: none
  bool quiet = false;         // no progress, the report alone
};

struct ThroughputOptions {
  BenchOutput output;
  bench::WorkloadOptions workload;  // its arrivals are not used: all requests at once
  uint64_t warmups = 0;             // requests that run before the clock starts
};

struct LatencyOptions {
  BenchOutput output;
  uint32_t batch_size = 8;
  uint32_t input_len = 32;
  uint32_t output_len = 128;
  uint32_t context = 0;  // 0: off; else decode steps are measured behind a prompt so long
  std::optional<uint32_t> num_iters;         // 30; with |context| 3
  std::optional<uint32_t> num_iters_warmup;  // 10; with |context| 1
  uint64_t seed = 0;
};

struct ServeTraceOptions {
  BenchOutput output;
  bench::WorkloadOptions workload;
  uint64_t warmups = 0;
  std::vector<std::string> goodput;  // "ttft:500": milliseconds, as vllm bench serve takes them
};

int ThroughputCommand(const Config& config, const ThroughputOptions& options);
int LatencyCommand(const Config& config, const LatencyOptions& options);
int ServeTraceCommand(const Config& config, const ServeTraceOptions& options);

// Represents the sub-commands of `weir bench` on a command line.
class BenchCommands {
 public:
  void AddTo(CLI::App& app);
  bool parsed() const;
  int Run();  // the one that was parsed

 private:
  void AddThroughput(CLI::App& bench);
  void AddLatency(CLI::App& bench);
  void AddServeTrace(CLI::App& bench);

  CLI::App* throughput_app_ = nullptr;
  CLI::App* latency_app_ = nullptr;
  CLI::App* serve_trace_app_ = nullptr;
  TableFlags throughput_flags_, latency_flags_, serve_trace_flags_;
  ThroughputOptions throughput_;
  LatencyOptions latency_;
  ServeTraceOptions serve_trace_;
};

}  // namespace weir::cli
