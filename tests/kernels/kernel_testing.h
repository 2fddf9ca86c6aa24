#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/thread_pool.h"

namespace weir::cpu::testing {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Seeded values around zero.
class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  float Value(float scale = 1.0f) {
    return scale * std::normal_distribution<float>(0.0f, 1.0f)(engine_);
  }
  int64_t Int(int64_t low, int64_t high) {  // inclusive
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  std::vector<float> Values(int64_t n, float scale = 1.0f) {
    std::vector<float> v(static_cast<size_t>(n));
    for (float& x : v) x = Value(scale);
    return v;
  }
  std::mt19937& engine() { return engine_; }

 private:
  std::mt19937 engine_;
};

inline std::vector<float> Nans(int64_t n) {
  return std::vector<float>(static_cast<size_t>(n), kNan);
}

// Sets the instruction set for a scope.
class ScopedIsa {
 public:
  explicit ScopedIsa(Isa isa) : before_(ActiveIsa()) { EXPECT_TRUE(SetActiveIsa(isa)); }
  ~ScopedIsa() { SetActiveIsa(before_); }

 private:
  Isa before_;
};

// Runs `compute` (a function of a pool that returns a vector<float>) under every supported
// instruction set with 1, 2 and 3 threads; expects the same bits each time and returns them.
template <typename Compute>
std::vector<float> SameBitsEverywhere(const Compute& compute) {
  std::vector<float> first;
  for (const Isa isa : SupportedIsas()) {
    const ScopedIsa scoped(isa);
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      std::vector<float> got = compute(pool);
      if (first.empty()) {
        first = std::move(got);
        continue;
      }
      EXPECT_EQ(first.size(), got.size());
      for (size_t i = 0; i < first.size(); ++i) {
        if (std::memcmp(&first[i], &got[i], sizeof(float)) == 0) continue;
        ADD_FAILURE() << IsaName(isa) << ", " << threads << " threads: value " << i << " is "
                      << got[i] << ", elsewhere " << first[i];
        break;
      }
    }
  }
  return first;
}

inline void ExpectSameBits(const float* a, const float* b, int64_t n, const std::string& what) {
  for (int64_t i = 0; i < n; ++i) {
    ASSERT_EQ(std::memcmp(a + i, b + i, sizeof(float)), 0)
        << what << ": value " << i << " is " << a[i] << " and " << b[i];
  }
}

inline float RoundToBf16(float f) {
  return Bf16ToFloat(FloatToBf16(f));
}

}  // namespace weir::cpu::testing
