#include "bench/kernels/cuda_energy.h"

#include <array>
#include <chrono>
#include <optional>
#include <string>

#include <dlfcn.h>

namespace weir::bench {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point from, Clock::time_point to = Clock::now()) {
  return std::chrono::duration<double>(to - from).count();
}

// When the counter was seen to have moved, and to what.
struct Tick {
  Clock::time_point at;
  double joules = 0;
};

}  // namespace

Result<EnergyCounter> EnergyCounter::Open(int device) {
  void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return Unsupported("energy: libnvidia-ml.so.1 not found");
  const auto init = reinterpret_cast<int (*)()>(dlsym(library, "nvmlInit_v2"));
  const auto find = reinterpret_cast<int (*)(const char*, void**)>(
      dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2"));
  EnergyCounter counter;
  counter.read_ = reinterpret_cast<Read>(dlsym(library, "nvmlDeviceGetTotalEnergyConsumption"));
  std::array<char, 32> bus = {};
  WEIR_TRY(FromCuda(cudaDeviceGetPCIBusId(bus.data(), bus.size(), device), "the device's bus"));
  if (init == nullptr || find == nullptr || counter.read_ == nullptr || init() != 0 ||
      find(bus.data(), &counter.device_) != 0) {
    return Unsupported("energy: NVML does not know the device at " + std::string(bus.data()));
  }
  WEIR_TRY(counter.Joules());
  return counter;
}

Result<double> EnergyCounter::Joules() const {
  unsigned long long millijoules = 0;
  const int error = read_(device_, &millijoules);
  if (error != 0) {
    return Unsupported("energy: the GPU has no counter (NVML error " + std::to_string(error) + ")");
  }
  return static_cast<double>(millijoules) * 1e-3;
}

Result<Sustained> SustainCalls(cudaStream_t stream, const TimingOptions& options,
                               const EnergyCounter& energy,
                               const std::function<Status(uint32_t)>& enqueue) {
  constexpr double kSettle = 0.3;
  constexpr double kMeasure = 0.55;
  const RepeatedCalls repeated = WEIR_TRY(RepeatCalls(stream, options, enqueue));
  // Two replays are queued at any time.
  std::array<CudaEvent, 3> ends;
  for (CudaEvent& end : ends) end = WEIR_TRY(MakeCudaEvent());
  const Clock::time_point start = Clock::now();
  double last = WEIR_TRY(energy.Joules());
  std::optional<Tick> first_tick, last_tick;
  std::optional<Clock::time_point> first_end;
  Clock::time_point last_end = start;
  uint32_t ended = 0;  // behind first_end
  for (size_t i = 0;; ++i) {
    WEIR_TRY(FromCuda(cudaGraphLaunch(repeated.graph.get(), stream), "cudaGraphLaunch"));
    WEIR_TRY(FromCuda(cudaEventRecord(ends[i % ends.size()].get(), stream), "an event"));
    if (i < 2) continue;
    for (;;) {
      const cudaError_t done = cudaEventQuery(ends[(i - 2) % ends.size()].get());
      if (done != cudaErrorNotReady) {
        WEIR_TRY(FromCuda(done, "replaying a graph"));
        break;
      }
      const double joules = WEIR_TRY(energy.Joules());
      if (joules == last) continue;
      last = joules;
      if (SecondsSince(start) < kSettle) continue;
      last_tick = Tick{Clock::now(), joules};
      if (!first_tick) first_tick = last_tick;
    }
    if (SecondsSince(start) < kSettle) continue;
    last_end = Clock::now();
    if (first_end) {
      ++ended;
    } else {
      first_end = last_end;
    }
    if (SecondsSince(start) > kSettle + kMeasure) break;
  }
  WEIR_TRY(FromCuda(cudaStreamSynchronize(stream), "replaying a graph"));
  if (ended == 0 || !first_tick || last_tick->at == first_tick->at) {
    return Unsupported("energy: the counter did not move");
  }
  const double watts =
      (last_tick->joules - first_tick->joules) / SecondsSince(first_tick->at, last_tick->at);
  const double seconds = SecondsSince(*first_end, last_end) / ended / repeated.calls;
  return Sustained{.seconds = seconds, .joules = watts * seconds};
}

}  // namespace weir::bench
