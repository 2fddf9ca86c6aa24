// TraceLane: records about something that has its own course and is told of later, at its own
// times: a GPU's gates, the copies on its streams.
//
// Represents one ring of the installed tracer, beside that of the thread that tells; in the trace
// it looks like a thread. One thread at a time. Times must not go back; one that does is told as
// the one before it.
#pragma once

#include <array>
#include <memory>

#include "vmm/trace.h"

namespace weir {

class TraceLane {
 public:
  TraceLane() = default;
  ~TraceLane();
  TraceLane(const TraceLane&) = delete;
  TraceLane& operator=(const TraceLane&) = delete;

  template <typename... Args>
  void Emit(TimeNs time_ns, TraceType type, uint8_t cause, Args... args) {
    static_assert(sizeof...(args) <= 6, "a record has six arguments");
    if (!TraceEnabled(type)) [[likely]]
      return;
    EmitAt(time_ns, type, cause, std::array<uint64_t, 6>{static_cast<uint64_t>(args)...});
  }

 private:
  void EmitAt(TimeNs time_ns, TraceType type, uint8_t cause, const std::array<uint64_t, 6>& args);
  void Release();

  TraceRingUse use_;
  std::shared_ptr<TraceSegment> segment_;  // whose ring it is
  TimeNs last_ns_ = 0;
};

}  // namespace weir
