#include "kernels/cuda/clock.h"
#include "kernels/cuda/enqueue.cuh"
#include "kernels/cuda/gates.cuh"

namespace weir::cuda {
namespace {

struct ReadClockParams {
  uint64_t* out = nullptr;
};

__global__ void ReadClockKernel(const ReadClockParams params) {
  gates::StoreRelease(params.out, gates::Now());
}

}  // namespace

LaunchStatus ReadClock(uint64_t* out, const Launch& launch) {
  if (out == nullptr) return LaunchStatus::Invalid("read clock: it needs a place for the time");
  return Enqueue("read clock", ReadClockKernel, 1, 1, launch, ReadClockParams{out});
}

}  // namespace weir::cuda
