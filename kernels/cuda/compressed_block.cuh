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
    const uint4 head = vectors[compressed::kHeaderAt / 16];
    word0_ = head.x;
    values_[0] = head.y;
    values_[1] = head.z;
  }

  // Weights i = 2 p and 2 p + 1 are the halves of a[p - first], the low one first. |first|: a
  // multiple of kQuarterWords, and a constant where this is inlined.
  template <int kCount>
  __device__ __forceinline__ void Unpack(int first, uint32_t (&a)[kCount]) const {
    static_assert(kCount % kQuarterWords == 0);
    const uint32_t low[8] = {low_.x, low_.y, low_.z, low_.w, high_.x, high_.y, high_.z, high_.w};
    const uint32_t codes[4] = {codes_.x, codes_.y, codes_.z, codes_.w};
#pragma unroll
    for (int i = 0; i < kCount; i += kQuarterWords) {
      const int quarter = (first + i) / kQuarterWords;
      const uint32_t code = codes[quarter];
      const uint32_t which = code & 0x77777777u;
      // The high bytes of the first four weights and of the others.
      const uint32_t one = Look(which) | (code & 0x80808080u);
      const uint32_t two = Look(which >> 16) | (code << 4 & 0x80808080u);
      a[i] = __byte_perm(low[2 * quarter], one, 0x5140);
      a[i + 1] = __byte_perm(low[2 * quarter], one, 0x7362);
      a[i + 2] = __byte_perm(low[2 * quarter + 1], two, 0x5140);
      a[i + 3] = __byte_perm(low[2 * quarter + 1], two, 0x7362);
    }
    const uint32_t t = threadIdx.x % compressed::kThreads;
    if ((word0_ >> (8 + t / 32) & 1) == 0) return;
    const uint32_t end = compressed::kFirstPatch + (word0_ >> 16);
#pragma unroll 1
    for (uint32_t j = compressed::kFirstPatch; j < end; ++j) {
      const uint32_t patch = header_[j];
      const uint32_t at = (patch >> 9 & 0xf) - static_cast<uint32_t>(first);
      if ((patch & 0xff) != t || at >= kCount) continue;
      // A patched weight has the first value now.
      const uint32_t x = ((patch >> 16 ^ values_[0]) & 0x7f) << ((patch >> 8 & 1) != 0 ? 24 : 8);
      // Every a[i] in turn: an index that is not a constant would put a[] into memory.
#pragma unroll
      for (uint32_t i = 0; i < kCount; ++i) a[i] ^= i == at ? x : 0;
    }
  }

 private:
  // The values of four codes in the lower half of |which|, whose bits 3 of 4 are 0: there they would
  // ask for something else. (__byte_perm clears them itself, at the price of an instruction.)
  __device__ __forceinline__ uint32_t Look(uint32_t which) const {
    uint32_t bytes = 0;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(values_[0]), "r"(values_[1]), "r"(which));
    return bytes;
  }

  const uint32_t* header_;
  uint4 low_, high_, codes_;
  uint32_t word0_;
  uint32_t values_[2];
};

}  // namespace weir::cuda
