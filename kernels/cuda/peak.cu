#include "kernels/cuda/peak.h"

#include <algorithm>

#include "kernels/cuda/enqueue.cuh"

namespace weir::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kLoads = 4;  // in flight, a thread: 128 KiB a processor
constexpr int64_t kTile = int64_t{kThreads} * kLoads;
constexpr int kBlocksPerProcessor = 4;  // 2048 threads

struct ReadLaunch {
  const uint4* src;
  int64_t vectors;
  uint32_t* checksum;
};

__device__ __forceinline__ uint32_t Fold(const uint4& v) {
  return v.x ^ v.y ^ v.z ^ v.w;
}

__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) ReadKernel(const ReadLaunch p) {
  WaitForPredecessor();
  uint32_t sum = 0;
  for (int64_t tile = blockIdx.x; tile * kTile < p.vectors; tile += gridDim.x) {
    const int64_t first = tile * kTile + threadIdx.x;
    if ((tile + 1) * kTile <= p.vectors) {
      uint4 v[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) v[i] = __ldcs(p.src + first + i * kThreads);
#pragma unroll
      for (int i = 0; i < kLoads; ++i) sum ^= Fold(v[i]);
    } else {
      for (int64_t at = first; at < p.vectors; at += kThreads) sum ^= Fold(p.src[at]);
    }
  }
  sum = __reduce_xor_sync(0xffffffffu, sum);
  if (threadIdx.x % 32 == 0) atomicXor(p.checksum, sum);
}

}  // namespace

LaunchStatus ReadBandwidth(const ReadBandwidthParams& p, const Launch& launch) {
  if (p.bytes < 16 || p.bytes % 16 != 0 || !Aligned16(p.src) || p.checksum == nullptr) {
    return LaunchStatus::Invalid(
        "read bandwidth: bytes must be a multiple of 16, src 16-byte aligned, a checksum given");
  }
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error != cudaSuccess) return LaunchStatus::Of(error, "read bandwidth: the device's size");
  const int64_t vectors = p.bytes / 16;
  const int64_t blocks = std::min<int64_t>((vectors + kTile - 1) / kTile,
                                           int64_t{kBlocksPerProcessor} * processors);
  return Enqueue("read bandwidth", ReadKernel, blocks, kThreads, launch,
                 ReadLaunch{static_cast<const uint4*>(p.src), vectors, p.checksum});
}

}  // namespace weir::cuda
