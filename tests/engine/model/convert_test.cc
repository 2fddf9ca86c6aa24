#include "engine/model/convert.h"

#include <cmath>
#include <limits>
#include <numeric>

#include "tests/engine/model/model_file_builder.h"

namespace weir {
namespace {

TEST(Convert, DequantisedValuesEqualGgufPyBitForBit) {
  constexpr size_t kRows = 4;
  constexpr size_t kCols = 64;
  const std::string golden = ReadFixture("quant.bin");
  size_t at = 0;
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kF16, DType::kBF16}) {
    const size_t stored = kRows * RowBytes(dtype, kCols).value();
    ASSERT_LE(at + stored + kRows * kCols * 4, golden.size());
    std::vector<float> out(kRows * kCols);
    DequantizeRows(dtype, reinterpret_cast<const std::byte*>(golden.data() + at), kRows, kCols,
                   out.data());
    at += stored;
    EXPECT_EQ(std::memcmp(out.data(), golden.data() + at, out.size() * 4), 0) << DTypeName(dtype);
    at += out.size() * 4;
  }
  EXPECT_EQ(at, golden.size());
}

TEST(Convert, RoundingToHalvesEqualsNumpyAndTorch) {
  const std::string golden = ReadFixture("half.bin");
  ASSERT_EQ(golden.size() % 8, 0u);
  for (size_t at = 0; at < golden.size(); at += 8) {
    uint32_t bits = 0;
    uint16_t f16 = 0;
    uint16_t bf16 = 0;
    std::memcpy(&bits, golden.data() + at, 4);
    std::memcpy(&f16, golden.data() + at + 4, 2);
    std::memcpy(&bf16, golden.data() + at + 6, 2);
    const float value = std::bit_cast<float>(bits);
    EXPECT_EQ(FloatToF16Rne(value), f16) << std::hex << bits;
    EXPECT_EQ(FloatToBf16Rne(value), bf16) << std::hex << bits;
  }
}

TEST(Convert, EveryHalfSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float from_f16 = F16ToFloat(half);
    const float from_bf16 = Bf16ToFloat(half);
    if (std::isnan(from_f16)) {
      EXPECT_TRUE(std::isnan(F16ToFloat(FloatToF16Rne(from_f16))));
    } else {
      ASSERT_EQ(FloatToF16Rne(from_f16), half);
    }
    if (std::isnan(from_bf16)) {
      EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16Rne(from_bf16))));
    } else {
      ASSERT_EQ(FloatToBf16Rne(from_bf16), half);
    }
  }
}

TEST(Convert, NaNNeverRoundsToInfinity) {
  const float quiet_low_payload = std::bit_cast<float>(0x7f800001u);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16Rne(quiet_low_payload))));
  EXPECT_TRUE(std::isnan(F16ToFloat(FloatToF16Rne(quiet_low_payload))));
}

TEST(Convert, RowBytesWantsWholeBlocksAndNoOverflow) {
  EXPECT_EQ(RowBytes(DType::kF32, 3), 12u);
  EXPECT_EQ(RowBytes(DType::kQ8_0, 64), 68u);
  EXPECT_EQ(RowBytes(DType::kQ4_1, 32), 20u);
  EXPECT_EQ(RowBytes(DType::kQ4_0, 96), 54u);
  EXPECT_EQ(RowBytes(DType::kQ4_0, 33), std::nullopt);
  EXPECT_EQ(RowBytes(DType::kF32, uint64_t{1} << 62), std::nullopt);
}

TEST(Convert, DummyRowsDoNotDependOnHowTheyAreSplit) {
  constexpr size_t kRows = 37;
  constexpr size_t kCols = 48;
  std::vector<float> whole(kRows * kCols);
  FillDummyRows(5, 9, 0, kRows, kCols, 0.5f, whole.data());
  for (size_t first = 0; first < kRows; ++first) {
    std::vector<float> row(kCols);
    FillDummyRows(5, 9, first, 1, kCols, 0.5f, row.data());
    EXPECT_EQ(std::memcmp(row.data(), &whole[first * kCols], kCols * 4), 0) << first;
  }
  std::vector<float> other(kRows * kCols);
  FillDummyRows(6, 9, 0, kRows, kCols, 0.5f, other.data());
  EXPECT_NE(other, whole);
  FillDummyRows(5, 10, 0, kRows, kCols, 0.5f, other.data());
  EXPECT_NE(other, whole);
}

TEST(Convert, DummyRowsHaveTheAskedMeanAndSpread) {
  std::vector<float> values(512 * 512);
  FillDummyRows(1, 2, 3, 512, 512, 2.0f, values.data());
  double sum = 0;
  double squares = 0;
  float largest = 0;
  for (const float v : values) {
    sum += v;
    squares += double{v} * v;
    largest = std::max(largest, std::fabs(v));
  }
  const auto n = static_cast<double>(values.size());
  EXPECT_NEAR(sum / n, 0.0, 0.02);
  EXPECT_NEAR(std::sqrt(squares / n), 2.0, 0.02);
  EXPECT_LE(largest, 7.0f);
  EXPECT_GT(largest, 5.0f);
}

TEST(Convert, DummyValuesArePinned) {
  // A change here changes every made-up model: recorded outputs elsewhere would stop matching.
  float row[4];
  FillDummyRows(42, 3, 7, 1, 4, 1.0f, row);
  const uint32_t expected[4] = {0xbef24547u, 0xbf8212aeu, 0xbddb5229u, 0xbd3bd1bcu};
  for (int i = 0; i < 4; ++i) EXPECT_EQ(std::bit_cast<uint32_t>(row[i]), expected[i]) << row[i];
}

}  // namespace
}  // namespace weir
