// Device side of gates.h. A kernel that carries a gate does, before anything else:
//
//   WaitForPredecessor();
//   if (gate.used() && blockIdx.x == 0) return RunGateBlock(gate);
//   const auto block = blockIdx.x - (gate.used() ? 1 : 0);
//
// and is launched with GateBlocks(gate) blocks more, of at least 64 threads each. A departure says
// that all kernels before this one have ended, which they have behind WaitForPredecessor().
#pragma once

#include "kernels/cuda/gates.h"

namespace weir::cuda {

inline int64_t GateBlocks(const GatePoint& gate) {
  return gate.used() ? 1 : 0;
}

namespace gates {

__device__ __forceinline__ uint64_t Now() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns)::"memory");
  return ns;
}

__device__ __forceinline__ uint64_t LoadAcquire(const uint64_t* p) {
  uint64_t value;
  asm volatile("ld.acquire.sys.u64 %0, [%1];" : "=l"(value) : "l"(p) : "memory");
  return value;
}

// While spinning: an acquire would empty this SM's L1 each time, under the blocks that work.
__device__ __forceinline__ uint64_t LoadRelaxed(const uint64_t* p) {
  uint64_t value;
  asm volatile("ld.relaxed.sys.u64 %0, [%1];" : "=l"(value) : "l"(p) : "memory");
  return value;
}

__device__ __forceinline__ void StoreRelease(uint64_t* p, uint64_t value) {
  asm volatile("st.release.sys.u64 [%0], %1;" ::"l"(p), "l"(value) : "memory");
}

__device__ __forceinline__ int32_t FailedGate(const StepLog* log) {
  return *const_cast<const volatile int32_t*>(&log->failed_gate);
}

// What |produced| must have come to before the weights are there; 0 where the gate is not armed.
// Past the caches of this multiprocessor: in a kernel that was launched early they may hold what an
// earlier step read there.
__device__ __forceinline__ uint64_t NeededOf(const WeightGate& gate) {
  const int32_t chunk = *const_cast<const volatile int32_t*>(gate.chunk);
  const uint64_t base = *const_cast<const volatile uint64_t*>(&gate.header->pass_base);
  return chunk < 0 ? 0 : base + static_cast<uint64_t>(chunk) + 1;
}

__device__ inline void Depart(const GateTable& table, int32_t gate) {
  const int32_t chunk = table.chunk_of_gate[gate];
  if (chunk < 0) return;
  const auto departed = static_cast<uint64_t>(chunk) + 1;
  StoreRelease(table.consumed, table.header->pass_base + departed);
  table.log->departed = static_cast<uint32_t>(departed);
}

// Waits until the chunk that makes |produced| >= |target| has come, the limit is reached, or the
// step has failed. Returns the time at which it stopped waiting.
__device__ inline uint64_t Wait(const GateTable& table, int32_t gate, uint64_t target,
                                uint64_t arrive_ns) {
  constexpr unsigned kPauseNs = 128;
  const uint64_t timeout_ns = table.header->timeout_ns;
  uint64_t now = arrive_ns;
  while (FailedGate(table.log) < 0) {
    if (LoadRelaxed(table.produced) >= target) {
      (void)LoadAcquire(table.produced);
      return Now();
    }
    now = Now();
    if (now - arrive_ns >= timeout_ns) {
      table.log->failed_gate = gate;
      break;
    }
    __nanosleep(kPauseNs);
  }
  return now;
}

__device__ inline void Arrive(const GateTable& table, int32_t gate) {
  const int32_t chunk = table.chunk_of_gate[gate];
  if (chunk < 0) {
    table.records[gate] = {};
    return;
  }
  StepLog* log = table.log;
  const uint64_t target = table.header->pass_base + static_cast<uint64_t>(chunk) + 1;
  const uint64_t arrive_ns = Now();
  uint64_t pass_ns = arrive_ns;
  if (LoadAcquire(table.produced) < target) {
    pass_ns = Wait(table, gate, target, arrive_ns);
    const uint64_t stall_ns = pass_ns - arrive_ns;
    log->faults += 1;
    log->stall_ns += stall_ns;
    if (stall_ns > log->max_stall_ns) log->max_stall_ns = stall_ns;
  }
  log->passed += 1;
  table.records[gate] = {arrive_ns, pass_ns};
}

}  // namespace gates

// Two warps side by side: the fence of a release must not hold the arrival up, and an arrival that
// waits must not hold the departure up, which the copy it waits for may need.
__device__ inline void RunGateBlock(const GatePoint& gate) {
  if (threadIdx.x == 32 && gate.depart >= 0) gates::Depart(gate.table, gate.depart);
  if (threadIdx.x == 0 && gate.arrive >= 0) gates::Arrive(gate.table, gate.arrive);
}

}  // namespace weir::cuda
