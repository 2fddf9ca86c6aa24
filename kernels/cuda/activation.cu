#include "kernels/cuda/activation.h"

#include "kernels/cuda/bf16x8.cuh"
#include "kernels/cuda/enqueue.cuh"
#include "kernels/cuda/gates.cuh"

namespace weir::cuda {
namespace {

constexpr int kThreads = 256;

// Blocks of a decode step are to find room beside the product before: so many at most have a vector
// a thread.
constexpr int64_t kSmallLaunch = 640;

// A block has kThreads * kVectors vectors of one row; |chunks| blocks make a row.
struct SiluMulLaunch {
  SiluMulParams p;
  uint32_t chunks;
};

template <int kVectors>
__global__ void __launch_bounds__(kThreads) SiluMulKernel(const SiluMulLaunch launch) {
  const SiluMulParams& p = launch.p;
  TriggerDependents();
  WaitForPredecessor();
  if (p.gate.used() && blockIdx.x == 0) return RunGateBlock(p.gate);
  const uint32_t block = blockIdx.x - (p.gate.used() ? 1 : 0);
  const uint32_t row = block / launch.chunks;
  const int64_t first =
      (int64_t{block - row * launch.chunks} * kThreads * kVectors + threadIdx.x) * kVector;
  const Bf16* from = p.gate_up + row * (2 * p.f);
  uint4 gates[kVectors], ups[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t column = first + int64_t{v} * kThreads * kVector;
    if (column >= p.f) break;
    gates[v] = *reinterpret_cast<const uint4*>(from + column);
    ups[v] = *reinterpret_cast<const uint4*>(from + p.f + column);
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t column = first + int64_t{v} * kThreads * kVector;
    if (column >= p.f) break;
    float gate[kVector], up[kVector];
    Unpack(gates[v], gate);
    Unpack(ups[v], up);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      gate[i] = __fdividef(gate[i], 1.0f + __expf(-gate[i])) * up[i];
    }
    *reinterpret_cast<uint4*>(p.y + row * p.f + column) = Pack(gate);
  }
}

int64_t ChunksOf(int64_t f, int vectors) {
  const int64_t per_block = int64_t{kThreads} * vectors * kVector;
  return (f + per_block - 1) / per_block;
}

template <int kVectors>
LaunchStatus Run(const SiluMulParams& p, const Launch& launch) {
  const int64_t chunks = ChunksOf(p.f, kVectors);
  if (p.m > std::numeric_limits<int32_t>::max() / chunks) {
    return LaunchStatus::Invalid("silu: too many rows: " + std::to_string(p.m));
  }
  return Enqueue("silu", SiluMulKernel<kVectors>, p.m * chunks + GateBlocks(p.gate), kThreads,
                 launch, SiluMulLaunch{p, static_cast<uint32_t>(chunks)});
}

}  // namespace

LaunchStatus SiluMul(const SiluMulParams& p, const Launch& launch) {
  constexpr int64_t kMaxWidth = int64_t{1} << 30;
  if (p.m < 1 || p.f < kVector || p.f % kVector != 0 || p.f > kMaxWidth) {
    return LaunchStatus::Invalid("silu: rows at least 1 and f a multiple of 8, got " +
                                 std::to_string(p.m) + " and " + std::to_string(p.f));
  }
  if (!Aligned16(p.gate_up, p.y)) {
    return LaunchStatus::Invalid("silu: gate_up and y must be 16-byte aligned");
  }
  if (LaunchStatus s = CheckGatePoint(p.gate, "silu"); !s.ok()) return s;
  return p.m <= kSmallLaunch / ChunksOf(p.f, 1) ? Run<1>(p, launch) : Run<2>(p, launch);
}

}  // namespace weir::cuda
