#include <utility>

#include "kernels/cpu/norm.h"
#include "kernels/cpu/rope.h"
#include "tests/kernels/kernel_testing.h"

namespace weir::cpu {
namespace {

using testing::Random;

TEST(RmsNormTest, MatchesTheReferenceAndIsTheSameEverywhere) {
  for (const int64_t h : {1, 8, 16, 63, 64, 576, 1001}) {
    const int64_t m = 9;
    const int64_t ld = h + 2;
    Random random(static_cast<uint32_t>(h));
    const std::vector<float> x = random.Values(m * ld, 3.0f);
    const std::vector<float> weight = random.Values(h);
    const std::vector<float> y = testing::SameBitsEverywhere([&](ThreadPool& pool) {
      std::vector<float> out = testing::Nans(m * h);
      RmsNorm({.x = x.data(),
               .ldx = ld,
               .weight = weight.data(),
               .eps = 1e-5f,
               .y = out.data(),
               .ldy = h,
               .m = m,
               .h = h},
              pool);
      return out;
    });
    for (int64_t i = 0; i < m; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < h; ++j) sum += std::pow(x[static_cast<size_t>(i * ld + j)], 2.0);
      const double scale = 1 / std::sqrt(sum / static_cast<double>(h) + 1e-5);
      for (int64_t j = 0; j < h; ++j) {
        const double expected =
            x[static_cast<size_t>(i * ld + j)] * scale * weight[static_cast<size_t>(j)];
        ASSERT_NEAR(y[static_cast<size_t>(i * h + j)], expected, 2e-6 * (1 + std::abs(expected)));
      }
    }
  }
}

TEST(RmsNormTest, HeadsInPlaceEqualRowsAndLeaveTheRestAlone) {
  const int64_t m = 5;
  const int64_t heads = 3;
  for (const int64_t dim : {8, 64, 80, 128}) {
    const int64_t stride = heads * dim + 40;
    Random random(static_cast<uint32_t>(dim));
    const std::vector<float> x = random.Values(m * stride);
    const std::vector<float> weight = random.Values(dim);
    const std::vector<float> y = testing::SameBitsEverywhere([&](ThreadPool& pool) {
      std::vector<float> out = x;
      HeadRmsNorm({.x = out.data(),
                   .row_stride = stride,
                   .weight = weight.data(),
                   .eps = 1e-6f,
                   .m = m,
                   .heads = heads,
                   .head_dim = dim},
                  pool);
      return out;
    });
    ThreadPool pool(1);
    for (int64_t i = 0; i < m; ++i) {
      std::vector<float> expected(x.begin() + i * stride, x.begin() + (i + 1) * stride);
      RmsNorm({.x = expected.data(),
               .ldx = dim,
               .weight = weight.data(),
               .eps = 1e-6f,
               .y = expected.data(),
               .ldy = dim,
               .m = heads,
               .h = dim},
              pool);
      testing::ExpectSameBits(y.data() + i * stride, expected.data(), stride, "row");
    }
  }
}

TEST(RopeTest, MatchesTheReferenceAndIsTheSameEverywhere) {
  const int64_t m = 7;
  const int64_t heads = 4;
  const std::pair<int64_t, int64_t> sizes[] = {{64, 64}, {80, 80}, {80, 32}, {128, 128}, {8, 8}};
  for (const auto& size : sizes) {
    const int64_t dim = size.first;
    const int64_t rotary = size.second;
    const int64_t half = rotary / 2;
    const int64_t stride = heads * dim + 64;
    Random random(static_cast<uint32_t>(dim + rotary));
    std::vector<float> inv(static_cast<size_t>(half));
    DefaultInvFreq(10000.0, rotary, inv.data());
    std::vector<float> cos = testing::Nans(2048 * half);
    std::vector<float> sin = cos;
    FillRopeTable(inv.data(), half, 0, 1000, 1.0, cos.data(), sin.data());
    FillRopeTable(inv.data(), half, 1000, 2048, 1.0, cos.data(), sin.data());
    const std::vector<int32_t> positions = {0, 1, 2047, 5, 5, 1000, 999};
    const std::vector<float> x = random.Values(m * stride);
    const std::vector<float> y = testing::SameBitsEverywhere([&](ThreadPool& pool) {
      std::vector<float> out = x;
      ApplyRope({.x = out.data(),
                 .row_stride = stride,
                 .m = m,
                 .heads = heads,
                 .head_dim = dim,
                 .rotary_dim = rotary,
                 .positions = positions.data(),
                 .cos = cos.data(),
                 .sin = sin.data()},
                pool);
      return out;
    });
    for (int64_t i = 0; i < m * stride; ++i) {
      const int64_t row = i / stride;
      const int64_t head = i % stride / dim;
      const int64_t d = i % stride % dim;
      double expected = x[static_cast<size_t>(i)];
      if (head < heads && d < rotary) {
        const int64_t f = d % half;
        const double angle =
            positions[static_cast<size_t>(row)] *
            std::pow(10000.0, -2.0 * static_cast<double>(f) / static_cast<double>(rotary));
        const double other = x[static_cast<size_t>(d < half ? i + half : i - half)];
        expected = expected * std::cos(angle) + (d < half ? -other : other) * std::sin(angle);
      }
      // The angle itself is a binary32 number: 2047 * 2^-24 is what it may be off by.
      ASSERT_NEAR(y[static_cast<size_t>(i)], expected, 5e-4) << dim << " " << i;
    }
  }
}

}  // namespace
}  // namespace weir::cpu
