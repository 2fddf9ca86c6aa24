#include "kernels/cuda/norm.h"

#include "kernels/cuda/bf16x8.cuh"
#include "kernels/cuda/enqueue.cuh"
#include "kernels/cuda/gates.cuh"

namespace weir::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

// The same total in every lane: a butterfly adds the same pairs in every lane, and a + b is b + a.
__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

// Every thread of the block calls it once.
template <int kThreads>
__device__ __forceinline__ float BlockSum(float x) {
  constexpr int kWarps = kThreads / 32;
  __shared__ float partial[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  x = WarpSum(x);
  if (lane == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  return WarpSum(lane < kWarps ? partial[lane] : 0.0f);
}

// One row a block, held in registers between its one read and its write. A thread has the vectors
// threadIdx.x + i * kThreads. Narrow rows have registers left for their weights: these are then
// read with the row, not behind the barrier. Three blocks of 512 an SM keep it loading while others
// are at their barriers.
template <int kThreads, int kVectors>
__global__ void __launch_bounds__(kThreads, 1536 / kThreads) RmsNormKernel(const RmsNormParams p) {
  TriggerDependents();
  WaitForPredecessor();
  if (p.gate.used() && blockIdx.x == 0) return RunGateBlock(p.gate);
  const int64_t row = int64_t{blockIdx.x} - (p.gate.used() ? 1 : 0);
  const int64_t from = p.rows == nullptr ? row : int64_t{p.rows[row]};
  const auto* x = reinterpret_cast<const uint4*>(p.x + from * p.ldx);
  auto* y = reinterpret_cast<uint4*>(p.y + row * p.ldy);
  const auto vectors = static_cast<int>(p.h / kVector);
  const auto thread = static_cast<int>(threadIdx.x);

  constexpr bool kEarlyWeights = kVectors <= 2;
  uint4 packed[kVectors];
  float weights[kVectors][kVector];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = thread + i * kThreads;
    packed[i] = at < vectors ? x[at] : uint4{0, 0, 0, 0};
    if (kEarlyWeights && at < vectors) Load8(p.weight + at * kVector, weights[i]);
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    float v[kVector];
    Unpack(packed[i], v);
#pragma unroll
    for (int j = 0; j < kVector; ++j) sum = __fmaf_rn(v[j], v[j], sum);
  }
  sum = BlockSum<kThreads>(sum);
  const float r = 1.0f / sqrtf(sum / static_cast<float>(p.h) + p.eps);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = thread + i * kThreads;
    if (at >= vectors) break;
    float v[kVector];
    Unpack(packed[i], v);
    if (!kEarlyWeights) Load8(p.weight + at * kVector, weights[i]);
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] = v[j] * r * weights[i][j];
    y[at] = Pack(v);
  }
}

template <int kThreads, int kVectors>
LaunchStatus Run(const RmsNormParams& p, const Launch& launch) {
  return Enqueue("rms norm", RmsNormKernel<kThreads, kVectors>, p.m + GateBlocks(p.gate), kThreads,
                 launch, p);
}

}  // namespace

LaunchStatus RmsNorm(const RmsNormParams& p, const Launch& launch) {
  constexpr int64_t kMaxWidth = 16384;
  if (p.m < 1 || p.h < kVector || p.h % kVector != 0 || p.h > kMaxWidth) {
    return LaunchStatus::Invalid(
        "rms norm: rows at least 1 and h a multiple of 8 from 8 to 16384, got " +
        std::to_string(p.m) + " and " + std::to_string(p.h));
  }
  if (p.ldx < p.h || p.ldx % kVector != 0 || p.ldy < p.h || p.ldy % kVector != 0) {
    return LaunchStatus::Invalid("rms norm: row strides must be multiples of 8, at least h, got " +
                                 std::to_string(p.ldx) + " and " + std::to_string(p.ldy));
  }
  if (!Aligned16(p.x, p.weight, p.y)) {
    return LaunchStatus::Invalid("rms norm: x, weight and y must be 16-byte aligned");
  }
  if (p.x == p.y && (p.rows != nullptr || p.ldx != p.ldy)) {
    return LaunchStatus::Invalid("rms norm: in place only without rows and with equal strides");
  }
  if (LaunchStatus s = CheckGatePoint(p.gate, "rms norm"); !s.ok()) return s;
  // By h only: the number of threads is part of the order of the sum.
  if (p.h <= 1024) return Run<128, 1>(p, launch);
  if (p.h <= 2048) return Run<256, 1>(p, launch);
  if (p.h <= 4096) return Run<512, 1>(p, launch);
  if (p.h <= 8192) return Run<512, 2>(p, launch);
  return Run<512, 4>(p, launch);
}

}  // namespace weir::cuda
