#include "kernels/cpu/gemm.h"

#include "tests/kernels/kernel_testing.h"

namespace weir::cpu {
namespace {

using testing::kNan;
using testing::Random;

struct Case {
  int64_t m, n, k;
  bool bias;
  GemmOutput output;
};

struct Problem {
  explicit Problem(const Case& shape, uint32_t seed) : c(shape) {
    Random random(seed);
    ldx = c.k + random.Int(0, 3);
    ldy = c.n + random.Int(0, 5);
    x = testing::Nans(c.m * ldx);
    for (int64_t i = 0; i < c.m; ++i) {
      for (int64_t j = 0; j < c.k; ++j) x[static_cast<size_t>(i * ldx + j)] = random.Value();
    }
    w = random.Values(c.n * c.k, 0.1f);
    bias = random.Values(c.n);
    packed.assign(PackedWeightBytes(c.n, c.k) / 2, 0xffff);
    PackRows(w.data(), 0, c.n, c.n, c.k, packed.data());
    y = c.output == GemmOutput::kAccumulate ? random.Values(c.m * ldy) : testing::Nans(c.m * ldy);
  }
  std::vector<float> Run(ThreadPool& pool) const {
    std::vector<float> out = y;
    GemmParams p{.x = x.data(),
                 .ldx = ldx,
                 .weights = packed.data(),
                 .bias = c.bias ? bias.data() : nullptr,
                 .y = out.data(),
                 .ldy = ldy,
                 .m = c.m,
                 .n = c.n,
                 .k = c.k,
                 .output = c.output};
    Gemm(p, pool);
    return out;
  }
  float Expected(int64_t i, int64_t j) const {  // the header's definition, step by step
    float t = c.output == GemmOutput::kAccumulate ? y[static_cast<size_t>(i * ldy + j)] : 0.0f;
    if (c.bias) t = t + bias[static_cast<size_t>(j)];
    for (int64_t k0 = 0; k0 < c.k; k0 += kGemmKBlock) {
      float a = 0.0f;
      for (int64_t k = k0; k < std::min(c.k, k0 + kGemmKBlock); ++k) {
        a = std::fma(x[static_cast<size_t>(i * ldx + k)],
                     testing::RoundToBf16(w[static_cast<size_t>(j * c.k + k)]), a);
      }
      t = t + a;
    }
    return t;
  }
  double Reference(int64_t i, int64_t j) const {
    double t = c.output == GemmOutput::kAccumulate ? y[static_cast<size_t>(i * ldy + j)] : 0.0;
    if (c.bias) t += bias[static_cast<size_t>(j)];
    for (int64_t k = 0; k < c.k; ++k) {
      t += static_cast<double>(x[static_cast<size_t>(i * ldx + k)]) *
           testing::RoundToBf16(w[static_cast<size_t>(j * c.k + k)]);
    }
    return t;
  }

  Case c;
  int64_t ldx = 0;
  int64_t ldy = 0;
  std::vector<float> x, w, bias, y;
  std::vector<uint16_t> packed;
};

void CheckAgainstDefinition(const Problem& p, const std::vector<float>& y) {
  for (int64_t i = 0; i < p.c.m; ++i) {
    for (int64_t j = 0; j < p.ldy; ++j) {
      const float got = y[static_cast<size_t>(i * p.ldy + j)];
      if (j >= p.c.n) {  // the gap between rows is not touched
        const float before = p.y[static_cast<size_t>(i * p.ldy + j)];
        ASSERT_TRUE(got == before || (std::isnan(got) && std::isnan(before)));
        continue;
      }
      ASSERT_EQ(got, p.Expected(i, j)) << i << "," << j;
      ASSERT_NEAR(got, p.Reference(i, j), 1e-5 * (10 + std::sqrt(static_cast<double>(p.c.k))));
    }
  }
}

TEST(GemmTest, OddShapesMatchTheDefinitionOnEveryIsaAndThreadCount) {
  const Case cases[] = {
      {1, 1, 1, false, GemmOutput::kOverwrite},     {1, 17, 3, true, GemmOutput::kOverwrite},
      {1, 200, 257, true, GemmOutput::kAccumulate}, {2, 96, 576, false, GemmOutput::kOverwrite},
      {3, 33, 511, true, GemmOutput::kOverwrite},   {5, 16, 64, false, GemmOutput::kAccumulate},
      {6, 70, 300, true, GemmOutput::kAccumulate},  {7, 65, 256, false, GemmOutput::kOverwrite},
      {12, 48, 100, true, GemmOutput::kOverwrite},  {13, 130, 513, true, GemmOutput::kAccumulate},
      {33, 50, 40, false, GemmOutput::kOverwrite},  {100, 31, 270, true, GemmOutput::kOverwrite},
  };
  uint32_t seed = 1;
  for (const Case& c : cases) {
    SCOPED_TRACE(::testing::Message() << "m " << c.m << " n " << c.n << " k " << c.k);
    const Problem p(c, seed++);
    CheckAgainstDefinition(
        p, testing::SameBitsEverywhere([&](ThreadPool& pool) { return p.Run(pool); }));
  }
}

TEST(GemmTest, RandomShapesMatchTheDefinition) {
  for (uint32_t seed = 100; seed < 120; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Random random(seed);
    const Case c{random.Int(1, 40), random.Int(1, 150), random.Int(1, 600), random.Int(0, 1) == 1,
                 random.Int(0, 1) == 1 ? GemmOutput::kAccumulate : GemmOutput::kOverwrite};
    const Problem p(c, seed);
    CheckAgainstDefinition(
        p, testing::SameBitsEverywhere([&](ThreadPool& pool) { return p.Run(pool); }));
  }
}

TEST(GemmTest, ARowIsTheSameAloneAndInEveryBatch) {
  const Problem p({33, 90, 530, true, GemmOutput::kAccumulate}, 7);
  for (const Isa isa : SupportedIsas()) {
    const testing::ScopedIsa scoped(isa);
    ThreadPool pool(2);
    const std::vector<float> whole = p.Run(pool);
    for (int64_t size = 1; size <= p.c.m; size += size < 14 ? 1 : 5) {
      std::vector<float> y = p.y;
      for (int64_t i = 0; i < p.c.m; i += size) {
        GemmParams part{.x = p.x.data() + i * p.ldx,
                        .ldx = p.ldx,
                        .weights = p.packed.data(),
                        .bias = p.bias.data(),
                        .y = y.data() + i * p.ldy,
                        .ldy = p.ldy,
                        .m = std::min(size, p.c.m - i),
                        .n = p.c.n,
                        .k = p.c.k,
                        .output = p.c.output};
        Gemm(part, pool);
      }
      testing::ExpectSameBits(whole.data(), y.data(), static_cast<int64_t>(y.size()),
                              "batches of " + std::to_string(size));
    }
  }
}

TEST(GemmTest, ManyRowsCutIntoSeveralTasksMatchTheDefinition) {
  const Problem p({1600, 17, 20, false, GemmOutput::kOverwrite}, 9);
  ThreadPool pool(3);
  CheckAgainstDefinition(p, p.Run(pool));
}

TEST(GemmTest, NanInOneRowStaysInThatRow) {
  Problem p({20, 32, 64, false, GemmOutput::kOverwrite}, 11);
  p.x[static_cast<size_t>(5 * p.ldx)] = kNan;
  ThreadPool pool(2);
  const std::vector<float> y = p.Run(pool);
  for (int64_t i = 0; i < 20; ++i) {
    EXPECT_EQ(std::isnan(y[static_cast<size_t>(i * p.ldy)]), i == 5) << i;
  }
}

TEST(PackRowsTest, AnySplitGivesTheSameBytesAndZeroPadding) {
  const int64_t n = 37;
  const int64_t k = 19;
  Random random(3);
  const std::vector<float> w = random.Values(n * k);
  std::vector<uint16_t> whole(PackedWeightBytes(n, k) / 2, 0xffff);
  PackRows(w.data(), 0, n, n, k, whole.data());
  for (const int64_t step : {1, 3, 16, 20}) {
    std::vector<uint16_t> parts(whole.size(), 0xffff);
    for (int64_t r = 0; r < n; r += step) {
      PackRows(w.data() + r * k, r, std::min(step, n - r), n, k, parts.data());
    }
    EXPECT_EQ(parts, whole) << step;
  }
  std::vector<uint16_t> narrow(w.size());
  ConvertFloatToBf16(w.data(), n * k, narrow.data());
  std::vector<uint16_t> from_bf16(whole.size(), 0xffff);
  PackRows(narrow.data(), 0, n, n, k, from_bf16.data());
  EXPECT_EQ(from_bf16, whole);
  for (int64_t c = 0; c < k; ++c) {
    for (int64_t row = 0; row < 48; ++row) {
      const uint16_t expected =
          row < n ? FloatToBf16(w[static_cast<size_t>(row * k + c)]) : uint16_t{0};
      EXPECT_EQ(whole[static_cast<size_t>((row / 16 * k + c) * 16 + row % 16)], expected);
    }
  }
}

}  // namespace
}  // namespace weir::cpu
