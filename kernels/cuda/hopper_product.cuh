// Hopper's warpgroup products. For sm_90a only; PTX ISA 8.0 and later, section "wgmma".
#pragma once

#include <cstdint>

namespace weir::cuda::hopper {

__device__ __forceinline__ void ProductFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void ProductCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until all but the last |kLeft| groups that were committed are done.
template <int kLeft = 0>
__device__ __forceinline__ void ProductWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

// The first so many registers of d, as names in the instruction and as operands.
#define WEIR_D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define WEIR_NAMES_4 "%0, %1, %2, %3"
#define WEIR_VALUES_4 WEIR_D4(0)
#define WEIR_NAMES_8 WEIR_NAMES_4 ", %4, %5, %6, %7"
#define WEIR_VALUES_8 WEIR_VALUES_4, WEIR_D4(4)
#define WEIR_NAMES_16 WEIR_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WEIR_VALUES_16 WEIR_VALUES_8, WEIR_D4(8), WEIR_D4(12)
#define WEIR_NAMES_32 \
  WEIR_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, " \
  "%30, %31"
#define WEIR_VALUES_32 WEIR_VALUES_16, WEIR_D4(16), WEIR_D4(20), WEIR_D4(24), WEIR_D4(28)
#define WEIR_NAMES_40 WEIR_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define WEIR_VALUES_40 WEIR_VALUES_32, WEIR_D4(32), WEIR_D4(36)
#define WEIR_NAMES_48 WEIR_NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define WEIR_VALUES_48 WEIR_VALUES_40, WEIR_D4(40), WEIR_D4(44)
#define WEIR_NAMES_56 WEIR_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define WEIR_VALUES_56 WEIR_VALUES_48, WEIR_D4(48), WEIR_D4(52)
#define WEIR_NAMES_64 WEIR_NAMES_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define WEIR_VALUES_64 WEIR_VALUES_56, WEIR_D4(56), WEIR_D4(60)
#define WEIR_NAMES_72 WEIR_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define WEIR_VALUES_72 WEIR_VALUES_64, WEIR_D4(64), WEIR_D4(68)
#define WEIR_NAMES_80 WEIR_NAMES_72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define WEIR_VALUES_80 WEIR_VALUES_72, WEIR_D4(72), WEIR_D4(76)
#define WEIR_NAMES_88 WEIR_NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define WEIR_VALUES_88 WEIR_VALUES_80, WEIR_D4(80), WEIR_D4(84)
#define WEIR_NAMES_96 WEIR_NAMES_88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define WEIR_VALUES_96 WEIR_VALUES_88, WEIR_D4(88), WEIR_D4(92)
#define WEIR_NAMES_100 WEIR_NAMES_96 ", %96, %97, %98, %99"
#define WEIR_VALUES_100 WEIR_VALUES_96, WEIR_D4(96)
#define WEIR_NAMES_104 WEIR_NAMES_100 ", %100, %101, %102, %103"
#define WEIR_VALUES_104 WEIR_VALUES_100, WEIR_D4(100)
#define WEIR_NAMES_112 \
  WEIR_NAMES_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, " \
  "%109, %110, %111"
#define WEIR_VALUES_112 WEIR_VALUES_96, WEIR_D4(96), WEIR_D4(100), WEIR_D4(104), WEIR_D4(108)
#define WEIR_NAMES_120 WEIR_NAMES_112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define WEIR_VALUES_120 WEIR_VALUES_112, WEIR_D4(112), WEIR_D4(116)
#define WEIR_NAMES_128 \
  WEIR_NAMES_112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, " \
  "%124, %125, %126, %127"
#define WEIR_VALUES_128 WEIR_VALUES_112, WEIR_D4(112), WEIR_D4(116), WEIR_D4(120), WEIR_D4(124)

// d[64, kN] += a[64, 16] · b[kN, 16]ᵀ, bf16 into float, by the 128 threads of a warpgroup. Thread
// t has of element i: row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) +
// i % 2.
template <int kN>
__device__ __forceinline__ void Product(float (&d)[kN / 2], uint64_t a, uint64_t b) {
  static_assert(kN == 8 || kN == 16 || kN == 32 || kN == 64);
#define WEIR_PRODUCT(n, count, a_name, b_name)                                                   \
  if constexpr (kN == n) {                                                                       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" WEIR_NAMES_##count \
                 "}, %" #a_name ", %" #b_name ", 1, 1, 1, 0, 0;"                                 \
                 : WEIR_VALUES_##count                                                           \
                 : "l"(a), "l"(b));                                                              \
  }
  WEIR_PRODUCT(8, 4, 4, 5)
  WEIR_PRODUCT(16, 8, 8, 9)
  WEIR_PRODUCT(32, 16, 16, 17)
  WEIR_PRODUCT(64, 32, 32, 33)
#undef WEIR_PRODUCT
}

// The same with |a| in registers: thread t has of four words pairs of columns 2 (t % 4) and + 1 of
// rows 16 (t / 32) + t % 32 / 4, + 8, and of columns 8 further of both rows.
template <int kN>
__device__ __forceinline__ void Product(float (&d)[kN / 2], const uint32_t* a, uint64_t b) {
  static_assert(kN == 8 || kN == 16 || kN == 32 || (kN >= 64 && kN <= 256 && kN % 16 == 0) ||
                kN == 200);
#define WEIR_PRODUCT(n, count, a0, a1, a2, a3, b_name)                                           \
  if constexpr (kN == n) {                                                                       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" WEIR_NAMES_##count \
                 "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b_name ", 1, 1, 1, 0;"        \
                 : WEIR_VALUES_##count                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                          \
  }
  WEIR_PRODUCT(8, 4, 4, 5, 6, 7, 8)
  WEIR_PRODUCT(16, 8, 8, 9, 10, 11, 12)
  WEIR_PRODUCT(32, 16, 16, 17, 18, 19, 20)
  WEIR_PRODUCT(64, 32, 32, 33, 34, 35, 36)
  WEIR_PRODUCT(80, 40, 40, 41, 42, 43, 44)
  WEIR_PRODUCT(96, 48, 48, 49, 50, 51, 52)
  WEIR_PRODUCT(112, 56, 56, 57, 58, 59, 60)
  WEIR_PRODUCT(128, 64, 64, 65, 66, 67, 68)
  WEIR_PRODUCT(144, 72, 72, 73, 74, 75, 76)
  WEIR_PRODUCT(160, 80, 80, 81, 82, 83, 84)
  WEIR_PRODUCT(176, 88, 88, 89, 90, 91, 92)
  WEIR_PRODUCT(192, 96, 96, 97, 98, 99, 100)
  WEIR_PRODUCT(200, 100, 100, 101, 102, 103, 104)
  WEIR_PRODUCT(208, 104, 104, 105, 106, 107, 108)
  WEIR_PRODUCT(224, 112, 112, 113, 114, 115, 116)
  WEIR_PRODUCT(240, 120, 120, 121, 122, 123, 124)
  WEIR_PRODUCT(256, 128, 128, 129, 130, 131, 132)
#undef WEIR_PRODUCT
}

#undef WEIR_D4
#undef WEIR_NAMES_4
#undef WEIR_VALUES_4
#undef WEIR_NAMES_8
#undef WEIR_VALUES_8
#undef WEIR_NAMES_16
#undef WEIR_VALUES_16
#undef WEIR_NAMES_32
#undef WEIR_VALUES_32
#undef WEIR_NAMES_40
#undef WEIR_VALUES_40
#undef WEIR_NAMES_48
#undef WEIR_VALUES_48
#undef WEIR_NAMES_56
#undef WEIR_VALUES_56
#undef WEIR_NAMES_64
#undef WEIR_VALUES_64
#undef WEIR_NAMES_72
#undef WEIR_VALUES_72
#undef WEIR_NAMES_80
#undef WEIR_VALUES_80
#undef WEIR_NAMES_88
#undef WEIR_VALUES_88
#undef WEIR_NAMES_96
#undef WEIR_VALUES_96
#undef WEIR_NAMES_100
#undef WEIR_VALUES_100
#undef WEIR_NAMES_104
#undef WEIR_VALUES_104
#undef WEIR_NAMES_112
#undef WEIR_VALUES_112
#undef WEIR_NAMES_120
#undef WEIR_VALUES_120
#undef WEIR_NAMES_128
#undef WEIR_VALUES_128

}  // namespace weir::cuda::hopper
