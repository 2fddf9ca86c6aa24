#include "kernels/cuda/activation.h"

#include "kernels/cuda/bf16x8.cuh"
#include "kernels/cuda/enqueue.cuh"
#include "kernels/cuda/gates.cuh"

namespace weir::cuda {
namespace {

constexpr int kThreads = 256;

// A block has kThreads vectors of one row; |chunks| blocks make a row.
struct SiluMulLaunch {
  SiluMulParams p;
  uint32_t chunks;
};

__global__ void __launch_bounds__(kThreads) SiluMulKernel(const SiluMulLaunch launch) {
  const SiluMulParams& p = launch.p;
  TriggerDependents();
  WaitForPredecessor();
  if (p.gate.used() && blockIdx.x == 0) return RunGateBlock(p.gate);
  const uint32_t block = blockIdx.x - (p.gate.used() ? 1 : 0);
  const uint32_t row = block / launch.chunks;
  const int64_t column =
      (int64_t{block - row * launch.chunks} * kThreads + threadIdx.x) * kVector;
  if (column >= p.f) return;
  const Bf16* from = p.gate_up + row * (2 * p.f) + column;
  float gate[kVector], up[kVector];
  const uint4 gate_packed = *reinterpret_cast<const uint4*>(from);
  const uint4 up_packed = *reinterpret_cast<const uint4*>(from + p.f);
  Unpack(gate_packed, gate);
  Unpack(up_packed, up);
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    gate[i] = __fdividef(gate[i], 1.0f + __expf(-gate[i])) * up[i];
  }
  *reinterpret_cast<uint4*>(p.y + row * p.f + column) = Pack(gate);
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
  const int64_t per_block = int64_t{kThreads} * kVector;
  const int64_t chunks = (p.f + per_block - 1) / per_block;
  if (p.m > std::numeric_limits<int32_t>::max() / chunks) {
    return LaunchStatus::Invalid("silu: too many rows: " + std::to_string(p.m));
  }
  return Enqueue("silu", SiluMulKernel, p.m * chunks + GateBlocks(p.gate), kThreads,
                 launch, SiluMulLaunch{p, static_cast<uint32_t>(chunks)});
}

}  // namespace weir::cuda
