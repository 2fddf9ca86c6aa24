// A warp's products and copies that CUDA C++ has no names for, from sm_80 on: PTX ISA 7.8, sections
// "mma", "ldmatrix", "movmatrix" and "cp.async". Lane l of a warp has g = l / 4 and t = l % 4.
#pragma once

#include <cstdint>

namespace weir::cuda::warp {

// Four 8 x 8 matrices of 16-bit values. Lane l gives the address of row l % 8 of matrix l / 8 (16
// bytes in shared memory); the lane gets of matrix i the values (g, 2 t) and (g, 2 t + 1).
__device__ __forceinline__ void LoadMatrices(const void* row, uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// As LoadMatrices, each matrix transposed: the values (2 t, g) and (2 t + 1, g).
__device__ __forceinline__ void LoadTransposed(const void* row, uint32_t (&m)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// An 8 x 8 matrix of 16-bit values, held as LoadMatrices gives it, transposed.
__device__ __forceinline__ uint32_t Transposed(uint32_t m) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(m));
  return result;
}

// d[16, 8] += a[16, 16] · b[16, 8], bf16 into float. The lane has
//   of a: (g, 2 t), (g + 8, 2 t), (g, 2 t + 8), (g + 8, 2 t + 8), each with its right neighbour;
//   of b: (2 t, g), (2 t + 8, g), each with the one below;
//   of d: (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
__device__ __forceinline__ void Product(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats rounded to bf16, |low| in the lower half.
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// 2^x; 2^-infinity is 0.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Begins to copy 16 bytes to shared memory, or to fill them with zeros, which reads nothing.
__device__ __forceinline__ void CopyAsync(void* to, const void* from, bool copy) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(copy ? 16 : 0)
               : "memory");
}

// 8 bytes.
__device__ __forceinline__ void CopyAsync8(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}

// Copies that this thread began since the last commit become a group.
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until at most the last kGroups groups of this thread are under way.
template <int kGroups>
__device__ __forceinline__ void AwaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

}  // namespace weir::cuda::warp
