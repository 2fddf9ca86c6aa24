// Stamps: CUDA events with times, in the host's clock.
#include <cmath>

#include "vmm/cuda_driver.h"
#include "vmm/cuda_driver_api.h"

namespace weir {

Result<CUevent_st*> CudaDriver::TakeStampHandle() {
  CUevent handle = nullptr;
  if (!stamps_.idle.empty()) {
    handle = stamps_.idle.back();
    stamps_.idle.pop_back();
    return handle;
  }
  WEIR_TRY(Check("cuEventCreate", api_.cuEventCreate(&handle, CU_EVENT_DEFAULT)));
  return handle;
}

Status CudaDriver::CompareClocks() {
  constexpr int kTries = 3;  // each narrows the bounds; the first also warms the path up
  for (int i = 0; i < kTries; ++i) {
    CUevent here = WEIR_TRY(TakeStampHandle());
    const TimeNs not_before = Now();
    Status status = Check("cuEventRecord", api_.cuEventRecord(here, service_stream_));
    if (status.ok()) status = Check("cuEventSynchronize", api_.cuEventSynchronize(here));
    const TimeNs not_after = Now();
    uint64_t device_ns = not_before;
    if (status.ok() && stamps_.origin != nullptr) {
      float ms = 0;
      status = Check("cuEventElapsedTime", api_.cuEventElapsedTime(&ms, stamps_.origin, here));
      device_ns = stamps_.origin_ns + static_cast<uint64_t>(std::llround(double{ms} * 1e6));
    }
    if (!status.ok()) {
      stamps_.idle.push_back(here);
      return status;
    }
    if (stamps_.origin != nullptr) stamps_.idle.push_back(stamps_.origin);
    stamps_.origin = here;
    stamps_.origin_ns = device_ns;
    stamps_.compared_ns = not_after;
    stamps_.clock.Bound(device_ns, not_before, not_after);
  }
  return OkStatus();
}

Result<StampId> CudaDriver::Stamp(StreamId id) {
  WEIR_TRY(Enter());
  const Stream* stream = WEIR_TRY(FindStream(id));
  if (Now() - stamps_.compared_ns > kCompareEveryNs) WEIR_TRY(CompareClocks());
  CUevent handle = WEIR_TRY(TakeStampHandle());
  const Status recorded = Check("cuEventRecord", api_.cuEventRecord(handle, stream->handle));
  if (!recorded.ok()) {
    stamps_.idle.push_back(handle);
    return recorded;
  }
  const StampId stamp(stamps_.next++);
  stamps_.open.emplace(stamp, handle);
  return stamp;
}

Result<TimeNs> CudaDriver::TakeStamp(StampId stamp) {
  const auto it = stamps_.open.find(stamp);
  if (it == stamps_.open.end()) return InvalidArgument("no stamp " + std::to_string(stamp.value));
  CUevent handle = it->second;
  Status status = Enter();
  if (status.ok()) {
    const CUresult reached = api_.cuEventQuery(handle);
    if (reached == CUDA_ERROR_NOT_READY) return ShouldWait("the stream has not come to the stamp");
    status = Check("cuEventQuery", reached);
  }
  float ms = 0;
  if (status.ok()) {
    status = Check("cuEventElapsedTime", api_.cuEventElapsedTime(&ms, stamps_.origin, handle));
  }
  stamps_.open.erase(it);
  stamps_.idle.push_back(handle);
  if (!status.ok()) return status;
  // Before the origin where the clocks were compared since.
  const int64_t since = std::llround(double{ms} * 1e6);
  return stamps_.clock.ToHost(stamps_.origin_ns + static_cast<uint64_t>(since));
}

// The event may be recorded again though the stream has not come to it: nobody asks for that time.
void CudaDriver::DropStamp(StampId stamp) {
  const auto it = stamps_.open.find(stamp);
  if (it == stamps_.open.end()) return;
  stamps_.idle.push_back(it->second);
  stamps_.open.erase(it);
}

uint64_t CudaDriver::stamp_error_ns() const {
  constexpr uint64_t kResolutionNs = 500;  // of cuEventElapsedTime
  return stamps_.clock.error_ns() + kResolutionNs;
}

}  // namespace weir
