#include "bench/vmm/device_work.h"

#include "bench/vmm/host_work.h"
#if defined(WEIR_BENCH_KERNELS)
#include "bench/vmm/cuda_work.h"
#endif

namespace weir::bench {

Result<std::unique_ptr<DeviceWork>> DeviceWork::Create(Driver& driver) {
  if (driver.properties().virtual_time) {
    return Unsupported("driver " + driver.properties().name +
                       ": nothing runs beside anything in virtual time; accepted are drivers in "
                       "real time (host, cuda)");
  }
  if (driver.properties().name == "host") return MakeHostWork(driver);
#if defined(WEIR_BENCH_KERNELS)
  if (driver.properties().name == "cuda") return MakeCudaWork(static_cast<CudaDriver&>(driver));
#endif
  return Unsupported("driver " + driver.properties().name +
                     ": this program was built without CUDA kernels (WEIR_CUDA_KERNELS)");
}

}  // namespace weir::bench
