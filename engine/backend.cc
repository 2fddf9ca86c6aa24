#include "engine/backend.h"

#if defined(WEIR_HAVE_CUDA_COMPUTE)
#include "vmm/cuda_driver.h"
#endif

namespace weir {

Result<std::unique_ptr<Backend>> MakeBackend(const EngineOptions& options,
                                             const ModelConfig& config,
                                             const ComputeLimits& limits) {
#if defined(WEIR_HAVE_CUDA_COMPUTE)
  const bool gpu = options.device == DeviceKind::kCuda ||
                   (options.device == DeviceKind::kAuto && CudaDriverPresent());
  if (gpu) return MakeCudaBackend(options, config, limits);
#else
  if (options.device == DeviceKind::kCuda) {
    return Unsupported(
        "device cuda: this weir was built without CUDA kernels; build it where nvcc "
        "is found, or use device cpu or auto");
  }
#endif
  return MakeCpuBackend(options, config, limits);
}

}  // namespace weir
