#include "vmm/trace_lane.h"

#include <algorithm>

namespace weir {

TraceLane::~TraceLane() {
  Release();
}

void TraceLane::Release() {
  if (use_.ring != nullptr) segment_->GiveBackRing(use_.number);
  use_ = {};
  segment_.reset();
}

void TraceLane::EmitAt(TimeNs time_ns, TraceType type, uint8_t cause,
                       const std::array<uint64_t, 6>& args) {
  Tracer* const tracer = GetTracer();
  if (tracer == nullptr) return;
  if (use_.generation != tracer->generation()) {
    Release();
    segment_ = tracer->segment();
    use_ = tracer->TakeRing();
    last_ns_ = 0;
  }
  last_ns_ = std::max(last_ns_, time_ns);
  tracer->EmitTo(use_, last_ns_, type, cause, args);
}

}  // namespace weir
