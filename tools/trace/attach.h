// Attaching to a running weir process: its trace segment, and the lease on its rings. The protocol
// is in vmm/trace_format.h, "The segment".
//
// What the process writes is not trusted: what is fixed is copied and checked once. Errors are
// TraceErrors that name the process and what is wrong with it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/trace/error.h"
#include "vmm/trace_format.h"

namespace weir::trace_tool {

// CLOCK_MONOTONIC, as the records' and the heartbeat's clock.
uint64_t MonotonicNs();

// Represents the mapped segment of a process. It stays readable when the process has died.
class TraceSegmentView {
 public:
  // Throws when there is no such process, it is another user's, it is no weir process that may be
  // attached to, or its segment is of another version.
  explicit TraceSegmentView(int pid);
  ~TraceSegmentView();
  TraceSegmentView(const TraceSegmentView&) = delete;
  TraceSegmentView& operator=(const TraceSegmentView&) = delete;

  // The process is there and has not closed its tracing.
  bool alive();
  std::string Metadata();

  TraceSegmentHeader& header() { return *reinterpret_cast<TraceSegmentHeader*>(base_); }
  TraceRing& ring(uint32_t i) { return reinterpret_cast<TraceRing*>(base_ + rings_)[i]; }
  const TraceRecord* records(uint32_t i) const {
    return reinterpret_cast<const TraceRecord*>(base_ + records_) + uint64_t{i} * capacity_;
  }
  uint32_t rings();
  uint64_t capacity() const { return capacity_; }  // records of a ring
  int pid() const { return pid_; }

 private:
  void Check(const std::string& who);

  const int pid_;
  uint64_t started_ = 0;  // tells the process from a later one of the same number
  char* base_ = nullptr;
  uint64_t bytes_ = 0, capacity_ = 0, rings_ = 0, records_ = 0, meta_ = 0, meta_capacity_ = 0;
  uint32_t count_ = 0;
};

// Represents the lease on a process's rings; given back when it is destroyed.
class RingLease {
 public:
  // Waits for a lease that is about to run out; throws when somebody else is recording.
  RingLease(TraceSegmentView& segment, uint64_t mask);
  ~RingLease();
  RingLease(const RingLease&) = delete;
  RingLease& operator=(const RingLease&) = delete;

  // Appends what the rings hold, ring by ring. False: the process has taken the lease back. To be
  // called at least every kTraceLeaseNs / 4.
  bool Drain(std::vector<TraceRecord>* out);
  // Records lost since the lease was taken.
  uint64_t Lost();
  // Asks for no more, and waits a moment until the process has noticed. What is left can be
  // drained.
  void Stop();

 private:
  TraceSegmentView& s_;
  TraceSegmentHeader& h_;
  uint64_t mine_ = 0, lost_without_ring_ = 0;
  uint32_t session_ = 0;
};

}  // namespace weir::trace_tool
