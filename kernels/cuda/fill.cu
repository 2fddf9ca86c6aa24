#include "kernels/cuda/fill.h"

#include <algorithm>

#include "kernels/cuda/bf16x8.cuh"
#include "kernels/cuda/enqueue.cuh"

namespace weir::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 14;  // the rest is a loop

int64_t BlocksFor(int64_t threads) {
  return std::clamp((threads + kThreads - 1) / kThreads, int64_t{1}, kMaxBlocks);
}

__device__ int64_t FirstItem() {
  return int64_t{blockIdx.x} * kThreads + threadIdx.x;
}
__device__ int64_t Step() {
  return int64_t{gridDim.x} * kThreads;
}

struct NormalLaunch {
  uint16_t* dst;
  int64_t count;
  uint64_t seed;
  uint64_t first_index;
  float factor;
};

__global__ void __launch_bounds__(kThreads) NormalKernel(const NormalLaunch p) {
  WaitForPredecessor();
  for (int64_t i = FirstItem() * kVector; i < p.count; i += Step() * kVector) {
    const uint64_t index = p.first_index + static_cast<uint64_t>(i);
    if (p.count - i < kVector) {
      for (int64_t j = 0; i + j < p.count; ++j) {
        p.dst[i + j] = NormalBits(p.seed, index + static_cast<uint64_t>(j), p.factor);
      }
      return;
    }
    uint32_t words[kVector / 2];
#pragma unroll
    for (uint32_t j = 0; j < kVector / 2; ++j) {
      words[j] = uint32_t{NormalBits(p.seed, index + 2 * j, p.factor)} |
                 uint32_t{NormalBits(p.seed, index + 2 * j + 1, p.factor)} << 16;
    }
    *reinterpret_cast<uint4*>(p.dst + i) = {words[0], words[1], words[2], words[3]};
  }
}

struct FloatLaunch {
  float* dst;
  int64_t count;
  float value;
};

__global__ void __launch_bounds__(kThreads) FloatKernel(const FloatLaunch p) {
  WaitForPredecessor();
  for (int64_t i = FirstItem(); i < p.count; i += Step()) p.dst[i] = p.value;
}

}  // namespace

LaunchStatus FillNormal(const FillNormalParams& p, const Launch& launch) {
  if (p.count < 1 || !Aligned16(p.dst)) {
    return LaunchStatus::Invalid("fill: count must be at least 1 and dst 16-byte aligned");
  }
  const NormalLaunch normal{reinterpret_cast<uint16_t*>(p.dst), p.count, p.seed, p.first_index,
                            NormalFactor(p.scale)};
  return Enqueue("fill", NormalKernel, BlocksFor(p.count / kVector + 1), kThreads, launch, normal);
}

LaunchStatus FillFloat(float* dst, int64_t count, float value, const Launch& launch) {
  if (count < 1 || dst == nullptr) {
    return LaunchStatus::Invalid("fill: count must be at least 1 and dst be given");
  }
  return Enqueue("fill", FloatKernel, BlocksFor(count), kThreads, launch,
                 FloatLaunch{dst, count, value});
}

}  // namespace weir::cuda
