// DeviceWork: what keeps a device busy beside remaps, where the driver's interface has no call for
// it. On a GPU kernels of weir's own, on the host driver functions on the streams' threads.
#pragma once

#include <cstdint>
#include <memory>

#include "vmm/driver.h"

namespace weir::bench {

class DeviceWork {
 public:
  // No gate stays closed for longer, whoever forgets it: nothing behind one can hang.
  static constexpr uint64_t kGateLimitNs = 50'000'000;
  // Launches that fit into a stream's queue behind a closed gate: beyond about a thousand the CUDA
  // driver makes the caller wait.
  static constexpr uint32_t kQueuedLaunches = 500;

  // For |driver|, which outlives it. kUnsupported: why there is none.
  static Result<std::unique_ptr<DeviceWork>> Create(Driver& driver);
  virtual ~DeviceWork() = default;

  // Reads [at, at + bytes) once, as fast as the device can. Mapped memory, a multiple of 16 bytes.
  virtual Status Read(StreamId stream, VirtAddr at, uint64_t bytes) = 0;
  // |count| launches of work that takes a microsecond or two, one by one.
  virtual Status Launches(StreamId stream, uint32_t count) = 0;
  // The same as one graph of kGraphLaunches. kUnsupported where there are no graphs.
  virtual Status Graph(StreamId stream) = 0;
  static constexpr uint32_t kGraphLaunches = 2000;
  // Work that waits at a gate until OpenGate or for kGateLimitNs. One at a time: the gate before
  // has been passed.
  virtual Status CloseGate(StreamId stream) = 0;
  virtual Status OpenGate() = 0;
  // Asks whether the stream is idle, as an engine's other threads do. Any thread.
  virtual void Poll(StreamId stream) = 0;
};

}  // namespace weir::bench
