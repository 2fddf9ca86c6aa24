// Made-up weights: benchmarks and tests need a model's sizes, not its values.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/cuda/launch.h"

namespace weir::cuda {

// Value |index| of the stream |seed|, in bf16 bits: roughly normal with mean 0, standard deviation
// |scale|, never beyond 3.5 of them. A function of nothing else, with the same bits on host and
// device: integers, one exact conversion, one product, one rounding.
//
// The sum of four 16-bit uniform numbers (Irwin-Hall) from a SplitMix64 output (Steele et al.
// 2014).
constexpr uint64_t SplitMix64(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
constexpr float NormalFactor(float scale) {
  return scale * (1.0f / 37837.22f);  // the sum's standard deviation
}
constexpr uint16_t NormalBits(uint64_t seed, uint64_t index, float factor) {
  const uint64_t z = SplitMix64(SplitMix64(seed) + (index + 1) * 0x9e3779b97f4a7c15u);
  const auto sum =
      static_cast<int32_t>((z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48));
  const float value = static_cast<float>(sum - 131070) * factor;
  const auto u = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// dst[i] = NormalBits(seed, first_index + i, NormalFactor(scale)): a tensor can be made in pieces.
struct FillNormalParams {
  Bf16* dst = nullptr;  // 16-byte aligned
  int64_t count = 0;
  uint64_t seed = 0;
  uint64_t first_index = 0;
  float scale = 1;  // finite
};
LaunchStatus FillNormal(const FillNormalParams& params, const Launch& launch);

// dst[i] = value (norm weights).
LaunchStatus FillFloat(float* dst, int64_t count, float value, const Launch& launch);

}  // namespace weir::cuda
