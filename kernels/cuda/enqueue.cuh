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

// Lets the kernel behind this one be launched, if it may be launched early: it is placed when every
// block of this kernel has come here, and its own WaitForPredecessor() holds it back.
__device__ __forceinline__ void TriggerDependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Enqueues |kernel| with |blocks| blocks of |threads| threads, |shared| bytes of dynamic shared
// memory a block, in clusters of |cluster| blocks.
template <typename Params>
LaunchStatus Enqueue(const char* what, void (*kernel)(Params), int64_t blocks, int threads,
                     const Launch& launch, const Params& params, size_t shared = 0,
                     unsigned cluster = 1) {
  if (blocks < 1 || blocks > std::numeric_limits<int32_t>::max()) {
    return LaunchStatus::Invalid(std::string(what) + ": " + std::to_string(blocks) +
                                 " blocks; a grid has 1 to 2^31 - 1");
  }
  cudaLaunchAttribute attributes[3] = {};
  unsigned count = 0;
  if (launch.overlap == Overlap::kPrologue && DeviceArchitecture() >= 90) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    // Kernels that are to share a multiprocessor must agree on how its memory is divided into L1
    // and shared memory.
    attributes[count].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attributes[count++].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  }
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {cluster, 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = launch.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return LaunchStatus::Of(cudaLaunchKernelEx(&config, kernel, params), what);
}

}  // namespace weir::cuda
