#include "bench/vmm/bench_driver.h"

#include "vmm/host_driver.h"
#include "vmm/sim_driver.h"
#if defined(WEIR_HAVE_CUDA)
#include "vmm/cuda_driver.h"
#endif

namespace weir::bench {
namespace {

template <typename T>
Result<std::unique_ptr<Driver>> AsDriver(Result<std::unique_ptr<T>> driver) {
  if (!driver.ok()) return driver.status();
  return std::unique_ptr<Driver>(std::move(driver).value());
}

}  // namespace

Result<std::unique_ptr<Driver>> MakeDriver(const std::string& name, WithPeer peer) {
#if defined(WEIR_HAVE_CUDA)
  if (name == "cuda") {
    return AsDriver(CudaDriver::Create({.peer_device = peer == WithPeer::kYes ? 1 : -1}));
  }
#endif
  if (peer == WithPeer::kYes) return Unsupported("driver " + name + " is made without a peer");
  if (name == "host" || name == "host-populate") {
    HostDriver::Options options;
    if (name == "host-populate") options.populate = HostPopulate::kOnSetAccess;
    return AsDriver(HostDriver::Create(options));
  }
  if (name == "sim") return AsDriver(SimDriver::Create(SimDriver::MeasuredCosts({})));
  return Unsupported("driver " + name + "; this build knows host, host-populate, sim" +
#if defined(WEIR_HAVE_CUDA)
                     ", cuda"
#else
                     " (and cuda where the toolkit's headers are)"
#endif
  );
}

}  // namespace weir::bench
