// Simulation: a recorded workload run again, by the engine core over a simulated device with
// virtual time.
//
// Represents one run from the first arrival to the end of the last request: memory, scheduler,
// pager and policy are the engine's own; the device, the link and the model's arithmetic are stood
// in for by what the trace says they cost. Deterministic. Writes a trace of its own, which every
// command of weir-trace reads.
#pragma once

#include <cstdint>
#include <string>

#include "bench/replay/recorded_workload.h"
#include "vmm/status.h"

namespace weir::replay {

struct SimulationOptions {
  std::string policy = "recorded";  // "recorded": the trace's decisions; else a policy's spec
  uint64_t budget_bytes = 0;        // 0: the recorded one
  double rate = 1;                  // arrivals come this much faster
  double link = 1;                  // and the link is this much faster
  std::string trace_path;           // where the simulated trace goes
  std::string command;              // for its metadata
};

struct SimulationResult {
  uint64_t begin_ns = 0, end_ns = 0;  // virtual, of serving
  uint64_t refused = 0;               // requests that can never fit this budget
  uint64_t failed = 0;
  uint64_t steps = 0;
  uint64_t violations = 0;  // what the simulated device found wrong: a defect
};

Result<SimulationResult> Simulate(const RecordedWorkload& workload,
                                  const trace_tool::TraceMeta& meta,
                                  const SimulationOptions& options);

}  // namespace weir::replay
