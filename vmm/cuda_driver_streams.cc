// Streams, events, host functions, counters, errors.
#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "vmm/cuda_driver.h"
#include "vmm/cuda_driver_api.h"

namespace weir {
namespace {

// A stream's events are looked at from this many on, so that a caller who never asks does not make
// the table grow.
constexpr size_t kSweepAbove = 64;
constexpr uint64_t kYieldNs = 20'000;  // a counter is polled without sleeping for this long
constexpr uint64_t kLongestSleepNs = 100'000;

void StoreWord(VirtAddr word, uint64_t value) {
  std::atomic_ref(*reinterpret_cast<uint64_t*>(word)).store(value, std::memory_order_release);
}

}  // namespace

// Shared with the host functions in flight, which may outlive the stream's entry.
struct CudaDriver::StreamFaults {
  Mutex mutex{LockRank::kDriverStream};
  Status first WEIR_GUARDED_BY(mutex);
  uint64_t operation WEIR_GUARDED_BY(mutex) = 0;

  void Add(uint64_t at_operation, Status status) WEIR_EXCLUDES(mutex) {
    MutexLock lock(mutex);
    if (!first.ok()) return;
    first = std::move(status);
    operation = at_operation;
  }
  // The error of an operation before |at_operation|.
  Status Before(uint64_t at_operation) WEIR_EXCLUDES(mutex) {
    MutexLock lock(mutex);
    return !first.ok() && operation < at_operation ? first : OkStatus();
  }
};

// What CUDA hands to the callback. It owns itself from the launch on; if the context fails before
// the callback's turn, CUDA never calls it and it is left to the end of the process.
struct CudaDriver::HostCall {
  std::function<Status()> fn;
  std::shared_ptr<StreamFaults> faults;
  uint64_t operation = 0;

  static void CUDA_CB Run(void* user_data) {
    const std::unique_ptr<HostCall> call(static_cast<HostCall*>(user_data));
    if (!call->faults->Before(call->operation).ok()) return;
    Status status;
    try {
      status = call->fn();
    } catch (...) {  // must not unwind into the CUDA driver
      status = BadState("a host function threw an exception");
    }
    if (!status.ok()) call->faults->Add(call->operation, std::move(status));
  }
};

// --- Errors ------------------------------------------------------------------------------------

Status CudaDriver::sticky() const {
  MutexLock lock(sticky_mutex_);
  return sticky_;
}

Status CudaDriver::Check(const char* call, int result) {
  const auto code = static_cast<CUresult>(result);
  if (code == CUDA_SUCCESS) return OkStatus();
  if (!IsStickyCudaError(code)) return api_.ToStatus(call, code);
  MutexLock lock(sticky_mutex_);
  if (sticky_.ok()) sticky_ = DriverError("device lost: " + api_.Describe(call, code));
  has_sticky_.store(true, std::memory_order_release);
  return sticky_;
}

Status CudaDriver::Enter() {
  if (has_sticky_.load(std::memory_order_acquire)) return sticky();
  CUcontext current = nullptr;
  WEIR_TRY(Check("cuCtxGetCurrent", api_.cuCtxGetCurrent(&current)));
  if (current == context_) return OkStatus();
  return Check("cuCtxSetCurrent", api_.cuCtxSetCurrent(context_));
}

// --- Streams -----------------------------------------------------------------------------------

Result<CudaDriver::Stream*> CudaDriver::FindStream(StreamId stream) {
  if (stream.value >= streams_.size() || streams_[stream.value].handle == nullptr) {
    return InvalidArgument("no stream " + std::to_string(stream.value));
  }
  return &streams_[stream.value];
}

CUstream_st* CudaDriver::native_stream(StreamId stream) const {
  return stream.value < streams_.size() ? streams_[stream.value].handle : nullptr;
}

Result<StreamId> CudaDriver::CreateStream(std::string_view name) {
  WEIR_TRY(Enter());
  Stream stream;
  // Not ordered with the default stream, which other libraries in the process may use.
  WEIR_TRY(Check("cuStreamCreate", api_.cuStreamCreate(&stream.handle, CU_STREAM_NON_BLOCKING)));
  stream.name = name.substr(0, 15);
  stream.faults = std::make_shared<StreamFaults>();
  streams_.push_back(std::move(stream));
  return StreamId(static_cast<uint32_t>(streams_.size() - 1));
}

Status CudaDriver::DestroyStream(StreamId id) {
  WEIR_TRY(Enter());
  Stream* stream = WEIR_TRY(FindStream(id));
  WEIR_TRY(Check("cuStreamSynchronize", api_.cuStreamSynchronize(stream->handle)));
  if (!stream->pending.empty()) Settle(*stream, stream->pending.back());
  WEIR_TRY(Check("cuStreamDestroy", api_.cuStreamDestroy(stream->handle)));
  stream->handle = nullptr;
  return OkStatus();
}

void CudaDriver::DestroyStreams() {
  for (Stream& stream : streams_) {
    if (stream.handle != nullptr) (void)api_.cuStreamDestroy(stream.handle);
  }
  if (service_stream_ != nullptr) (void)api_.cuStreamDestroy(service_stream_);
  for (const auto& [id, event] : events_) (void)api_.cuEventDestroy(event.handle);
  for (CUevent handle : idle_events_) (void)api_.cuEventDestroy(handle);
  for (const auto& [id, handle] : stamps_.open) (void)api_.cuEventDestroy(handle);
  for (CUevent handle : stamps_.idle) (void)api_.cuEventDestroy(handle);
  if (stamps_.origin != nullptr) (void)api_.cuEventDestroy(stamps_.origin);
}

bool CudaDriver::HasFailed(const Stream& stream) {
  return stream.last_fallible != 0 && !stream.faults->Before(UINT64_MAX).ok();
}

Status CudaDriver::LaunchHostCall(Stream& stream, std::function<Status()> fn, HostCallKind kind) {
  auto call = std::make_unique<HostCall>();
  call->fn = std::move(fn);
  call->faults = stream.faults;
  call->operation = ++stream.operations;
  WEIR_TRY(
      Check("cuLaunchHostFunc", api_.cuLaunchHostFunc(stream.handle, &HostCall::Run, call.get())));
  (void)call.release();  // Run() frees it
  if (kind == HostCallKind::kFallible) stream.last_fallible = stream.operations;
  return OkStatus();
}

Status CudaDriver::HostFunction(StreamId id, std::function<Status()> fn) {
  WEIR_TRY(Enter());
  Stream* stream = WEIR_TRY(FindStream(id));
  if (!fn) return InvalidArgument("an empty host function");
  if (HasFailed(*stream)) return OkStatus();
  return LaunchHostCall(*stream, std::move(fn), HostCallKind::kFallible);
}

// --- Events ------------------------------------------------------------------------------------

Result<CUevent_st*> CudaDriver::TakeEventHandle() {
  CUevent handle = nullptr;
  if (!idle_events_.empty()) {
    handle = idle_events_.back();
    idle_events_.pop_back();
    return handle;
  }
  WEIR_TRY(Check("cuEventCreate", api_.cuEventCreate(&handle, CU_EVENT_DISABLE_TIMING)));
  return handle;
}

Result<EventId> CudaDriver::Record(StreamId id) {
  WEIR_TRY(Enter());
  Stream* stream = WEIR_TRY(FindStream(id));
  if (stream->pending.size() >= kSweepAbove) {
    const EventId middle = stream->pending[stream->pending.size() / 2];
    if (api_.cuEventQuery(events_.at(middle).handle) == CUDA_SUCCESS) Settle(*stream, middle);
  }
  CUevent handle = WEIR_TRY(TakeEventHandle());
  const Status recorded = Check("cuEventRecord", api_.cuEventRecord(handle, stream->handle));
  if (!recorded.ok()) {
    idle_events_.push_back(handle);
    return recorded;
  }
  const EventId event(next_event_++);
  events_.emplace(event, Event{handle, id, ++stream->operations});
  stream->pending.push_back(event);
  return event;
}

// A stream's events complete in order. A handle may be recorded again at once: its event is
// complete and a StreamWait made on it took the state it had then.
void CudaDriver::Settle(Stream& stream, EventId last) {
  while (!stream.pending.empty() && stream.pending.front() <= last) {
    const auto it = events_.find(stream.pending.front());
    Status fault = stream.faults->Before(it->second.operation);
    if (!fault.ok()) failed_.emplace(it->first, std::move(fault));
    stream.settled = it->second.operation;
    idle_events_.push_back(it->second.handle);
    events_.erase(it);
    stream.pending.pop_front();
  }
}

Status CudaDriver::OutcomeOf(EventId event) const {
  const auto failed = failed_.find(event);
  return failed == failed_.end() ? OkStatus() : failed->second;
}

Result<bool> CudaDriver::IsComplete(EventId event) {
  if (event.value >= next_event_) {
    return InvalidArgument("no event " + std::to_string(event.value));
  }
  const auto it = events_.find(event);
  if (it != events_.end()) {
    WEIR_TRY(Enter());
    const CUresult result = api_.cuEventQuery(it->second.handle);
    if (result == CUDA_ERROR_NOT_READY) return false;
    WEIR_TRY(Check("cuEventQuery", result));
    Settle(streams_[it->second.stream.value], event);
  }
  WEIR_TRY(OutcomeOf(event));
  return true;
}

Status CudaDriver::Wait(EventId event) {
  if (event.value >= next_event_) {
    return InvalidArgument("no event " + std::to_string(event.value));
  }
  const auto it = events_.find(event);
  if (it != events_.end()) {
    WEIR_TRY(Enter());
    WEIR_TRY(Check("cuEventSynchronize", api_.cuEventSynchronize(it->second.handle)));
    Settle(streams_[it->second.stream.value], event);
  }
  return OutcomeOf(event);
}

Status CudaDriver::StreamWait(StreamId id, EventId event) {
  WEIR_TRY(Enter());
  Stream* stream = WEIR_TRY(FindStream(id));
  if (event.value >= next_event_) {
    return InvalidArgument("no event " + std::to_string(event.value));
  }
  const auto it = events_.find(event);
  if (it == events_.end()) {  // complete
    Status outcome = OutcomeOf(event);
    if (outcome.ok()) return OkStatus();
    stream->last_fallible = ++stream->operations;
    stream->faults->Add(stream->operations, std::move(outcome));
    return OkStatus();
  }
  const Event& target = it->second;
  if (target.stream == id) return OkStatus();  // in order anyway
  WEIR_TRY(Check("cuStreamWaitEvent",
                 api_.cuStreamWaitEvent(stream->handle, target.handle, CU_EVENT_WAIT_DEFAULT)));
  const Stream& other = streams_[target.stream.value];
  if (other.last_fallible <= other.settled) return OkStatus();
  // Takes the other stream's failure over, which is known once its event has completed.
  return LaunchHostCall(
      *stream,
      [faults = other.faults, operation = target.operation] { return faults->Before(operation); },
      HostCallKind::kFallible);
}

// --- Counters ----------------------------------------------------------------------------------

Result<VirtAddr> CudaDriver::WordBlock::Take(std::string_view what) {
  const auto free = std::find(live.begin(), live.end(), false);
  if (free == live.end()) {
    return NoMemory("all " + std::to_string(live.size()) + " " + std::string(what) + " are in use");
  }
  *free = true;
  return base + static_cast<uint64_t>(free - live.begin()) * kStride;
}

Result<VirtAddr> CudaDriver::CreateCounter() {
  WEIR_TRY(Enter());
  const VirtAddr counter = WEIR_TRY(counters_.Take("counters"));
  StoreCounter(counter, 0);
  return counter;
}

Status CudaDriver::DestroyCounter(VirtAddr counter) {
  WEIR_TRY(Enter());
  if (!counters_.IsLive(counter)) return InvalidArgument("DestroyCounter: no such counter");
  counters_.live[(counter - counters_.base) / WordBlock::kStride] = false;
  return OkStatus();
}

Result<VirtAddr> CudaDriver::CreateGateWord() {
  WEIR_TRY(Enter());
  const VirtAddr word = WEIR_TRY(gates_.Take("gate words"));
  const uint64_t zero = 0;
  const Status cleared = Transfer(word, reinterpret_cast<VirtAddr>(&zero), sizeof zero);
  if (!cleared.ok()) {
    (void)DestroyGateWord(word);
    return cleared;
  }
  return word;
}

Status CudaDriver::DestroyGateWord(VirtAddr word) {
  if (!gates_.IsLive(word)) return InvalidArgument("DestroyGateWord: no such gate word");
  gates_.live[(word - gates_.base) / WordBlock::kStride] = false;
  return OkStatus();
}

Status CudaDriver::CheckWordValue(VirtAddr word, uint64_t value) const {
  if (!counters_.IsLive(word) && !gates_.IsLive(word)) {
    return InvalidArgument("no counter or gate word at address " + std::to_string(word));
  }
  if (value > INT64_MAX) {
    return InvalidArgument("counter value " + std::to_string(value) + " is above 2^63-1");
  }
  return OkStatus();
}

// The default flags put a barrier before the write: what the stream did before is visible to
// whoever sees the value.
Status CudaDriver::WriteCounter(StreamId id, VirtAddr counter, uint64_t value) {
  WEIR_TRY(Enter());
  Stream* stream = WEIR_TRY(FindStream(id));
  WEIR_TRY(CheckWordValue(counter, value));
  if (HasFailed(*stream)) return OkStatus();
  if (stream->last_fallible <= stream->settled) {
    return Check("cuStreamWriteValue64", api_.cuStreamWriteValue64(stream->handle, counter, value,
                                                                   CU_STREAM_WRITE_VALUE_DEFAULT));
  }
  if (gates_.Contains(counter)) {
    return Unsupported("a gate word is written behind a host function of stream " + stream->name +
                       " that is not known to have succeeded");
  }
  const auto store = [counter, value] {
    StoreWord(counter, value);
    return OkStatus();
  };
  return LaunchHostCall(*stream, store, HostCallKind::kInfallible);
}

Status CudaDriver::WaitCounter(StreamId id, VirtAddr counter, uint64_t at_least) {
  WEIR_TRY(Enter());
  const Stream* stream = WEIR_TRY(FindStream(id));
  WEIR_TRY(CheckWordValue(counter, at_least));
  if (HasFailed(*stream)) return OkStatus();
  return Check("cuStreamWaitValue64", api_.cuStreamWaitValue64(stream->handle, counter, at_least,
                                                               CU_STREAM_WAIT_VALUE_GEQ));
}

// These two touch no table, so that any thread and any host function may call them.
uint64_t CudaDriver::LoadCounter(VirtAddr counter) {
  WEIR_CHECK(counters_.Contains(counter), "LoadCounter takes counters only");
  return std::atomic_ref(*reinterpret_cast<uint64_t*>(counter)).load(std::memory_order_acquire);
}

void CudaDriver::StoreCounter(VirtAddr counter, uint64_t value) {
  WEIR_CHECK(counters_.Contains(counter), "StoreCounter takes counters only");
  StoreWord(counter, value);
}

Status CudaDriver::HostWaitCounter(VirtAddr counter, uint64_t at_least, uint64_t timeout_ns) {
  const TimeNs start = Now();
  while (LoadCounter(counter) < at_least) {
    if (has_sticky_.load(std::memory_order_acquire)) return sticky();
    const uint64_t waited = Now() - start;
    if (waited >= timeout_ns) {
      return ShouldWait("a counter is " + std::to_string(LoadCounter(counter)) + ", below " +
                        std::to_string(at_least) + ", after " + std::to_string(waited) + " ns");
    }
    if (waited < kYieldNs) {
      std::this_thread::yield();
    } else {
      // Sleeps grow with the time waited, so a wait is late by a small part of its length.
      const uint64_t nap = std::min({kLongestSleepNs, waited / 8, timeout_ns - waited});
      std::this_thread::sleep_for(std::chrono::nanoseconds(nap));
    }
  }
  return OkStatus();
}

TimeNs CudaDriver::Now() {
  return static_cast<TimeNs>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                 std::chrono::steady_clock::now().time_since_epoch())
                                 .count());
}

}  // namespace weir
