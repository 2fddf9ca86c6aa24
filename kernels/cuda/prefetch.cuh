// Device side of prefetch.h, and of all blocks that ride in front of a kernel's own: the gate's,
// then the prefetch's. A kernel with both does, before anything else,
//
//   WaitForPredecessor();
//   if (blockIdx.x < riders) return RunRider(gate, prefetch, riders);
//
// and is launched with riders = Riders(gate, prefetch) blocks more, of at least 64 threads each.
#pragma once

#include "kernels/cuda/gates.cuh"
#include "kernels/cuda/prefetch.h"

namespace weir::cuda {

inline uint32_t Riders(const GatePoint& gate, const WeightPrefetch& prefetch) {
  return static_cast<uint32_t>(GateBlocks(gate) + PrefetchBlocks(prefetch));
}

// Block |block| of |blocks|: rows in turns, so that all multiprocessors ask for neighbours. A warp
// asks for a row at a time, since a bulk request is one thread's.
__device__ inline void RunPrefetchBlock(const WeightPrefetch& p, uint32_t block, uint32_t blocks) {
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x % 32 != 0) return;
  // No acquire: no byte is looked at, and what is in L2 follows later writes.
  if (p.gate.chunk != nullptr && gates::LoadRelaxed(p.gate.produced) < gates::NeededOf(p.gate)) {
    return;
  }
  const auto* at = reinterpret_cast<const char*>(p.weights);
  const uint32_t warps = blockDim.x / 32;
  const auto bytes = static_cast<uint32_t>(p.row_bytes);
  for (int64_t row = int64_t{threadIdx.x / 32} * blocks + block; row < p.rows;
       row += int64_t{warps} * blocks) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at + row * p.stride), "r"(bytes)
                 : "memory");
  }
#endif
}

__device__ inline void RunRider(const GatePoint& gate, const WeightPrefetch& prefetch,
                                uint32_t riders) {
  const uint32_t gate_blocks = gate.used() ? 1 : 0;
  if (blockIdx.x < gate_blocks) return RunGateBlock(gate);
  RunPrefetchBlock(prefetch, blockIdx.x - gate_blocks, riders - gate_blocks);
}

}  // namespace weir::cuda
