// CheckedTrace: the trace of a test's run, in a file, looked at with the code of `weir-trace
// check`.
//
// Represents a tracer that is installed while this lives. Drain often: rings are finite.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tools/trace/check.h"
#include "vmm/trace.h"

namespace weir::testing {

// What `weir-trace check` found, and the sums that the engine has counters for.
struct TraceFindings {
  uint64_t violations = 0;
  std::string first;  // the first violation
  bool conclusive = false;
  uint64_t steps = 0, passes = 0, faults = 0, stall_ns = 0, copies = 0, copied_bytes = 0;
  // Bytes a step x steps, and what was copied ahead; where no step failed.
  uint64_t expected_bytes = 0;
  uint64_t moves = 0, regroupings = 0;  // kTransition
  uint64_t device_steps = 0;
  uint64_t latest_clock_error_ns = 0, most_clock_error_ns = 0;  // of device steps
  uint64_t device_idle_ns = 0;                                  // between device steps
  std::map<FaultCause, uint64_t> by_cause;
  std::vector<TraceRecord> fault_records;
};

class CheckedTrace {
 public:
  // |clock|: of the records; empty: the system's monotonic one.
  explicit CheckedTrace(Tracer::Clock clock = {}, uint64_t mask = ~uint64_t{0});
  ~CheckedTrace();

  Tracer& tracer() { return tracer_; }
  void Drain();
  const std::vector<TraceRecord>& records() const { return records_; }
  // Of what was drained so far. |complete|: the memory system is gone.
  TraceFindings Check(const std::string& metadata, bool complete);
  // The file of the last Check.
  const std::string& path() const { return path_; }

 private:
  Tracer tracer_;
  uint64_t start_ns_ = 0;
  std::vector<TraceRecord> records_;
  std::string path_;
};

}  // namespace weir::testing
