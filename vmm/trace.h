// Tracer: typed events from any thread, drained by one other thread or process.
//
// Represents one ring of records per emitting thread (single producer, single consumer), in memory
// that a recorder outside may map (trace_segment.h). A full ring drops the new record and counts
// it; the next record that fits is preceded by a kDrop record, so that losses are exact and in
// place. Emit takes no lock and allocates nothing, except that a thread's first event takes a ring
// (RegisterThread does it ahead of time), which goes back when the thread ends.
// An event that nobody subscribed to costs one relaxed load and a branch.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/mutex.h"
#include "vmm/trace_format.h"
#include "vmm/trace_segment.h"
#include "vmm/types.h"

namespace weir {

// A ring that somebody writes to.
struct TraceRingUse {
  uint64_t generation = 0;    // of the tracer it was taken from; 0: none
  TraceRing* ring = nullptr;  // null: every ring was taken, or the thread is ending
  TraceRecord* records = nullptr;
  uint32_t number = 0;
};

class Tracer {
 public:
  // Clock of the records; nullptr: the system's monotonic clock.
  using Clock = std::function<TimeNs()>;
  struct Options {
    uint32_t ring_records = 1U << 14;  // per thread, a power of two, at least 4
    uint64_t mask = ~uint64_t{0};      // bit per TraceType; 0: a recorder outside will say
    Clock clock;
    std::shared_ptr<TraceSegment> segment;  // null: a private one of |ring_records|
  };
  static constexpr uint64_t MaskOf(TraceType type) {
    return uint64_t{1} << static_cast<unsigned>(type);
  }

  explicit Tracer(const Options& options);
  ~Tracer();  // no thread may be emitting; uninstalls itself
  Tracer(const Tracer&) = delete;
  Tracer& operator=(const Tracer&) = delete;

  // Gives the calling thread its ring now rather than at its first event.
  void RegisterThread();
  void Emit(TraceType type, uint8_t cause, const std::array<uint64_t, 6>& args);
  // For lanes (trace_lane.h): a ring of their own, which they give back to the segment, and a
  // record in it at a time of theirs.
  TraceRingUse TakeRing();
  void EmitTo(const TraceRingUse& use, TimeNs time_ns, TraceType type, uint8_t cause,
              const std::array<uint64_t, 6>& args);
  uint64_t generation() const { return generation_; }
  const std::shared_ptr<TraceSegment>& segment() const { return segment_; }
  void set_mask(uint64_t mask);
  uint64_t mask() const { return mask_.load(std::memory_order_relaxed); }
  TimeNs Now() const;  // the records' clock

  // Hands every record emitted so far to |sink|, ring by ring; returns how many. One drainer at a
  // time (checked); |sink| may emit, but must not drain.
  uint64_t Drain(const std::function<void(const TraceRecord&)>& sink);
  // Whether a ring is at least half full, so that draining should not wait.
  bool HalfFull() const;
  // Records lost so far, over all threads; of this session, if a recorder began one.
  uint64_t dropped() const;

  // --- Recorders outside (the lease and its protocol: trace_format.h) ----------------------------
  // To be called between steps by the thread that owns the memory system: takes over the
  // subscription. True when a recording has begun: the caller tells the state of things.
  bool FollowRecorder() WEIR_EXCLUDES(mutex_);
  // To be called every 100 ms or so, from any thread: ends the subscription of a recorder that is
  // done, and takes the lease back from one whose heartbeat |now_ns| (CLOCK_MONOTONIC) finds too
  // old.
  void ExpireRecorder(TimeNs now_ns) WEIR_EXCLUDES(mutex_);
  // For a recorder inside: takes the lease if it is free, and keeps it alive. False: it is taken.
  bool TakeLease(TimeNs now_ns) WEIR_EXCLUDES(mutex_);
  void KeepLease(TimeNs now_ns);
  void ReleaseLease();

  // --- Metadata
  // ------------------------------------------------------------------------------------ |json|: an
  // object, without "reasons", which the tracer adds. kNoMemory: recorders outside cannot see it,
  // it is too long.
  Status SetMetadata(std::string json) WEIR_EXCLUDES(mutex_);
  std::string metadata() const WEIR_EXCLUDES(mutex_);
  uint64_t metadata_version() const { return metadata_version_.load(std::memory_order_acquire); }
  // The number of |reason| in the table, which grows up to a limit; digits do not tell reasons
  // apart.
  uint32_t ReasonIndex(std::string_view reason) WEIR_EXCLUDES(mutex_);

 private:
  const TraceRingUse& ThreadRing();
  std::string WholeMetadata() const WEIR_REQUIRES(mutex_);
  Status Publish() WEIR_REQUIRES(mutex_);

  Options options_;
  const uint64_t generation_;  // tells this tracer from an earlier one at the same address
  const std::shared_ptr<TraceSegment> segment_;
  TraceSegmentHeader& header_;
  std::atomic<uint64_t> mask_;
  std::atomic<bool> draining_{false};
  uint32_t session_ = 0;  // last seen by FollowRecorder
  std::atomic<uint64_t> own_lease_{0};
  std::atomic<uint64_t> metadata_version_{0};
  mutable Mutex mutex_{LockRank::kTrace};
  std::string metadata_ WEIR_GUARDED_BY(mutex_) = "{}";
  std::vector<std::string> reasons_ WEIR_GUARDED_BY(mutex_);
  std::map<std::string, uint32_t, std::less<>> reason_index_ WEIR_GUARDED_BY(mutex_);
};

// The system's monotonic clock, which heartbeats and records without a clock of their own use.
TimeNs TraceMonotonicNs();

// Installs the process-wide tracer (nullptr: none). Call while no other thread emits.
void SetTracer(Tracer* tracer);
Tracer* GetTracer();

namespace trace_internal {
inline std::atomic<uint64_t> active_mask{0};  // mask of the installed tracer, 0 without one
}

// Whether anybody wants |type|; guards argument computation that costs something.
inline bool TraceEnabled(TraceType type) {
  return (trace_internal::active_mask.load(std::memory_order_relaxed) & Tracer::MaskOf(type)) != 0;
}
template <typename... Args>
inline void TraceEmit(TraceType type, uint8_t cause, Args... args) {
  static_assert(sizeof...(args) <= 6, "a record has six arguments");
  if (!TraceEnabled(type)) [[likely]]
    return;
  if (Tracer* tracer = GetTracer()) {
    tracer->Emit(type, cause, std::array<uint64_t, 6>{static_cast<uint64_t>(args)...});
  }
}

}  // namespace weir
