// What the tests of the row kernels share.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "tests/kernels/cuda/device_testing.h"

namespace weir::cuda::testing {

// Seeded values, normal around 0.
class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  std::vector<uint16_t> Bf16s(int64_t n, float scale = 1) {
    std::vector<uint16_t> v(static_cast<size_t>(n));
    for (uint16_t& x : v) x = cpu::FloatToBf16(scale * normal_(engine_));
    return v;
  }
  std::vector<float> Floats(int64_t n, float mean = 0) {
    std::vector<float> v(static_cast<size_t>(n));
    for (float& x : v) x = mean + normal_(engine_);
    return v;
  }
  int32_t Int(int32_t low, int32_t high) {  // inclusive
    return std::uniform_int_distribution<int32_t>(low, high)(engine_);
  }
  std::mt19937& engine() { return engine_; }

 private:
  std::mt19937 engine_;
  std::normal_distribution<float> normal_;
};

inline std::vector<float> Widen(const std::vector<uint16_t>& v) {
  std::vector<float> wide(v.size());
  for (size_t i = 0; i < v.size(); ++i) wide[i] = cpu::Bf16ToFloat(v[i]);
  return wide;
}

// |got| is |want|, computed in float in another order and rounded to bf16: half a bf16 step, and
// what the float error may add. |floor|: absolute error of the float computation.
inline bool IsRounded(uint16_t got, float want, float floor) {
  const float value = cpu::Bf16ToFloat(got);
  return std::isfinite(value) &&
         std::abs(value - want) <= std::abs(want) * (0x1p-8f + 0x1p-16f) + floor;
}

// For ASSERT_TRUE: says why a launch was refused.
inline ::testing::AssertionResult Launched(const LaunchStatus& status) {
  if (status.ok()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << status.message();
}

}  // namespace weir::cuda::testing
