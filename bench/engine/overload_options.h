// What weir_overload_bench was asked for.
#pragma once

#include <string>
#include <vector>

#include "engine/bench/workload.h"
#include "engine/options.h"
#include "vmm/status.h"

namespace weir::overload {

enum class Mode : uint8_t {
  kFlood,  // requests always wait
  kSwing,  // arrivals alternate between light load and overload
  kLight,  // light load: each policy in turn with `resident`
};
const char* ModeName(Mode mode);

struct Options {
  EngineOptions engine;
  bench::WorkloadOptions workload;  // vocabulary and context come from the model
  std::vector<Mode> modes{Mode::kFlood};
  std::vector<double> ratios{0.8};  // weights / HBM without step buffers, each in (0, 1)
  std::vector<std::string> policies{"resident", "tide"};
  double warm_s = 3, measure_s = 4;  // of a flood
  uint32_t repeats = 1;              // floods under each policy, each of other requests
  double phase_s = 5;                // of a swing, and of one turn at light load
  uint32_t rounds = 2;               // of a swing (light, overload), and turns of each policy
  double light = 0.3, heavy = 1.5;   // arrivals, of what `resident` sustains
  double hbm_gb_s = 4000;
  std::string json;
};

// kInvalidArgument names the option and what is accepted.
Result<Options> ParseOptions(int argc, char** argv);
std::string Usage();

}  // namespace weir::overload
