// Tracer: typed events from any thread, drained by one other thread.
//
// Represents one ring of records per emitting thread (single producer, single consumer). A full
// ring drops the new record and counts it; the next record that fits is preceded by a kDrop record,
// so that losses are exact and in place. Emit takes no lock and allocates nothing, except that a
// thread's first event registers its ring (RegisterThread does it ahead of time).
// An event that nobody subscribed to costs one relaxed load and a branch.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "vmm/mutex.h"
#include "vmm/trace_format.h"
#include "vmm/types.h"

namespace weir {

class Tracer {
 public:
  // Clock of the records; nullptr: the system's monotonic clock.
  using Clock = std::function<TimeNs()>;
  struct Options {
    uint32_t ring_records = 1U << 14;  // per thread, a power of two, at least 4
    uint64_t mask = ~uint64_t{0};      // bit per TraceType
    Clock clock;
  };
  static constexpr uint64_t MaskOf(TraceType type) {
    return uint64_t{1} << static_cast<unsigned>(type);
  }

  explicit Tracer(const Options& options);
  ~Tracer();  // no thread may be emitting; uninstalls itself
  Tracer(const Tracer&) = delete;
  Tracer& operator=(const Tracer&) = delete;

  // Gives the calling thread its ring now rather than at its first event.
  void RegisterThread() WEIR_EXCLUDES(mutex_);
  void Emit(TraceType type, uint8_t cause, const std::array<uint64_t, 6>& args)
      WEIR_EXCLUDES(mutex_);
  void set_mask(uint64_t mask);
  uint64_t mask() const { return mask_.load(std::memory_order_relaxed); }

  // Hands every record emitted so far to |sink|, ring by ring; returns how many. One drainer at a
  // time (checked); |sink| may emit, but must not drain.
  uint64_t Drain(const std::function<void(const TraceRecord&)>& sink) WEIR_EXCLUDES(mutex_);
  // Records lost so far, over all threads.
  uint64_t dropped() const WEIR_EXCLUDES(mutex_);

 private:
  struct Ring;
  Ring* ThreadRing() WEIR_EXCLUDES(mutex_);
  std::vector<Ring*> Rings() const WEIR_EXCLUDES(mutex_);

  Options options_;
  const uint64_t generation_;  // tells this tracer from an earlier one at the same address
  std::atomic<uint64_t> mask_;
  std::atomic<bool> draining_{false};
  mutable Mutex mutex_{LockRank::kTrace};
  std::vector<std::unique_ptr<Ring>> rings_ WEIR_GUARDED_BY(mutex_);
};

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
