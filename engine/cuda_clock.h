// CudaClock: times that kernels noted (%globaltimer), in the host's clock.
//
// Represents the distance between the two clocks and a stream on which they are compared: a kernel
// of one thread reads the device's clock between two readings of the host's. The stream has a
// priority of its own, so that the kernel gets the next free place on a busy device. It is never
// waited for without limit: a step whose gates the caller holds closed may have every place, until
// the caller goes on. One thread.
#pragma once

#include <cuda_runtime_api.h>

#include "engine/cuda_inputs.h"
#include "vmm/clock_map.h"
#include "vmm/status.h"

namespace weir {

class CudaClock {
 public:
  static constexpr TimeNs kCompareEveryNs = 100'000'000;
  static constexpr TimeNs kPatienceNs = 100'000;

  CudaClock() = default;
  ~CudaClock();
  CudaClock(const CudaClock&) = delete;
  CudaClock& operator=(const CudaClock&) = delete;

  // On the current device; waits for a few kernels.
  Status Open();
  // Compares the clocks if the last comparison is older than kCompareEveryNs. Waits for up to
  // kPatienceNs; a reading that comes later is taken by a later call.
  Status Refresh();
  // The device showed |device_ns| not before, not after that time of the host (ClockMap's).
  void Bound(uint64_t device_ns, TimeNs not_before, TimeNs not_after);
  TimeNs ToHost(uint64_t device_ns) const { return map_.ToHost(device_ns); }
  uint64_t error_ns() const { return map_.error_ns(); }
  uint64_t error_ns(uint64_t device_ns) const { return map_.error_ns(device_ns); }

 private:
  // Asks for a reading; none is under way.
  Status Ask();
  // Takes the reading that was asked for, if it is there.
  Status Look();

  cudaStream_t stream_ = nullptr;
  PinnedBuffer reading_;
  TimeNs compared_ns_ = 0;
  TimeNs asked_ns_ = 0;  // of the reading under way; 0: there is none
  ClockMap map_;
};

}  // namespace weir
