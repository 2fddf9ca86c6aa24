// Hopper's instructions that CUDA C++ has no names for: barriers in shared memory, bulk tensor
// copies, operands of warpgroup products (hopper_product.cuh). For sm_90a only; PTX ISA 8.0 and
// later, sections "mbarrier", "cp.async.bulk.tensor" and "wgmma".
#pragma once

#include <cstdint>

#include <cuda.h>

namespace weir::cuda::hopper {

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void InitBarrier(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals));
}

// Initialised barriers become visible to the copy engine.
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// What this thread knows of device memory holds for its bulk copies from there as well.
__device__ __forceinline__ void FenceBulkReads() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

__device__ __forceinline__ void Arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}

// Arrives, and lets the phase end only when |bytes| have been copied in as well.
__device__ __forceinline__ void ArriveExpecting(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}

// Until the phase of |parity| has ended.
__device__ __forceinline__ void Await(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "AGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni OVER;\n"
      "bra.uni AGAIN;\n"
      "OVER:\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// As Await, when other blocks of the cluster have written what comes with the phase.
__device__ __forceinline__ void AwaitCluster(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "AGAIN:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni OVER;\n"
      "bra.uni AGAIN;\n"
      "OVER:\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// Adds to a word in device memory and gives what it was. What this thread knows of is seen by who
// adds after it.
__device__ __forceinline__ uint32_t AddInTurn(uint32_t* word, uint32_t value) {
  uint32_t old;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(word), "r"(value)
               : "memory");
  return old;
}

__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ uint32_t ClusterSize() {
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// Barriers of all threads of a cluster, whole warps at once, each arriving before it waits. This
// one orders no memory accesses of this thread: enough for initialised barriers behind their fence.
__device__ __forceinline__ void ClusterArriveRelaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void ClusterWait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Where |p| of this block is in block |rank| of the cluster.
__device__ __forceinline__ uint32_t InBlock(const void* p, uint32_t rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(SharedAddress(p)), "r"(rank));
  return address;
}

// |barrier|: as InBlock gives it.
__device__ __forceinline__ void ArriveAt(uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier)
               : "memory");
}

// Stores into another block; the 16 bytes count for |barrier| of that block.
__device__ __forceinline__ void StoreAt(uint32_t to, float a, float b, float c, float d,
                                        uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "f"(a), "f"(b), "f"(c), "f"(d), "r"(barrier)
      : "memory");
}

// As above, of 4 bytes.
__device__ __forceinline__ void StoreAt(uint32_t to, float value, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(to),
      "f"(value), "r"(barrier)
      : "memory");
}

// A box of a two-dimensional tensor at (|column|, |row|) into shared memory; the box's bytes count
// for |barrier|. |policy|: of the L2 cache.
__device__ __forceinline__ void CopyBox(void* to, const CUtensorMap* map, int32_t column,
                                        int32_t row, uint64_t* barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(SharedAddress(to)),
      "l"(map), "r"(column), "r"(row), "r"(SharedAddress(barrier)), "l"(policy)
      : "memory");
}

// |bytes|, a multiple of 16, from device memory; as CopyBox.
__device__ __forceinline__ void CopyBytes(void* to, const void* from, uint32_t bytes,
                                          uint64_t* barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1], %2, [%3], %4;" ::"r"(SharedAddress(to)),
      "l"(from), "r"(bytes), "r"(SharedAddress(barrier)), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void PrefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ uint64_t PolicyEvictFirst() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ uint64_t PolicyEvictLast() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// The descriptor of a K-major operand whose rows are 128 bytes, swizzled over groups of eight rows
// (CU_TENSOR_MAP_SWIZZLE_128B) that follow one another. |p| is 1,024-byte aligned, or 32 bytes
// times k / 16 further.
__device__ __forceinline__ uint64_t SwizzledOperand(const void* p) {
  constexpr uint64_t kGroupBytes = 1024;
  return ((SharedAddress(p) & 0x3ffffu) >> 4) | (uint64_t{1} << 16) | ((kGroupBytes >> 4) << 32) |
         (uint64_t{1} << 62);
}

// All threads of a warpgroup: so many registers each from now on. What some give, others may take.
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace weir::cuda::hopper
