#include "kernels/cuda/launch.h"

#include <array>
#include <atomic>

namespace weir::cuda {

int DeviceArchitecture() {
  constexpr int kDevices = 64;
  static std::array<std::atomic<int>, kDevices> known{};
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return 0;
  int architecture = known[static_cast<size_t>(device)].load(std::memory_order_relaxed);
  if (architecture != 0) return architecture;
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    return 0;
  }
  architecture = major * 10 + minor;
  known[static_cast<size_t>(device)].store(architecture, std::memory_order_relaxed);
  return architecture;
}

}  // namespace weir::cuda
