#include "kernels/cpu/compressed_weights.h"

#include <set>

#include "tests/kernels/kernel_testing.h"

namespace weir::cpu {
namespace {

using compressed::kBlockBytes;
using compressed::kCodesAt;
using compressed::kHeaderAt;
using compressed::kMostPatches;
using testing::Random;

constexpr uint16_t kOne = 0x3f80;  // value 63

std::vector<uint16_t> Normal(int64_t count, uint32_t seed, float scale) {
  Random random(seed);
  std::vector<uint16_t> v(static_cast<size_t>(count));
  for (uint16_t& x : v) x = FloatToBf16(random.Value(scale));
  return v;
}

struct Matrix {
  uint16_t& at(int64_t row, int64_t col) { return bits[static_cast<size_t>(row * cols + col)]; }

  int64_t rows, cols;
  std::vector<uint16_t> bits;
};
Matrix Ones(int64_t rows, int64_t cols) {
  return {rows, cols, std::vector<uint16_t>(static_cast<size_t>(rows * cols), kOne)};
}

// Of every eight columns one each of the values 56 to 63, so that a block has codes for no others.
Matrix Eight(int64_t rows, int64_t cols) {
  Matrix m = Ones(rows, cols);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) m.at(r, c) = static_cast<uint16_t>((56 + c % 8) << 8 | 0x80);
  }
  return m;
}

struct Bytes {
  explicit Bytes(const Matrix& m) : bytes(Size(m), 0xcd) {
    failure = CompressWeights(m.bits.data(), m.rows, m.cols, bytes.data());
  }
  static size_t Size(const Matrix& m) {
    return static_cast<size_t>(compressed::Bytes(m.rows, m.cols));
  }
  uint32_t Word(int64_t at) const {
    uint32_t word = 0;
    for (int64_t i = 3; i >= 0; --i) word = word << 8 | bytes[static_cast<size_t>(at + i)];
    return word;
  }

  std::vector<uint8_t> bytes;
  std::optional<CompressFailure> failure;
};

void ExpectRoundTrip(const Matrix& m) {
  const Bytes compressed(m);
  ASSERT_FALSE(compressed.failure.has_value()) << compressed.failure->patches << " patches";
  std::vector<uint16_t> got(m.bits.size() + 64, 0xabcd);  // and nothing behind the last row
  ExpandWeights(compressed.bytes.data(), m.rows, m.cols, got.data());
  std::vector<uint16_t> want = m.bits;
  want.resize(got.size(), 0xabcd);
  EXPECT_EQ(got, want) << "[" << m.rows << ", " << m.cols << "]";
}

TEST(CompressedLayout, IsABijection) {
  std::set<std::pair<int, int>> seen;
  for (int t = 0; t < compressed::kThreads; ++t) {
    for (int i = 0; i < compressed::kWeightsPerThread; ++i) {
      const int row = compressed::RowOf(t, i);
      const int col = compressed::ColOf(t, i);
      ASSERT_TRUE(row >= 0 && row < compressed::kRows && col >= 0 && col < compressed::kCols);
      ASSERT_TRUE(seen.emplace(row, col).second) << "thread " << t << ", weight " << i;
    }
  }
}

TEST(CompressedLayout, HasAWeightWhereTheHeaderSays) {
  // The last block of [256, 128]; its row 82 and column 29 are weight 13 of thread 170.
  Matrix m = Ones(256, 128);
  m.at(128 + 82, 64 + 29) = 0x8000 | 120 << 7 | 0x2a;
  const Bytes got(m);
  ASSERT_FALSE(got.failure.has_value());
  const int64_t block = 3 * kBlockBytes;
  EXPECT_EQ(got.Word(block + kHeaderAt), 0u);
  EXPECT_EQ(got.Word(block + kHeaderAt + 4), 0x03020100u);  // those nobody has, the smallest
  EXPECT_EQ(got.Word(block + kHeaderAt + 8), 0x3f3c0504u);
  for (int64_t at = 0; at < kCodesAt; ++at) {
    ASSERT_EQ(got.bytes[static_cast<size_t>(block + at)], at == 16 * 170 + 13 ? 0x2a : 0x80) << at;
  }
  for (int64_t at = kCodesAt; at < kHeaderAt; at += 4) {
    const bool here = at == 8192 + 16 * 170 + 4;
    ASSERT_EQ(got.Word(block + at), here ? 0x77677f77u : 0x77777777u) << at;
  }
}

TEST(CompressedLayout, HasPatchesInTheOrderOfThreads) {
  Matrix m = Eight(128, 64);
  m.at(82, 29) = 200 << 7 | 0x15;  // thread 170, weight 13
  m.at(0, 1) = 0x8000;             // thread 0, weight 1
  m.at(8, 0) = 10 << 7;            // thread 0, weight 2
  const Bytes got(m);
  ASSERT_FALSE(got.failure.has_value());
  EXPECT_EQ(got.Word(kHeaderAt), 1u << 8 | 1u << 13 | 3u << 16);
  EXPECT_EQ(got.Word(kHeaderAt + 4), 0x3b3a3938u);
  EXPECT_EQ(got.Word(kHeaderAt + 8), 0x3f3e3d3cu);
  EXPECT_EQ(got.Word(kHeaderAt + 12), 0u | 1u << 8 | 0u << 16);
  EXPECT_EQ(got.Word(kHeaderAt + 16), 0u | 2u << 8 | 5u << 16);
  EXPECT_EQ(got.Word(kHeaderAt + 20), 170u | 13u << 8 | 100u << 16);
  for (int64_t at = kHeaderAt + 24; at < kBlockBytes; at += 4) EXPECT_EQ(got.Word(at), 0u);
  // Columns 0, 1, 0, 1, 8, 9, 8, 9; a patch has the first code, and its sign.
  EXPECT_EQ(got.Word(kCodesAt), 0x10109000u);
  EXPECT_EQ(got.bytes[1], 0x00);
  EXPECT_EQ(got.bytes[2], 0x00);
  EXPECT_EQ(got.bytes[3], 0x80);
  EXPECT_EQ(got.bytes[16 * 170 + 13], 0x15);
  ExpectRoundTrip(m);
}

TEST(CompressedWeights, ComeBackAsTheyWere) {
  uint32_t seed = 1;
  for (const auto& [rows, cols] : {std::pair{1, 64},
                                   {7, 128},
                                   {127, 64},
                                   {128, 64},
                                   {129, 192},
                                   {200, 320},
                                   {256, 64},
                                   {515, 448}}) {
    for (const float scale : {1.0f, 0.02f, 1e-30f}) {
      SCOPED_TRACE(::testing::Message() << "seed " << seed << ", scale " << scale);
      ExpectRoundTrip({rows, cols, Normal(int64_t{rows} * cols, seed++, scale)});
    }
  }
}

TEST(CompressedWeights, MayHaveAnyBits) {
  // 25 kinds far from all others, at most 25 of a block, among normal ones that need few patches.
  const std::vector<uint16_t> odd = {0x0000, 0x8000, 0x0001, 0x007f, 0x807f, 0x0040, 0x0080,
                                     0x8080, 0x7f80, 0xff80, 0x7f81, 0x7fff, 0xffff, 0x7fc0,
                                     0xffc0, 0x7f7f, 0xff7f, 0x0100, 0x7f00, 0x5555, 0xd555,
                                     0x1234, 0x9234, 0x6000, 0xe000};
  Matrix m{300, 192, Normal(300 * 192, 3, 1.0f)};
  for (uint16_t& x : m.bits) {
    if ((x >> 7 & 0xff) < 115) x = kOne;
  }
  Random random(4);
  for (int64_t tile = 0; tile < 3; ++tile) {
    for (int64_t c = 0; c < 3; ++c) {
      for (const uint16_t x : odd) {
        m.at(tile * 128 + random.Int(0, tile < 2 ? 127 : 43), c * 64 + random.Int(0, 63)) = x;
      }
    }
  }
  ExpectRoundTrip(m);
}

TEST(CompressedWeights, MayHaveAnyExponent) {
  for (int exponent = 0; exponent < 256; ++exponent) {
    Matrix m = Ones(40, 64);
    for (int64_t i = 0; i < 40 * 64; ++i) {
      m.bits[static_cast<size_t>(i)] =
          static_cast<uint16_t>((i & 1) << 15 | exponent << 7 | (i & 0x7f));
    }
    m.at(3, 3) = static_cast<uint16_t>((exponent ^ 0x80) << 7 | 5);
    SCOPED_TRACE(exponent);
    ExpectRoundTrip(m);
    EXPECT_EQ(Bytes(m).Word(kHeaderAt), 0u) << "a patch, where both values have codes";
  }
}

TEST(CompressedWeights, TakeTheValuesOfMost) {
  Matrix m = Ones(128, 64);
  for (int64_t k = 1; k <= 9; ++k) {  // as many of value 10 k
    for (int64_t c = 0; c < k; ++c) m.at(k, c) = static_cast<uint16_t>(10 * k << 8);
  }
  const Bytes got(m);
  ASSERT_FALSE(got.failure.has_value());
  EXPECT_EQ(got.Word(kHeaderAt) >> 16, 3u);  // 10 once, 20 twice
  EXPECT_EQ(got.Word(kHeaderAt + 4), 0x3c32281eu);
  EXPECT_EQ(got.Word(kHeaderAt + 8), 0x5a50463fu);
  ExpectRoundTrip(m);
  m.at(3, 0) = kOne;  // 20 and 30 twice each: the smaller one
  EXPECT_EQ(Bytes(m).Word(kHeaderAt + 4), 0x3c322814u);
  ExpectRoundTrip(m);
}

// Inputs that a model does not use: a column of zeros takes one of the eight values.
TEST(CompressedWeights, MayHaveColumnsOfZeros) {
  Matrix m{256, 64, Normal(256 * 64, 11, 0.02f)};
  for (int64_t row = 0; row < 256; ++row) m.at(row, 7) = m.at(row, 40) = row % 3 == 0 ? 0x8000 : 0;
  ExpectRoundTrip(m);
  EXPECT_LT(Bytes(m).Word(kHeaderAt) >> 16, 8u);
}

TEST(CompressedWeights, HaveRoomFor29PatchesABlock) {
  // Half of them within a thread, in the block of tile 1, column block 2; others are full, too.
  Matrix m = Eight(256, 192);
  const auto plant = [&](int64_t row, int64_t col, int count) {
    for (int t = 0, left = count; left > 0; t += 13) {
      for (int i = 0; i < 32 && left > 0; i += t == 0 ? 2 : 32, --left) {
        m.at(row + compressed::RowOf(t, i), col + compressed::ColOf(t, i)) =
            static_cast<uint16_t>(0x8000 | (left % 2 == 0 ? 20 + left : 200 + left) << 7 | left);
      }
    }
  };
  plant(128, 128, kMostPatches);
  plant(0, 64, 7);
  ExpectRoundTrip(m);
  EXPECT_EQ(Bytes(m).Word(5 * kBlockBytes + kHeaderAt) >> 16, 29u);
  plant(128, 128, kMostPatches + 1);
  const Bytes got(m);
  ASSERT_TRUE(got.failure.has_value());
  EXPECT_EQ(got.failure->tile, 1);
  EXPECT_EQ(got.failure->column_block, 2);
  EXPECT_EQ(got.failure->patches, 30);
  plant(0, 64, 33);  // an earlier one
  const Bytes earlier(m);
  ASSERT_TRUE(earlier.failure.has_value());
  EXPECT_EQ(earlier.failure->tile, 0);
  EXPECT_EQ(earlier.failure->column_block, 1);
  EXPECT_EQ(earlier.failure->patches, 33);
}

TEST(CompressedWeights, CountNothingBeyondTheLastRow) {
  Matrix m = Ones(130, 64);  // zeros below would be most of the second block
  m.at(129, 0) = 0xbf81;
  const Bytes got(m);
  ASSERT_FALSE(got.failure.has_value());
  EXPECT_EQ(got.Word(kBlockBytes + kHeaderAt), 0u);
  EXPECT_EQ(got.Word(kBlockBytes + kHeaderAt + 8), 0x3f060504u);
  for (int t = 0; t < compressed::kThreads; ++t) {
    for (int i = 0; i < compressed::kWeightsPerThread; ++i) {
      const int64_t row = 128 + compressed::RowOf(t, i);
      const auto low = static_cast<size_t>(kBlockBytes + 4096 * (i / 16) + 16 * t + i % 16);
      const uint32_t codes = got.Word(kBlockBytes + kCodesAt + 16 * t + 4 * (i / 8));
      const bool planted = row == 129 && compressed::ColOf(t, i) == 0;
      ASSERT_EQ(got.bytes[low], row >= 130 ? 0 : planted ? 0x81 : 0x80);
      ASSERT_EQ(codes >> compressed::ValueBit(i) & 7, row < 130 ? 7u : 0u);
      ASSERT_EQ(codes >> compressed::SignBit(i) & 1, planted ? 1u : 0u);
    }
  }
}

TEST(CompressedWeights, AreTheSameBytesHoweverTheTilesAreShared) {
  const Matrix m{600, 128, Normal(600 * 128, 9, 1.0f)};
  const Bytes want(m);
  ASSERT_FALSE(want.failure.has_value());
  EXPECT_EQ(Bytes(m).bytes, want.bytes);
  std::vector<uint8_t> got(want.bytes.size(), 0x31);
  for (const auto& [first, tiles] : {std::pair{3, 2}, {0, 1}, {1, 2}, {4, 0}}) {
    EXPECT_FALSE(CompressTiles(m.bits.data(), m.rows, m.cols, first, tiles, got.data()));
  }
  EXPECT_EQ(got, want.bytes);
}

TEST(CompressedWeights, NeedThreeQuartersOfTheBytes) {
  EXPECT_EQ(compressed::Bytes(128, 64), 12416);
  EXPECT_EQ(compressed::Bytes(129, 192), 6 * 12416);
  EXPECT_TRUE(compressed::Fits(64));
  EXPECT_FALSE(compressed::Fits(0) || compressed::Fits(96) || compressed::Fits(-64));
}

}  // namespace
}  // namespace weir::cpu
