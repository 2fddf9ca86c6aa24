// Hopper's instructions that CUDA C++ has no names for: barriers in shared memory, bulk tensor
// copies, warpgroup products. For sm_90a only; PTX ISA 8.0 and later, sections "mbarrier",
// "cp.async.bulk.tensor" and "wgmma".
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

__device__ __forceinline__ void ProductFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void ProductCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void ProductWait() {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// d[64, kN] += a[64, 16] · b[kN, 16]ᵀ, bf16 into float, by the 128 threads of a warpgroup. Thread
// t has of element i: row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) +
// i % 2.
template <int kN>
__device__ __forceinline__ void Product(float (&d)[kN / 2], uint64_t a, uint64_t b) {
  static_assert(kN == 8 || kN == 16 || kN == 32 || kN == 64);
#define WEIR_D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
  if constexpr (kN == 8) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, "
        "0;"
        : WEIR_D4(0)
        : "l"(a), "l"(b));
  } else if constexpr (kN == 16) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, "
        "%8, %9, 1, 1, 1, 0, 0;"
        : WEIR_D4(0), WEIR_D4(4)
        : "l"(a), "l"(b));
  } else if constexpr (kN == 32) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
        "%9, %10, %11, %12, %13, %14, %15}, %16, %17, 1, 1, 1, 0, 0;"
        : WEIR_D4(0), WEIR_D4(4), WEIR_D4(8), WEIR_D4(12)
        : "l"(a), "l"(b));
  } else {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
        "%9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, "
        "%27, %28, %29, %30, %31}, %32, %33, 1, 1, 1, 0, 0;"
        : WEIR_D4(0), WEIR_D4(4), WEIR_D4(8), WEIR_D4(12), WEIR_D4(16), WEIR_D4(20), WEIR_D4(24),
          WEIR_D4(28)
        : "l"(a), "l"(b));
  }
#undef WEIR_D4
}

// The same with |a| in registers: thread t has of four words pairs of columns 2 (t % 4) and + 1 of
// rows 16 (t / 32) + t % 32 / 4, + 8, and of columns 8 further of both rows.
template <int kN>
__device__ __forceinline__ void Product(float (&d)[kN / 2], const uint32_t* a, uint64_t b) {
#define WEIR_D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define WEIR_A4 "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
  if constexpr (kN == 8) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "%8, 1, 1, 1, 0;"
        : WEIR_D4(0)
        : WEIR_A4, "l"(b));
  } else if constexpr (kN == 16) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, "
        "{%8, %9, %10, %11}, %12, 1, 1, 1, 0;"
        : WEIR_D4(0), WEIR_D4(4)
        : WEIR_A4, "l"(b));
  } else if constexpr (kN == 32) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
        "%9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
        : WEIR_D4(0), WEIR_D4(4), WEIR_D4(8), WEIR_D4(12)
        : WEIR_A4, "l"(b));
  } else if constexpr (kN == 64) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
        "%9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, "
        "%27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
        : WEIR_D4(0), WEIR_D4(4), WEIR_D4(8), WEIR_D4(12), WEIR_D4(16), WEIR_D4(20), WEIR_D4(24),
          WEIR_D4(28)
        : WEIR_A4, "l"(b));
  } else if constexpr (kN == 96) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, "
        "%9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, "
        "%27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, "
        "%45, %46, %47}, {%48, %49, %50, %51}, %52, 1, 1, 1, 0;"
        : WEIR_D4(0), WEIR_D4(4), WEIR_D4(8), WEIR_D4(12), WEIR_D4(16), WEIR_D4(20), WEIR_D4(24),
          WEIR_D4(28), WEIR_D4(32), WEIR_D4(36), WEIR_D4(40), WEIR_D4(44)
        : WEIR_A4, "l"(b));
  } else if constexpr (kN == 128) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, "
        "%26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
        "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
        "%62, %63}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
        : WEIR_D4(0), WEIR_D4(4), WEIR_D4(8), WEIR_D4(12), WEIR_D4(16), WEIR_D4(20), WEIR_D4(24),
          WEIR_D4(28), WEIR_D4(32), WEIR_D4(36), WEIR_D4(40), WEIR_D4(44), WEIR_D4(48), WEIR_D4(52),
          WEIR_D4(56), WEIR_D4(60)
        : WEIR_A4, "l"(b));
  } else if constexpr (kN == 160) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n160k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, "
        "%26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
        "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
        "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, "
        "%79}, {%80, %81, %82, %83}, %84, 1, 1, 1, 0;"
        : WEIR_D4(0), WEIR_D4(4), WEIR_D4(8), WEIR_D4(12), WEIR_D4(16), WEIR_D4(20), WEIR_D4(24),
          WEIR_D4(28), WEIR_D4(32), WEIR_D4(36), WEIR_D4(40), WEIR_D4(44), WEIR_D4(48), WEIR_D4(52),
          WEIR_D4(56), WEIR_D4(60), WEIR_D4(64), WEIR_D4(68), WEIR_D4(72), WEIR_D4(76)
        : WEIR_A4, "l"(b));
  } else if constexpr (kN == 192) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, "
        "%26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
        "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
        "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, {%96, "
        "%97, %98, %99}, %100, 1, 1, 1, 0;"
        : WEIR_D4(0), WEIR_D4(4), WEIR_D4(8), WEIR_D4(12), WEIR_D4(16), WEIR_D4(20), WEIR_D4(24),
          WEIR_D4(28), WEIR_D4(32), WEIR_D4(36), WEIR_D4(40), WEIR_D4(44), WEIR_D4(48), WEIR_D4(52),
          WEIR_D4(56), WEIR_D4(60), WEIR_D4(64), WEIR_D4(68), WEIR_D4(72), WEIR_D4(76), WEIR_D4(80),
          WEIR_D4(84), WEIR_D4(88), WEIR_D4(92)
        : WEIR_A4, "l"(b));
  } else if constexpr (kN == 256) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, "
        "%26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
        "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
        "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "
        "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, "
        "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
        "%127}, {%128, %129, %130, %131}, %132, 1, 1, 1, 0;"
        : WEIR_D4(0), WEIR_D4(4), WEIR_D4(8), WEIR_D4(12), WEIR_D4(16), WEIR_D4(20), WEIR_D4(24),
          WEIR_D4(28), WEIR_D4(32), WEIR_D4(36), WEIR_D4(40), WEIR_D4(44), WEIR_D4(48), WEIR_D4(52),
          WEIR_D4(56), WEIR_D4(60), WEIR_D4(64), WEIR_D4(68), WEIR_D4(72), WEIR_D4(76), WEIR_D4(80),
          WEIR_D4(84), WEIR_D4(88), WEIR_D4(92), WEIR_D4(96), WEIR_D4(100), WEIR_D4(104),
          WEIR_D4(108), WEIR_D4(112), WEIR_D4(116), WEIR_D4(120), WEIR_D4(124)
        : WEIR_A4, "l"(b));
  } else {
    static_assert(kN == 0, "no product of so many columns");
  }
#undef WEIR_A4
#undef WEIR_D4
}

}  // namespace weir::cuda::hopper
