#include "engine/cuda_clock.h"

#include <atomic>
#include <utility>

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
  for (int i = 0; i < kTries; ++i) {
    WEIR_TRY(Ask());
    WEIR_TRY(FromCuda(cudaStreamSynchronize(stream_), "reading the device's clock"));
    WEIR_TRY(Look());
  }
  return OkStatus();
}

Status CudaClock::Refresh() {
  if (asked_ns_ == 0) {
    if (TraceMonotonicNs() - compared_ns_ <= kCompareEveryNs) return OkStatus();
    WEIR_TRY(Ask());
  }
  do {
    WEIR_TRY(Look());
  } while (asked_ns_ != 0 && TraceMonotonicNs() - asked_ns_ < kPatienceNs);
  return OkStatus();
}

void CudaClock::Bound(uint64_t device_ns, TimeNs not_before, TimeNs not_after) {
  // %globaltimer moves in ticks of up to a microsecond: it shows the last one.
  constexpr TimeNs kTickNs = 1024;
  const bool bound = not_before != ClockMap::kEver;
  map_.Bound(device_ns, bound ? not_before - kTickNs : ClockMap::kEver, not_after);
}

Status CudaClock::Ask() {
  std::atomic_ref<uint64_t>(*reading_.At<uint64_t>(0)).store(0, std::memory_order_relaxed);
  const TimeNs now = TraceMonotonicNs();
  // As the kernels of a step, so that it fits beside them on a multiprocessor.
  WEIR_TRY(ToStatus(cuda::ReadClock(reading_.At<uint64_t>(0),
                                    {.stream = stream_, .overlap = cuda::Overlap::kPrologue})));
  asked_ns_ = now;
  return OkStatus();
}

Status CudaClock::Look() {
  std::atomic_ref<uint64_t> reading(*reading_.At<uint64_t>(0));
  // The word shows up before the stream counts as done; the stream tells if it never will.
  const cudaError_t state = cudaStreamQuery(stream_);
  const uint64_t device_ns = reading.load(std::memory_order_acquire);
  if (device_ns == 0 && state == cudaErrorNotReady) return OkStatus();
  const TimeNs not_before = std::exchange(asked_ns_, 0);
  compared_ns_ = TraceMonotonicNs();
  if (device_ns == 0) {
    WEIR_TRY(FromCuda(state, "reading the device's clock"));
    return DriverError("a kernel that reads the device's clock wrote nothing");
  }
  Bound(device_ns, not_before, compared_ns_);
  return OkStatus();
}

}  // namespace weir
