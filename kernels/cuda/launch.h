// What every launcher of this folder takes and returns.
//
// Launchers check their parameters on the host, enqueue on a stream and return; none allocates
// device memory or waits, so all of them can be captured into a graph. Pointers are device pointers
// unless their name ends in _host. They work on the calling thread's current device.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

namespace weir::cuda {

using Bf16 = __nv_bfloat16;

// Represents the outcome of a launch: nothing was enqueued unless ok(). A fault inside a kernel
// shows later, as CUDA reports it on the stream.
class [[nodiscard]] LaunchStatus {
 public:
  LaunchStatus() = default;
  LaunchStatus(cudaError_t code, std::string message) : code_(code), message_(std::move(message)) {}
  // |what| names the call.
  static LaunchStatus Of(cudaError_t code, const char* what) {
    if (code == cudaSuccess) return {};
    return {code, std::string(what) + ": " + cudaGetErrorString(code)};
  }
  static LaunchStatus Invalid(std::string message) {
    return {cudaErrorInvalidValue, std::move(message)};
  }
  bool ok() const { return code_ == cudaSuccess; }
  cudaError_t code() const { return code_; }
  const std::string& message() const { return message_; }  // names what was wrong; empty when ok

 private:
  cudaError_t code_ = cudaSuccess;
  std::string message_;
};

enum class Overlap : uint8_t {
  kNone,
  // Programmatic dependent launch (sm_90 and later): the kernel's blocks may be placed while its
  // predecessor ends. It touches nothing that a predecessor writes before those writes are visible
  // (weights that are at home nobody writes). Ignored on older GPUs.
  kPrologue,
};

// Compute capability of the calling thread's device times ten (90: Hopper); 0 when there is none.
// Asked of CUDA once a device.
int DeviceArchitecture();

struct Launch {
  cudaStream_t stream = nullptr;
  Overlap overlap = Overlap::kNone;
};

}  // namespace weir::cuda
