// How many GPUs a test has. CUDA is started as weir starts it (vmm/cuda_driver.h): by the time the
// runtime has counted devices it is too late.
#pragma once

#include <cuda_runtime_api.h>

#include "vmm/cuda_driver.h"

namespace weir::testing {

inline int CudaDevices() {
  int devices = 0;
  return CudaDriverPresent() && cudaGetDeviceCount(&devices) == cudaSuccess ? devices : 0;
}

}  // namespace weir::testing
