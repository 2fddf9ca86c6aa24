// LiveView: the last minute of a running process, for `top`.
//
// Represents the memory as of the last record, sums over half seconds of the last minute, and the
// last decision and longest fault. Feed it records as they are drained (any order within a drain)
// and tell it the time; both clocks are CLOCK_MONOTONIC. Bounded memory.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "tools/trace/memory_state.h"
#include "tools/trace/open_steps.h"
#include "vmm/trace_format.h"

namespace weir::trace_tool {

// What happened in half a second.
struct LiveSums {
  uint64_t steps = 0, output_tokens = 0, prompt_tokens = 0, step_ns = 0, faults = 0;
  uint64_t plans = 0, plan_ns = 0, finished = 0;
  std::array<uint64_t, kFaultCauses> stall_ns{};
  std::array<uint64_t, 4> in_bytes{};  // to the device, by tier
  uint64_t out_bytes = 0;              // from the device
  // At its end.
  uint64_t kv_used = 0, running = 0, waiting = 0;

  uint64_t stall() const;
  uint64_t in() const;
  LiveSums& operator+=(const LiveSums& other);
};

class LiveView {
 public:
  static constexpr uint64_t kBucketNs = 500'000'000;
  static constexpr size_t kBuckets = 120;  // a minute
  static constexpr size_t kRateBuckets = 4;

  explicit LiveView(TraceMeta meta);
  LiveView(const LiveView&) = delete;
  LiveView& operator=(const LiveView&) = delete;

  // Sorts |records| by time.
  void Add(std::vector<TraceRecord>* records);
  void SetNow(uint64_t now_ns);
  void SetLost(uint64_t lost) { lost_ = lost; }
  void SetMeta(TraceMeta meta);  // regions and layers stay as they were

  const TraceMeta& meta() const { return meta_; }
  const MemoryState& state() const { return state_; }
  // Over the last two whole seconds.
  LiveSums Recent() const;
  static constexpr double recent_s() { return kRateBuckets * 0.5; }
  // The last |n| whole half seconds, the oldest first.
  std::vector<LiveSums> History(size_t n) const;
  uint64_t records() const { return records_; }
  uint64_t lost() const { return lost_; }
  double seconds() const { return static_cast<double>(now_ns_ - first_ns_) * 1e-9; }
  bool told() const { return told_; }  // the process has told its state

  const TraceRecord& last_decision() const { return decision_; }
  const TraceRecord& worst_fault() const { return worst_; }  // of the last minute
  const TraceRecord& last_plan() const { return plan_; }
  uint64_t pressure() const { return pressure_; }
  uint64_t now_ns() const { return now_ns_; }

 private:
  void Count(const TraceRecord& r);
  LiveSums* Bucket(uint64_t time_ns);
  void Advance(uint64_t bucket);

  TraceMeta meta_;
  MemoryState state_;
  std::array<LiveSums, kBuckets> buckets_;  // bucket n is at n % kBuckets
  uint64_t newest_ = 0;                     // its number: time / kBucketNs
  uint64_t now_ns_ = 0, first_ns_ = 0, records_ = 0, lost_ = 0, pressure_ = 0;
  bool told_ = false;
  OpenSteps open_steps_;
  TraceRecord decision_, worst_, plan_;
};

}  // namespace weir::trace_tool
