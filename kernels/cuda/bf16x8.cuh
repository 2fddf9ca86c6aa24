// Eight bf16 values, one 16-byte access.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>

namespace weir::cuda {

inline constexpr int kVector = 8;

// The widening of bf16 is exact: it is the upper half of a float.
__device__ __forceinline__ void Unpack(const uint4& packed, float (&x)[kVector]) {
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(words[i] << 16);
    x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

// Rounds to nearest even.
__device__ __forceinline__ uint4 Pack(const float (&x)[kVector]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
    words[i] = *reinterpret_cast<const uint32_t*>(&pair);
  }
  return {words[0], words[1], words[2], words[3]};
}

__device__ __forceinline__ void Load8(const float* p, float (&x)[kVector]) {
  const float4 low = reinterpret_cast<const float4*>(p)[0];
  const float4 high = reinterpret_cast<const float4*>(p)[1];
  x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
  x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}

}  // namespace weir::cuda
