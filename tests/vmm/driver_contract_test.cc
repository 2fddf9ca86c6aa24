#include "tests/vmm/driver_contract.h"

#include "vmm/host_driver.h"
#include "vmm/sim_driver.h"
#if defined(WEIR_HAVE_CUDA)
#include "vmm/cuda_driver.h"
#endif

namespace weir {
namespace {

template <typename T>
Result<std::unique_ptr<Driver>> AsDriver(Result<std::unique_ptr<T>> driver) {
  if (!driver.ok()) return driver.status();
  return std::unique_ptr<Driver>(std::move(driver).value());
}

std::vector<DriverFactory> Factories() {
  std::vector<DriverFactory> all;
  const auto host = [](HostReserve reserve, HostPopulate populate) {
    HostDriver::Options options;
    options.hbm_bytes = options.host_bytes = 64 * kMiB;
    options.reserve = reserve;
    options.populate = populate;
    return AsDriver(HostDriver::Create(options));
  };
  all.push_back({"Host", [=] { return host(HostReserve::kLazy, HostPopulate::kOnTouch); }, 1});
  all.push_back(
      {"HostLarge", [=] { return host(HostReserve::kLazy, HostPopulate::kOnTouch); }, 16});
  all.push_back(
      {"HostEager", [=] { return host(HostReserve::kAtCreate, HostPopulate::kOnSetAccess); }, 4});
  all.push_back({"Sim",
                 [] {
                   SimDriver::Options options;
                   options.hbm_bytes = options.host_bytes = options.peer_bytes = kMiB;
                   return AsDriver(SimDriver::Create(options));
                 },
                 1});
  all.push_back({"SimCosts",
                 [] {
                   SimDriver::Options options;
                   options.hbm_bytes = options.host_bytes = kMiB;
                   return AsDriver(SimDriver::Create(SimDriver::MeasuredCosts(options)));
                 },
                 2});
#if defined(WEIR_HAVE_CUDA)
  all.push_back({"Cuda", [] { return AsDriver(CudaDriver::Create({})); }, 1});
#endif
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, DriverContract, ::testing::ValuesIn(Factories()),
                         [](const auto& param) { return param.param.name; });
INSTANTIATE_TEST_SUITE_P(All, GateWordContract, ::testing::ValuesIn(Factories()),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace weir
