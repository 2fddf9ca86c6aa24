// What the trace tells of copies and gates that ran on a device: they are told of when their step
// has ended, at their own times, in the same records as on a host (vmm/trace_format.h).
//
// The times of gates come from the kernels' clock, those of copies from stamps on the copy stream:
// two readings of one device, each within an error of the host's clock. What is known to have been
// before something else is told as such: a copy began after it was queued and after the gate of the
// chunk that it overwrites was passed, and ended before its own gate was, and that was before the
// host knew. A reading is moved by no more than the two errors for that; what contradicts beyond
// them stays as it was read, for `weir-trace check` to find.
#include <algorithm>

#include "pager/weight_pager_impl.h"
#include "vmm/trace.h"

namespace weir {
namespace {

TimeNs NotBefore(TimeNs time, TimeNs bound, uint64_t error_ns) {
  return time < bound && bound - time <= error_ns ? bound : time;
}
TimeNs NotAfter(TimeNs time, TimeNs bound, uint64_t error_ns) {
  return time > bound && time - bound <= error_ns ? bound : time;
}

}  // namespace

// Queueing them failed before, or their stream did: they are copied anew.
void WeightPager::Impl::ForgetStampsFrom(uint64_t number) {
  while (!stamped.empty() && stamped.back().number >= number) {
    DropStamps(stamped.back());
    stamped.pop_back();
  }
}

void WeightPager::Impl::NoteNoCopy(uint64_t number) {
  if (!TraceEnabled(TraceType::kFaultMajor)) return;
  ForgetStampsFrom(number);
  stamped.push_back({.number = number});
}

Status WeightPager::Impl::StampBegin(const StripeChunk& chunk, uint64_t index, uint64_t number,
                                     uint64_t after) {
  ForgetStampsFrom(number);
  StampedCopy copy{.number = number,
                   .index = index,
                   .chunk = chunk,
                   .queued_ns = driver.Now(),
                   .after = after - 1};
  copy.begin = WEIR_TRY(driver.Stamp(copy_stream));
  stamped.push_back(copy);
  return OkStatus();
}

Status WeightPager::Impl::StampEnd() {
  stamped.back().end = WEIR_TRY(driver.Stamp(copy_stream));
  return OkStatus();
}

void WeightPager::Impl::DropStamps(StampedCopy& copy) {
  for (StampId* stamp : {&copy.begin, &copy.end}) {
    if (stamp->valid()) driver.DropStamp(*stamp);
    *stamp = StampId();
  }
}

// Nothing when the copy has not ended, or never will.
std::optional<CopySpan> WeightPager::Impl::TakeSpan(StampedCopy& copy, TimeNs known_end_ns,
                                                    uint64_t error_ns) {
  if (!copy.end.valid()) return std::nullopt;
  const Result<TimeNs> end = driver.TakeStamp(copy.end);
  if (end.status().code() == StatusCode::kShouldWait) return std::nullopt;
  copy.end = StampId();
  const Result<TimeNs> begin = driver.TakeStamp(copy.begin);
  copy.begin = StampId();
  if (!begin.ok() || !end.ok()) return std::nullopt;
  error_ns += driver.stamp_error_ns();
  TimeNs earliest = copy.queued_ns;
  if (copy.chunk.previous_user < gates_passed.size()) {
    const GatePassed& before = gates_passed[copy.chunk.previous_user];
    if (before.number == copy.after) earliest = std::max(earliest, before.time_ns);
  }
  CopySpan span{NotBefore(*begin, earliest, error_ns), NotAfter(*end, known_end_ns, error_ns)};
  span.end_ns = NotBefore(span.end_ns, earliest + 1, error_ns);
  span.begin_ns = NotAfter(span.begin_ns, span.end_ns, 2 * error_ns);  // each may be off
  return span;
}

void WeightPager::Impl::TraceCopy(const StampedCopy& copy, CopySpan span) {
  const uint64_t bytes = copy.chunk.count * granule_bytes;
  JudgeCopy(bytes, span);
  copy_lane.Emit(span.end_ns, TraceType::kCopy, static_cast<uint8_t>(backing->tier()), copy.index,
                 weights.value, copy.chunk.first.value, bytes, span.begin_ns, span.end_ns);
}

void WeightPager::Impl::TraceDeviceStep(const DeviceGateLog& log, uint64_t step_number) {
  const Pass& pass = passes.front();
  const EvictionPlan& plan = *pass.plan;
  const uint64_t base = pass.base;
  const TimeNs now = driver.Now();
  const size_t n = plan.chunks().size();
  size_t reached = log.failed_gate < 0
                       ? n
                       : static_cast<size_t>(std::max(
                             0, plan.chunk_of_gate()[static_cast<size_t>(log.failed_gate)]));
  // Behind a gate that was let go there is no stripe: a void step runs on, and passes nothing.
  if (pass.let_go) reached = std::min<size_t>(reached, pass.advanced);
  gates_passed.resize(n);
  // Copies that end after the arrival looked at, in the order in which they ran.
  std::deque<CopySpan> ahead;
  for (size_t i = 0; i < n; ++i) {
    const uint64_t number = base + i;
    const uint32_t gate = plan.chunks()[i].gate;
    const bool passed = i < reached;
    DeviceGateTimes at = log.times.empty() ? DeviceGateTimes{} : log.times[gate];
    const uint64_t waited = at.pass_ns - at.arrive_ns;
    at.arrive_ns = NotAfter(at.arrive_ns, now, log.clock_error_ns);
    at.pass_ns = NotAfter(at.pass_ns, now, log.clock_error_ns);
    const TimeNs known_end = passed && at.pass_ns != 0 ? at.pass_ns : now;
    bool known = false;
    while (!stamped.empty() && stamped.front().number <= number) {
      StampedCopy& copy = stamped.front();
      if (copy.chunk.count == 0) {
        known = copy.number == number;
        stamped.pop_front();
        continue;
      }
      const std::optional<CopySpan> span = TakeSpan(copy, known_end, log.clock_error_ns);
      if (!span && !passed) break;  // it may still come; the stream's rest will show
      if (span) {
        TraceCopy(copy, *span);
        ahead.push_back(*span);
        known = copy.number == number;
        if (at.pass_ns != 0)
          at.pass_ns = NotBefore(at.pass_ns, span->end_ns, 2 * log.clock_error_ns);
      } else {
        DropStamps(copy);
      }
      stamped.pop_front();
    }
    if (at.arrive_ns == 0) continue;
    // Behind the gate that failed nobody waits, and nobody passes.
    if (i > reached && waited == 0) continue;
    gate_lane.Emit(at.arrive_ns, TraceType::kGateArrive, 0, gate, step_number, i);
    while (!ahead.empty() && ahead.front().end_ns <= at.arrive_ns) ahead.pop_front();
    if (waited > 0) {
      FaultCause cause = FaultCause::kUnknown;
      const TimeNs late = progress.late_end_ns.load(std::memory_order_relaxed);
      if (!passed || (late != 0 && late >= at.arrive_ns)) {
        cause = FaultCause::kLateCopy;
      } else if (known) {
        const bool copying = !ahead.empty() && ahead.front().begin_ns <= at.arrive_ns;
        cause = first_round ? FaultCause::kNewPlan
                : copying   ? FaultCause::kStillCopying
                            : FaultCause::kNotStarted;
      }
      gate_lane.Emit(at.pass_ns, TraceType::kFaultMajor, static_cast<uint8_t>(cause), gate,
                     step_number, i, waited);
    }
    if (passed) {
      gates_passed[i] = {number, at.pass_ns};
      gate_lane.Emit(at.pass_ns, TraceType::kGatePass, 0, gate, step_number, i, waited);
    }
  }
}

void WeightPager::Impl::TraceCopiesAtRest() {
  for (StampedCopy& copy : stamped) {
    const std::optional<CopySpan> span = TakeSpan(copy, driver.Now(), driver.stamp_error_ns());
    if (span) TraceCopy(copy, *span);
    DropStamps(copy);
  }
  stamped.clear();
  gates_passed.clear();
}

}  // namespace weir
