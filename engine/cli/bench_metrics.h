// Figures of benchmarks: distributions, and what vllm bench calls TTFT, TPOT, ITL, E2EL, goodput.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/cli/bench_runner.h"
#include "vmm/status.h"

namespace weir::cli {

// All 0 when |count| is 0. Percentiles by linear interpolation, as numpy.
struct Distribution {
  uint64_t count = 0;
  double mean = 0, min = 0, p10 = 0, p50 = 0, p90 = 0, p95 = 0, p99 = 0, max = 0;
};
Distribution DistributionOf(std::vector<double> values);

// Upper bounds in milliseconds that a good request keeps; at least one.
struct Goodput {
  std::optional<double> ttft_ms, tpot_ms, e2el_ms;
};
// "ttft:500", "tpot:50", "e2el:9000". kInvalidArgument names the text and what is accepted.
Result<Goodput> ParseGoodput(const std::vector<std::string>& bounds);

// Times of one request in milliseconds from when it was due.
struct RequestTimes {
  double ttft_ms = 0;
  double e2el_ms = 0;
  double tpot_ms = 0;  // after the first token, each; 0 for one token
};
RequestTimes TimesOf(const BenchRecord& record);
bool IsGood(const RequestTimes& times, const Goodput& bounds);

// Represents what one run amounts to. Tokens are of requests that ended well, as in vllm bench.
struct BenchSummary {
  uint64_t requests = 0;
  uint64_t failed = 0;        // ended with an error, or not at all
  uint64_t other_length = 0;  // ended well, but not with the output length that was asked for
  uint64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  double wall_s = 0;
  double requests_per_s = 0, output_per_s = 0, total_per_s = 0;
  Distribution ttft_ms, tpot_ms, itl_ms, e2el_ms;
  uint64_t steps = 0;
  double mean_rows = 0;     // tokens computed in a step
  double mean_running = 0;  // over the time of the steps
  Distribution step_ms;
  double host_s = 0;       // of the time not idle, outside the compute back-end
  double host_share = 0;   // of the time not idle
  double stall_share = 0;  // of the steps' time, in gates
  uint32_t kv_start = 0, kv_peak = 0, away_peak = 0;  // blocks, blocks, granules

  bool Passed() const { return failed == 0 && other_length == 0; }
};
BenchSummary SummariseBench(const BenchRun& run);

}  // namespace weir::cli
