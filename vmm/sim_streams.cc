// SimDriver's streams: a discrete-event loop. Order at equal times: by stream id, so that a run is
// a function of its calls.
#include <algorithm>
#include <limits>

#include "vmm/event_number.h"
#include "vmm/sim_driver.h"

namespace weir {
namespace {

constexpr TimeNs kForever = std::numeric_limits<TimeNs>::max();

TimeNs Duration(uint64_t bytes, double bytes_per_s) {
  return static_cast<TimeNs>(static_cast<double>(bytes) / bytes_per_s * 1e9);
}

}  // namespace

// --- Submission
// ------------------------------------------------------------------------------------

Status SimDriver::CheckStream(StreamId stream) const {
  if (stream.value < streams_.size() && streams_[stream.value].alive) return OkStatus();
  return InvalidArgument("there is no stream " + std::to_string(stream.value));
}

Status SimDriver::CheckEvent(EventId event) const {
  const uint64_t stream = StreamIndexOf(event);
  if (event.valid() && stream < streams_.size() && NumberOf(event) <= streams_[stream].submitted) {
    return OkStatus();
  }
  return InvalidArgument("there is no event " + std::to_string(event.value));
}

Result<StreamId> SimDriver::CreateStream(std::string_view name) {
  if (in_loop_) return BadState("a host function may only use counters");
  streams_.emplace_back();
  streams_.back().name = std::string(name.substr(0, 15));
  return StreamId(static_cast<uint32_t>(streams_.size() - 1));
}

Status SimDriver::Submit(StreamId stream, Op op) {
  WEIR_TRY(CheckStream(stream));
  if (in_loop_) return BadState("a host function may only use counters");
  Stream& s = streams_[stream.value];
  s.queue.push_back(std::move(op));
  ++s.submitted;
  return OkStatus();
}

Status SimDriver::Copy(StreamId stream, VirtAddr dst, VirtAddr src, uint64_t bytes) {
  WEIR_TRY(CheckStream(stream));
  WEIR_TRY(table_.CheckAccess(dst, bytes, Access::kReadWrite));
  WEIR_TRY(table_.CheckAccess(src, bytes, Access::kRead));
  WEIR_TRY(faults_.OnCall(SimCall::kCopy));
  return Submit(stream, CopyOp{dst, src, bytes, faults_.OnCopy()});
}

Status SimDriver::Fill(StreamId stream, VirtAddr dst, std::byte value, uint64_t bytes) {
  WEIR_TRY(CheckStream(stream));
  WEIR_TRY(table_.CheckAccess(dst, bytes, Access::kReadWrite));
  WEIR_TRY(faults_.OnCall(SimCall::kFill));
  return Submit(stream, FillOp{dst, value, bytes});
}

Status SimDriver::HostFunction(StreamId stream, std::function<Status()> fn) {
  if (!fn) return InvalidArgument("an empty host function");
  return Submit(stream, HostFunctionOp{std::move(fn)});
}

Status SimDriver::Compute(StreamId stream, TimeNs duration_ns, std::vector<SimTouch> touches,
                          std::function<Status()> fn) {
  return Submit(stream, ComputeOp{duration_ns, std::move(touches), std::move(fn)});
}

Status SimDriver::StreamWait(StreamId stream, EventId event) {
  WEIR_TRY(CheckEvent(event));
  return Submit(stream, StreamWaitOp{event});
}

Status SimDriver::WriteCounter(StreamId stream, VirtAddr counter, uint64_t value) {
  WEIR_TRY(WordIndex(counter));
  return Submit(stream, WriteCounterOp{counter, value});
}

Status SimDriver::WaitCounter(StreamId stream, VirtAddr counter, uint64_t at_least) {
  WEIR_TRY(WordIndex(counter));
  return Submit(stream, WaitCounterOp{counter, at_least});
}

Result<EventId> SimDriver::Record(StreamId stream) {
  WEIR_TRY(CheckStream(stream));
  return MakeEvent(stream, streams_[stream.value].submitted);
}

Result<StampId> SimDriver::Stamp(StreamId stream) {
  const StampId stamp(next_stamp_);
  WEIR_TRY(Submit(stream, StampOp{stamp}));
  ++next_stamp_;
  stamps_[stamp].event = MakeEvent(stream, streams_[stream.value].submitted);
  return stamp;
}

Result<TimeNs> SimDriver::TakeStamp(StampId stamp) {
  const auto it = stamps_.find(stamp);
  if (it == stamps_.end()) return InvalidArgument("no stamp " + std::to_string(stamp.value));
  const Result<bool> reached = EventState(it->second.event);
  if (reached.ok() && !*reached) return ShouldWait("the stream has not come to the stamp");
  const TimeNs time = it->second.time;
  stamps_.erase(it);
  if (!reached.ok()) return reached.status();
  return time;
}

// --- Completion
// ------------------------------------------------------------------------------------

Result<bool> SimDriver::EventState(EventId event) const {
  const Stream& s = streams_[StreamIndexOf(event)];
  if (s.completed < NumberOf(event)) return false;
  if (!s.error.ok() && s.error_number <= NumberOf(event)) return s.error;
  return true;
}

Result<bool> SimDriver::IsComplete(EventId event) {
  WEIR_TRY(CheckEvent(event));
  return EventState(event);
}

Status SimDriver::Wait(EventId event) {
  WEIR_TRY(CheckEvent(event));
  if (in_loop_) return BadState("a host function may only use counters");
  for (;;) {
    const Result<bool> state = EventState(event);
    if (!state.ok()) return state.status();
    if (*state) return OkStatus();
    if (!Step(kForever)) return DriverError("deadlock: nothing can run; " + WhoWaits());
  }
}

Status SimDriver::WaitFor(EventId event, uint64_t timeout_ns) {
  WEIR_TRY(CheckEvent(event));
  if (in_loop_) return BadState("a host function may only use counters");
  const TimeNs limit = timeout_ns > kForever - now_ ? kForever : now_ + timeout_ns;
  for (;;) {
    const Result<bool> state = EventState(event);
    if (!state.ok()) return state.status();
    if (*state) return OkStatus();
    if (!Step(limit)) {
      TimeOut(limit);
      return ShouldWait("nothing completes the event within " + std::to_string(timeout_ns) +
                        " ns; " + WhoWaits());
    }
  }
}

Status SimDriver::HostWaitCounter(VirtAddr counter, uint64_t at_least, uint64_t timeout_ns) {
  const size_t index = WEIR_TRY(CounterIndex(counter));
  const TimeNs limit = timeout_ns > kForever - now_ ? kForever : now_ + timeout_ns;
  while (counters_[index].value < at_least) {
    if (in_loop_ || !Step(limit)) {
      TimeOut(limit);
      return ShouldWait("counter is at " + std::to_string(counters_[index].value) +
                        ", nothing raises it to " + std::to_string(at_least) + " within " +
                        std::to_string(timeout_ns) + " ns; " + WhoWaits());
    }
  }
  return OkStatus();
}

Status SimDriver::DestroyStream(StreamId stream) {
  WEIR_TRY(CheckStream(stream));
  if (in_loop_) return BadState("a host function may only use counters");
  Stream& s = streams_[stream.value];
  while (!s.queue.empty()) {
    if (Step(kForever)) continue;
    // Blocked for ever: the wait is cancelled, what follows has no effect.
    if (s.error.ok()) {
      s.error = Cancelled("stream " + s.name + ": destroyed while it waits");
      s.error_number = s.completed + 1;
    }
  }
  s.alive = false;
  return OkStatus();
}

// Whoever waits in vain waits to the end, unless there is nothing to wait for.
void SimDriver::TimeOut(TimeNs limit) {
  const auto running = [](const Stream& s) { return s.running; };
  if (!in_loop_ && std::any_of(streams_.begin(), streams_.end(), running)) AdvanceTo(limit);
}

void SimDriver::AdvanceTo(TimeNs time) {
  if (in_loop_ || time <= now_) return;
  while (Step(time)) {
  }
  now_ = time;
}

// --- The loop
// --------------------------------------------------------------------------------------

bool SimDriver::IsReady(const Op& op) const {
  if (const auto* wait = std::get_if<WaitCounterOp>(&op)) {
    const Result<size_t> index = WordIndex(wait->counter);
    return index.ok() && counters_[*index].value >= wait->at_least;
  }
  if (const auto* wait = std::get_if<StreamWaitOp>(&op)) {
    const Result<bool> state = EventState(wait->event);
    return !state.ok() || *state;
  }
  return true;
}

// Starts whatever can start now, then completes the operation that ends first.
bool SimDriver::Step(TimeNs limit) {
  Stream* first = nullptr;
  for (Stream& s : streams_) {
    if (s.queue.empty()) continue;
    if (!s.running) {
      if (s.error.ok() && !IsReady(s.queue.front())) continue;
      Start(s);
    }
    if (first == nullptr || s.end < first->end) first = &s;
  }
  if (first == nullptr || first->end > limit) return false;
  now_ = std::max(now_, first->end);
  Finish(*first);
  return true;
}

void SimDriver::Start(Stream& s) {
  s.running = true;
  s.end = now_;
  if (!s.error.ok()) return;
  const Op& op = s.queue.front();
  if (const auto* copy = std::get_if<CopyOp>(&op)) {
    s.end = CopyEnd(*copy);
  } else if (const auto* fill = std::get_if<FillOp>(&op)) {
    s.end = now_ + options_.copy_latency_ns + Duration(fill->bytes, options_.hbm_bytes_per_s);
  } else if (const auto* compute = std::get_if<ComputeOp>(&op)) {
    s.end = now_ + compute->duration;
    for (const SimTouch& t : compute->touches) {
      Status reachable = CheckRunning(t.at, t.bytes, t.access, "compute");
      if (reachable.ok()) continue;
      s.error = std::move(reachable);
      s.error_number = s.completed + 1;
      s.end = now_;
      break;
    }
  }
}

Tier SimDriver::TierAt(VirtAddr at) const {
  VirtAddr begin = 0;
  const MappingTable::Mapping* m = table_.Covering(at, &begin);
  return m == nullptr ? Tier::kHbm : table_.Find(m->alloc)->tier;
}

// Copies between tiers hold their direction of the link one after the other; those within HBM share
// nothing (their rate is far above the link's).
TimeNs SimDriver::CopyEnd(const CopyOp& op) {
  const TimeNs late = op.fault == SimCopyFault::kLate ? faults_.late_ns : TimeNs{0};
  const Tier from = TierAt(op.src);
  const Tier to = TierAt(op.dst);
  if (from == to) {
    return now_ + options_.copy_latency_ns + late +
           Duration(2 * op.bytes, options_.hbm_bytes_per_s);
  }
  const bool in = to == Tier::kHbm;
  const Tier far = in ? from : to;
  const Link& link = far == Tier::kPeer ? options_.peer_link : options_.host_link;
  const double rate = (in ? link.in_bytes_per_s : link.out_bytes_per_s) / faults_.link_slowdown;
  TimeNs& free_at = link_free_at_[static_cast<size_t>(far)][in ? 0 : 1];
  free_at = std::max(free_at, now_) + Duration(op.bytes, rate);
  return free_at + options_.copy_latency_ns + late;
}

void SimDriver::Finish(Stream& s) {
  Op op = std::move(s.queue.front());
  Status outcome;
  if (s.error.ok()) {
    in_loop_ = true;
    outcome = Effect(op);
    in_loop_ = false;
  }
  s.queue.pop_front();
  s.running = false;
  ++s.completed;
  if (!outcome.ok()) {
    s.error = outcome.WithContext("stream " + s.name);
    s.error_number = s.completed;
  }
}

Status SimDriver::CheckRunning(VirtAddr at, uint64_t bytes, Access access, const char* what) {
  const Status s = table_.CheckAccess(at, bytes, access);
  if (s.ok()) return s;
  Violation("M3: " + std::string(what) + ": " + s.message());
  return DriverError(std::string(what) + ": " + s.message());
}

Status SimDriver::CopyBytes(const CopyOp& op) {
  WEIR_TRY(CheckRunning(op.src, op.bytes, Access::kRead, "copy"));
  WEIR_TRY(CheckRunning(op.dst, op.bytes, Access::kReadWrite, "copy"));
  if (op.fault == SimCopyFault::kFail) return DriverError("injected: a copy fails");
  if (op.fault == SimCopyFault::kLost) return OkStatus();
  // Piece by piece as both sides' mappings go; only what the destination keeps is moved.
  std::vector<std::byte> bytes;
  for (uint64_t done = 0; done < op.bytes;) {
    uint64_t n = op.bytes - done;
    const uint64_t kept = KeptAt(op.dst + done, &n);
    (void)KeptAt(op.src + done, &n);
    bytes.resize(std::min(kept, n));
    Load(op.src + done, bytes);
    Store(op.dst + done, bytes);
    done += n;
  }
  return OkStatus();
}

uint64_t SimDriver::KeptAt(VirtAddr at, uint64_t* piece) const {
  VirtAddr begin = 0;
  const MappingTable::Mapping* m = table_.Covering(at, &begin);
  WEIR_CHECK(m != nullptr, "a checked range is mapped");
  const uint64_t offset = at - begin;
  const uint64_t keep =
      options_.content_bytes == 0 ? m->bytes : std::min(options_.content_bytes, m->bytes);
  *piece = std::min(*piece, m->bytes - offset);
  return keep > offset ? keep - offset : 0;
}

Status SimDriver::Effect(Op& op) {
  if (const auto* copy = std::get_if<CopyOp>(&op)) return CopyBytes(*copy);
  if (const auto* fill = std::get_if<FillOp>(&op)) {
    WEIR_TRY(CheckRunning(fill->dst, fill->bytes, Access::kReadWrite, "fill"));
    std::vector<std::byte> bytes;
    for (uint64_t done = 0; done < fill->bytes;) {
      uint64_t n = fill->bytes - done;
      const uint64_t kept = KeptAt(fill->dst + done, &n);
      bytes.assign(std::min(kept, n), fill->value);
      Store(fill->dst + done, bytes);
      done += n;
    }
    return OkStatus();
  }
  if (auto* function = std::get_if<HostFunctionOp>(&op)) return function->fn();
  if (const auto* wait = std::get_if<StreamWaitOp>(&op)) return EventState(wait->event).status();
  if (const auto* write = std::get_if<WriteCounterOp>(&op)) {
    counters_[WEIR_TRY(WordIndex(write->counter))].value = write->value;
    return OkStatus();
  }
  if (const auto* stamp = std::get_if<StampOp>(&op)) {
    const auto it = stamps_.find(stamp->stamp);
    if (it != stamps_.end()) it->second.time = now_;
    return OkStatus();
  }
  if (auto* compute = std::get_if<ComputeOp>(&op)) {
    for (const SimTouch& t : compute->touches) {
      WEIR_TRY(CheckRunning(t.at, t.bytes, t.access, "compute"));
    }
    return compute->fn ? compute->fn() : OkStatus();
  }
  return OkStatus();
}

std::string SimDriver::WhoWaits() const {
  std::string out = "waiting:";
  bool any = false;
  for (const Stream& s : streams_) {
    if (s.queue.empty()) continue;
    any = true;
    out += " stream " + s.name;
    if (const auto* wait = std::get_if<WaitCounterOp>(&s.queue.front())) {
      out += " for counter " + HexAddress(wait->counter) + " >= " + std::to_string(wait->at_least);
    } else if (const auto* event = std::get_if<StreamWaitOp>(&s.queue.front())) {
      out += " for stream " + streams_[StreamIndexOf(event->event)].name;
    }
    out += ";";
  }
  return any ? out : "no stream has work";
}

}  // namespace weir
