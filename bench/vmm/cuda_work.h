// DeviceWork of the CUDA driver: weir's own kernels, on the driver's streams.
#pragma once

#include "bench/vmm/device_work.h"
#include "vmm/cuda_driver.h"

namespace weir::bench {

// Launches every kernel once, since CUDA loads them then and may wait for the device.
Result<std::unique_ptr<DeviceWork>> MakeCudaWork(CudaDriver& driver);

}  // namespace weir::bench
