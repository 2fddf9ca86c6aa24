#include "kernels/cpu/elementwise.h"

#include "kernels/cpu/gemm.h"
#include "tests/kernels/kernel_testing.h"

namespace weir::cpu {
namespace {

using testing::kNan;
using testing::Random;
constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(Bf16Test, RoundsToNearestEvenAndKeepsSpecialValues) {
  EXPECT_EQ(FloatToBf16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // a tie, to even
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(FloatToBf16(std::numeric_limits<float>::max()), 0x7f80);  // overflows to infinity
  EXPECT_EQ(FloatToBf16(-kInf), 0xff80);
  EXPECT_EQ(FloatToBf16(-0.0f), 0x8000);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(Bf16Test, RowConversionsMatchTheScalarOnesOnEveryIsa) {
  Random random(1);
  std::vector<float> in;
  for (int i = 0; i < 4099; ++i) {
    in.push_back(std::bit_cast<float>(static_cast<uint32_t>(random.engine()())));
  }
  for (const Isa isa : SupportedIsas()) {
    const testing::ScopedIsa scoped(isa);
    std::vector<uint16_t> narrow(in.size());
    ConvertFloatToBf16(in.data(), static_cast<int64_t>(in.size()), narrow.data());
    std::vector<float> wide(in.size());
    ConvertBf16ToFloat(narrow.data(), static_cast<int64_t>(in.size()), wide.data());
    for (size_t i = 0; i < in.size(); ++i) {
      ASSERT_EQ(narrow[i], FloatToBf16(in[i])) << IsaName(isa) << " " << in[i];
      ASSERT_EQ(std::bit_cast<uint32_t>(wide[i]), uint32_t{narrow[i]} << 16);
    }
  }
}

TEST(ExpTest, IsWithinTwoUlpAndTheSameEverywhere) {
  std::vector<float> in;
  for (float x = -87.3f; x < 88.0f; x += 0.0037f) in.push_back(x);
  const std::vector<float> got = testing::SameBitsEverywhere([&](ThreadPool&) {
    std::vector<float> out(in.size());
    Exp(in.data(), static_cast<int64_t>(in.size()), out.data());
    return out;
  });
  double worst = 0;
  for (size_t i = 0; i < in.size(); ++i) {
    const double exact = std::exp(static_cast<double>(in[i]));
    const float near = static_cast<float>(exact);
    const double ulp = static_cast<double>(std::nextafter(near, kInf)) - near;
    worst = std::max(worst, std::abs(got[i] - exact) / ulp);
  }
  EXPECT_LT(worst, 2.0);
  RecordProperty("worst_ulp", std::to_string(worst));
}

TEST(ExpTest, SpecialValues) {
  for (const Isa isa : SupportedIsas()) {
    const testing::ScopedIsa scoped(isa);
    const float in[] = {0.0f, -0.0f, -kInf, -1e30f, -88.0f, kNan, kInf, 1e30f, 89.0f};
    float out[9];
    Exp(in, 9, out);
    EXPECT_EQ(out[0], 1.0f);
    EXPECT_EQ(out[1], 1.0f);
    EXPECT_EQ(out[2], 0.0f);
    EXPECT_EQ(out[3], 0.0f);
    EXPECT_EQ(out[4], 0.0f);
    EXPECT_TRUE(std::isnan(out[5]));
    EXPECT_EQ(out[6], out[8]);  // saturates, finite
    EXPECT_GT(out[7], 1e38f);
  }
}

TEST(SiluMulTest, MatchesTheReferenceAndIsTheSameEverywhere) {
  const int64_t m = 5;
  for (const int64_t ffn : {1, 15, 16, 100, 1536}) {
    const int64_t ld = 2 * ffn + 3;
    Random random(static_cast<uint32_t>(ffn));
    const std::vector<float> in = random.Values(m * ld, 4.0f);
    const std::vector<float> out = testing::SameBitsEverywhere([&](ThreadPool& pool) {
      std::vector<float> y = testing::Nans(m * ffn);
      SiluMul(
          {.gate_up = in.data(), .ld_gate_up = ld, .y = y.data(), .ldy = ffn, .m = m, .ffn = ffn},
          pool);
      return y;
    });
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < ffn; ++j) {
        const double gate = in[static_cast<size_t>(i * ld + j)];
        const double up = in[static_cast<size_t>(i * ld + ffn + j)];
        const double expected = gate / (1 + std::exp(-gate)) * up;
        ASSERT_NEAR(out[static_cast<size_t>(i * ffn + j)], expected,
                    1e-6 * (1 + std::abs(expected)));
      }
    }
  }
}

TEST(EmbedTest, PackedAndRowMajorTablesGiveTheSameRows) {
  const int64_t n = 50;
  const int64_t h = 41;
  Random random(5);
  const std::vector<float> w = random.Values(n * h);
  std::vector<uint16_t> row_major(w.size());
  ConvertFloatToBf16(w.data(), n * h, row_major.data());
  std::vector<uint16_t> packed(PackedWeightBytes(n, h) / 2);
  PackRows(w.data(), 0, n, n, h, packed.data());
  const std::vector<int32_t> ids = {0, 49, 17, 17, 16, 15, 31};
  const int64_t m = static_cast<int64_t>(ids.size());
  ThreadPool pool(2);
  std::vector<float> a = testing::Nans(m * h);
  std::vector<float> b = testing::Nans(m * h);
  EmbedPacked({.table = packed.data(), .h = h, .ids = ids.data(), .m = m, .y = a.data(), .ldy = h},
              pool);
  EmbedRowMajor(
      {.table = row_major.data(), .h = h, .ids = ids.data(), .m = m, .y = b.data(), .ldy = h},
      pool);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < h; ++j) {
      const float expected =
          testing::RoundToBf16(w[static_cast<size_t>(ids[static_cast<size_t>(i)] * h + j)]);
      EXPECT_EQ(a[static_cast<size_t>(i * h + j)], expected);
      EXPECT_EQ(b[static_cast<size_t>(i * h + j)], expected);
    }
  }
}

TEST(RowsTest, GatherAndAdd) {
  const std::vector<float> x = {1, 2, 3, 4, 5, 6};
  const std::vector<int32_t> rows = {2, 0};
  std::vector<float> y(4, kNan);
  GatherRows(x.data(), 2, rows.data(), 2, 2, y.data(), 2);
  EXPECT_EQ(y, (std::vector<float>{5, 6, 1, 2}));
  AddRows(x.data(), 2, 2, 2, y.data(), 2);
  EXPECT_EQ(y, (std::vector<float>{6, 8, 4, 6}));
}

TEST(ArgmaxTest, TheFirstOfEqualMaximaWins) {
  Random random(8);
  for (const Isa isa : SupportedIsas()) {
    const testing::ScopedIsa scoped(isa);
    for (const int64_t n : {1, 2, 15, 16, 17, 63, 64, 100, 1000}) {
      std::vector<float> x = random.Values(n);
      const int64_t at = random.Int(0, n - 1);
      x[static_cast<size_t>(at)] = 100.0f;
      for (int64_t i = at; i < n; i += 3) x[static_cast<size_t>(i)] = 100.0f;
      EXPECT_EQ(Argmax(x.data(), n), at) << IsaName(isa) << " " << n;
    }
  }
}

TEST(ArgmaxTest, NanNeverWins) {
  for (const Isa isa : SupportedIsas()) {
    const testing::ScopedIsa scoped(isa);
    const std::vector<float> some = {kNan, -kInf, kNan, -3.0f, kNan};
    EXPECT_EQ(Argmax(some.data(), 5), 3);
    EXPECT_EQ(Argmax(some.data(), 3), 1);
    EXPECT_EQ(Argmax(some.data(), 1), 0);
    std::vector<float> many(40, kNan);
    many[33] = -1.0f;
    EXPECT_EQ(Argmax(many.data(), 40), 33);
  }
}

TEST(ArgmaxTest, RowsAreIndependent) {
  ThreadPool pool(3);
  Random random(4);
  const std::vector<float> x = random.Values(9 * 700);
  std::vector<int64_t> index(9, -1);
  ArgmaxRows(x.data(), 700, 9, 700, index.data(), pool);
  for (int64_t i = 0; i < 9; ++i) {
    EXPECT_EQ(index[static_cast<size_t>(i)], Argmax(x.data() + i * 700, 700));
  }
}

}  // namespace
}  // namespace weir::cpu
