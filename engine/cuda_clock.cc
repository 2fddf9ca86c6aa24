#include "engine/cuda_clock.h"

#include <atomic>

#include "engine/cuda_graph.h"
#include "kernels/cuda/clock.h"
#include "vmm/trace.h"

namespace weir {
CudaClock::~CudaClock() {
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}

Status CudaClock::Open() {
  int least = 0, greatest = 0;
  WEIR_TRY(FromCuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "stream priorities"));
  WEIR_TRY(FromCuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest),
                    "a stream for the clock"));
  reading_ = WEIR_TRY(PinnedBuffer::Create(sizeof(uint64_t)));
  constexpr int kTries = 8;  // the first ones load the kernel; each good one narrows the bounds
  for (int i = 0; i < kTries; ++i) WEIR_TRY(Compare());
  return OkStatus();
}

Status CudaClock::Refresh() {
  return TraceMonotonicNs() - compared_ns_ > kCompareEveryNs ? Compare() : OkStatus();
}

void CudaClock::Bound(uint64_t device_ns, TimeNs not_before, TimeNs not_after) {
  // %globaltimer moves in ticks of up to a microsecond: it shows the last one.
  constexpr TimeNs kTickNs = 1024;
  const bool bound = not_before != ClockMap::kEver;
  map_.Bound(device_ns, bound ? not_before - kTickNs : ClockMap::kEver, not_after);
}

Status CudaClock::Compare() {
  std::atomic_ref<uint64_t> reading(*reading_.At<uint64_t>(0));
  reading.store(0, std::memory_order_relaxed);
  const TimeNs not_before = TraceMonotonicNs();
  WEIR_TRY(ToStatus(cuda::ReadClock(reading_.At<uint64_t>(0), {.stream = stream_})));
  // The word shows up before the stream counts as done; the stream tells if it never will.
  uint64_t device_ns = 0;
  cudaError_t state = cudaErrorNotReady;
  while ((device_ns = reading.load(std::memory_order_acquire)) == 0 && state == cudaErrorNotReady) {
    state = cudaStreamQuery(stream_);
  }
  const TimeNs not_after = TraceMonotonicNs();
  if (device_ns == 0) device_ns = reading.load(std::memory_order_acquire);
  if (state != cudaErrorNotReady) WEIR_TRY(FromCuda(state, "reading the device's clock"));
  if (device_ns == 0) return DriverError("a kernel that reads the device's clock wrote nothing");
  Bound(device_ns, not_before, not_after);
  compared_ns_ = not_after;
  return OkStatus();
}

}  // namespace weir
