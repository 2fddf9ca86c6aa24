// How the launchers of this folder check and enqueue. Internal.
#pragma once

#include <limits>

#include "kernels/cuda/launch.h"

namespace weir::cuda {

// Every pointer is non-null and a multiple of 16.
template <typename... T>
bool Aligned16(const T*... pointers) {
  return ((pointers != nullptr && reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// Kernels begin with this, before they touch memory, so that they may be launched early
// (Overlap::kPrologue). Returns at once in a kernel that was not.
__device__ __forceinline__ void WaitForPredecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Enqueues |kernel| with |blocks| blocks of |threads| threads.
template <typename Params>
LaunchStatus Enqueue(const char* what, void (*kernel)(Params), int64_t blocks, int threads,
                     const Launch& launch, const Params& params) {
  if (blocks < 1 || blocks > std::numeric_limits<int32_t>::max()) {
    return LaunchStatus::Invalid(std::string(what) + ": " + std::to_string(blocks) +
                                 " blocks; a grid has 1 to 2^31 - 1");
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = launch.stream;
  config.attrs = &attribute;
  config.numAttrs = launch.overlap == Overlap::kPrologue && DeviceArchitecture() >= 90 ? 1 : 0;
  return LaunchStatus::Of(cudaLaunchKernelEx(&config, kernel, params), what);
}

}  // namespace weir::cuda
