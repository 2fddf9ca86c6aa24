// A thread's part of a block of kernels/compressed_weights.h. Internal.
#pragma once

#include <cstdint>

#include "kernels/compressed_weights.h"

namespace weir::cuda {

// The 32 weights of thread threadIdx.x % 256 of 256 in a block that is 16-byte aligned in shared or
// device memory: read at once, unpacked at once or by quarters, of which a product of 16 columns
// takes one.
class PackedWeights {
 public:
  static constexpr int kWords = compressed::kWeightsPerThread / 2;
  static constexpr int kQuarterWords = kWords / 4;

  __device__ __forceinline__ explicit PackedWeights(const uint8_t* block)
      : header_(reinterpret_cast<const uint32_t*>(block + compressed::kHeaderAt)) {
    const uint32_t t = threadIdx.x % compressed::kThreads;
    const auto* vectors = reinterpret_cast<const uint4*>(block);
    codes_ = vectors[compressed::kCodesAt / 16 + t];
    low_ = vectors[t];
    high_ = vectors[compressed::kThreads + t];
    word0_ = header_[0];
  }

  // Weights i = 2 p and 2 p + 1 are the halves of a[p - first], the low one first. |first|: a
  // multiple of kQuarterWords, and a constant where this is inlined.
  template <int kCount>
  __device__ __forceinline__ void Unpack(int first, uint32_t (&a)[kCount]) const {
    static_assert(kCount % kQuarterWords == 0);
    const uint32_t signs[8] = {low_.x,  low_.y,  low_.z,  low_.w,
                               high_.x, high_.y, high_.z, high_.w};
    const uint32_t codes[kWords / kQuarterWords] = {codes_.x, codes_.y, codes_.z, codes_.w};
    const uint32_t base = word0_ & 0xff;
    const uint32_t base2 = base * 0x00800080u;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int p = first + i;
      const uint32_t v = __byte_perm(signs[p / 2], 0, p % 2 != 0 ? 0x3322 : 0x1100);
      const uint32_t n = p % 4 < 2 ? codes[p / 4] : codes[p / 4] >> 8;
      // Base and code add up to 255 at most: nothing runs over from half to half.
      const uint32_t e =
          p % 2 == 0 ? (n & 0x000f000fu) * 128 + base2 : (n & 0x00f000f0u) * 8 + base2;
      a[i] = (v & 0x807f807fu) | e;
    }
    const uint32_t t = threadIdx.x % compressed::kThreads;
    if ((word0_ >> (8 + t / 32) & 1) == 0) return;
    const uint32_t patches = word0_ >> 16;
#pragma unroll 1
    for (uint32_t j = 1; j <= patches; ++j) {
      const uint32_t patch = header_[j];
      const uint32_t at = (patch >> 9 & 0xf) - static_cast<uint32_t>(first);
      if ((patch & 0xff) != t || at >= kCount) continue;
      // A patched weight has code 0, so it has exponent |base| now.
      const uint32_t x = ((patch >> 16 & 0xff) ^ base) << ((patch >> 8 & 1) != 0 ? 23 : 7);
      // Every a[p] in turn: an index that is not a constant would put a[] into memory.
#pragma unroll
      for (uint32_t i = 0; i < kCount; ++i) a[i] ^= i == at ? x : 0;
    }
  }

 private:
  const uint32_t* header_;
  uint4 low_, high_, codes_;
  uint32_t word0_;
};

}  // namespace weir::cuda
