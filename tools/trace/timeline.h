// Timeline: a trace cut into columns of equal time, for pictures.
//
// Represents what happened in each column (sums, spread over the columns that a step or a transfer
// lies in) and how things stood at its end. Memory: columns x (layers + a few numbers).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tools/trace/memory_state.h"
#include "tools/trace/open_steps.h"
#include "tools/trace/reader.h"

namespace weir::trace_tool {

struct TimelineColumn {
  // Sums.
  double prompt_tokens = 0, output_tokens = 0;
  std::array<double, kFaultCauses> stall_ns{};  // by cause
  uint64_t faults = 0, failed_steps = 0;
  std::map<uint64_t, double> link_bytes;  // by source tier
  // State at the column's end.
  bool known = false;  // something had been told by then
  std::array<uint64_t, MemoryState::kOwners> granules{};
  MemoryState::Queue queue;
  uint64_t evicted_bytes = 0;
  std::vector<float> home;  // share of the layer's slots that are at home, by layer
};

struct TimelinePlan {
  uint64_t time_ns = 0, duration_ns = 0;
  uint64_t cause = 0, plan = 0, taken = 0, freed = 0;
  bool rolled_back = false;
};

struct TimelineOptions {
  double from_s = 0, to_s = 0;  // seconds since the trace began; to 0: the end
  size_t columns = 400;
};

class Timeline {
 public:
  static constexpr size_t kMostPlans = 2000;  // of evict, restore and kv-shrink: shown one by one

  // Reads the whole trace. Throws TraceError when the range holds nothing.
  Timeline(TraceReader& reader, const TimelineOptions& options);

  const std::vector<TimelineColumn>& columns() const { return columns_; }
  const std::vector<TimelinePlan>& plans() const { return plans_; }
  double from_s() const { return from_s_; }
  double column_s() const { return column_ns_ * 1e-9; }
  double seconds() const { return column_s() * static_cast<double>(columns_.size()); }
  // Since the trace began; of the first serving step, or from_s() without one.
  double serving_from_s() const { return serving_from_s_; }
  uint64_t layers() const { return layers_; }

  // Over the range; of serving, but for |step_ns| and what lies outside steps.
  uint64_t steps = 0, tokens = 0, output_tokens = 0, faults = 0;
  double stall_ns = 0, step_ns = 0, streamed_bytes = 0;

 private:
  void Add(const TraceRecord& r, TraceReader& reader);
  void OnStep(const TraceRecord& r);
  void CloseColumnsBefore(uint64_t time_ns, const MemoryState& state);
  // Hands |add| each column that [begin, end) touches, and which share of the span lies in it.
  template <typename Fn>
  void Spread(uint64_t begin_ns, uint64_t end_ns, Fn add);

  std::vector<TimelineColumn> columns_;
  std::vector<TimelinePlan> plans_;
  OpenSteps open_steps_;
  uint64_t begin_ns_ = 0, end_ns_ = 0;
  double column_ns_ = 1, from_s_ = 0, serving_from_s_ = -1;
  uint64_t layers_ = 0;
  size_t closed_ = 0;
};

}  // namespace weir::trace_tool
