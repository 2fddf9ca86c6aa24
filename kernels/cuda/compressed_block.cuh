// A thread's part of a block of kernels/compressed_weights.h. Internal.
#pragma once

#include <cstdint>

#include "kernels/compressed_weights.h"

namespace weir::cuda {

// The 32 weights of thread threadIdx.x % 256 of 256: weight i = 2 p is the low half of a[p],
// i = 2 p + 1 the high half. |block|: 16-byte aligned, in shared or device memory.
__device__ __forceinline__ void Unpack(const uint8_t* block,
                                       uint32_t (&a)[compressed::kWeightsPerThread / 2]) {
  constexpr int kPairs = compressed::kWeightsPerThread / 2;
  const uint32_t t = threadIdx.x % compressed::kThreads;
  const auto* vectors = reinterpret_cast<const uint4*>(block);
  const uint4 s0 = vectors[t];
  const uint4 s1 = vectors[compressed::kThreads + t];
  const uint4 c = vectors[compressed::kCodesAt / 16 + t];
  const auto* header = reinterpret_cast<const uint32_t*>(block + compressed::kHeaderAt);
  const uint32_t word0 = header[0];
  const uint32_t signs[kPairs / 2] = {s0.x, s0.y, s0.z, s0.w, s1.x, s1.y, s1.z, s1.w};
  const uint32_t codes[kPairs / 4] = {c.x, c.y, c.z, c.w};
  const uint32_t base = word0 & 0xff;
  const uint32_t base2 = base * 0x00800080u;
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const uint32_t v = __byte_perm(signs[p / 2], 0, p % 2 != 0 ? 0x3322 : 0x1100);
    const uint32_t n = p % 4 < 2 ? codes[p / 4] : codes[p / 4] >> 8;
    // Base and code add up to 255 at most: nothing runs over from half to half.
    const uint32_t e = p % 2 == 0 ? (n & 0x000f000fu) * 128 + base2 : (n & 0x00f000f0u) * 8 + base2;
    a[p] = (v & 0x807f807fu) | e;
  }
  if ((word0 >> (8 + t / 32) & 1) == 0) return;
  const uint32_t patches = word0 >> 16;
#pragma unroll 1
  for (uint32_t j = 1; j <= patches; ++j) {
    const uint32_t patch = header[j];
    if ((patch & 0xff) != t) continue;
    const uint32_t at = patch >> 9 & 0xf;
    // A patched weight has code 0, so it has exponent |base| now.
    const uint32_t x = ((patch >> 16 & 0xff) ^ base) << ((patch >> 8 & 1) != 0 ? 23 : 7);
    // Every a[p] in turn: an index that is not a constant would put a[] into memory.
#pragma unroll
    for (uint32_t p = 0; p < kPairs; ++p) a[p] ^= p == at ? x : 0;
  }
}

}  // namespace weir::cuda
