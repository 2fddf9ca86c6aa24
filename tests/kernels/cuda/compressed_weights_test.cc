#include "kernels/cuda/compressed_weights.h"

#include "kernels/cpu/compressed_weights.h"
#include "kernels/cuda/fill.h"
#include "tests/kernels/cuda/rows_testing.h"

namespace weir::cuda {
namespace {

using testing::AsBf16;
using testing::DeviceBuffer;
using testing::Launched;
using testing::Random;

struct Matrix {
  int64_t rows, cols;
  std::vector<uint16_t> bits;
};

// Normal, with up to |odd| weights of any bits in each block.
Matrix RandomMatrix(int64_t rows, int64_t cols, uint32_t seed, int odd) {
  Random random(seed);
  Matrix m{rows, cols, random.Bf16s(rows * cols, 0.05f)};
  for (int64_t row = 0; row < rows; row += compressed::kRows) {
    const int64_t last = std::min(rows - row, compressed::kRows) - 1;
    for (int64_t col = 0; col < cols; col += compressed::kCols) {
      for (int i = 0; i < odd; ++i) {
        const int64_t at = (row + random.Int(0, static_cast<int32_t>(last))) * cols + col +
                           random.Int(0, compressed::kCols - 1);
        m.bits[static_cast<size_t>(at)] = static_cast<uint16_t>(random.Int(0, 0xffff));
      }
    }
  }
  return m;
}

std::vector<uint8_t> Compressed(const Matrix& m) {
  std::vector<uint8_t> bytes(static_cast<size_t>(compressed::Bytes(m.rows, m.cols)));
  const auto failure = cpu::CompressWeights(m.bits.data(), m.rows, m.cols, bytes.data());
  EXPECT_FALSE(failure.has_value()) << failure->patches << " patches";
  return bytes;
}

struct Shape {
  int64_t rows, cols;
};
constexpr Shape kShapes[] = {{1, 64},    {8, 128},   {127, 64},   {128, 64},
                             {130, 192}, {300, 128}, {1000, 448}, {2048, 1024}};

// Matrices of all shapes, with none, one and many odd weights a block.
template <typename Check>
void ForEachMatrix(Check check) {
  uint32_t seed = 1;
  for (const Shape& shape : kShapes) {
    for (const int odd : {0, 1, 20}) {
      SCOPED_TRACE(::testing::Message() << "[" << shape.rows << ", " << shape.cols << "], seed "
                                        << seed << ", " << odd << " odd weights a block");
      ASSERT_NO_FATAL_FAILURE(check(RandomMatrix(shape.rows, shape.cols, seed++, odd)));
    }
  }
}

using CudaCompressedWeights = testing::GpuTest;

TEST_F(CudaCompressedWeights, HaveTheBytesOfTheReference) {
  ForEachMatrix([&](const Matrix& m) {
    std::vector<uint8_t> want = Compressed(m);
    want.resize(want.size() + 16, 0xff);  // and nothing behind
    const DeviceBuffer<uint16_t> weights(m.bits);
    const DeviceBuffer<uint8_t> out(want.size());
    const DeviceBuffer<uint32_t> failed(std::vector<uint32_t>{0});
    ASSERT_TRUE(
        Launched(CompressWeights({AsBf16(weights.get()), m.rows, m.cols, out.get(), failed.get()},
                                 {stream_, Overlap::kNone})));
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    EXPECT_EQ(failed.Download()[0], 0u);
    const auto got = out.Download();
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_EQ(got[i], want[i]) << "byte " << i % compressed::kBlockBytes << " of block "
                                 << i / compressed::kBlockBytes;
    }
  });
}

TEST_F(CudaCompressedWeights, ExpandToWhatTheyWere) {
  ForEachMatrix([&](const Matrix& m) {
    std::vector<uint16_t> want = m.bits;
    want.resize(want.size() + 8, 0xffff);  // and nothing behind
    const DeviceBuffer<uint8_t> bytes(Compressed(m));
    const DeviceBuffer<uint16_t> weights(std::vector<uint16_t>(want.size(), 0xffff));
    ASSERT_TRUE(
        Launched(ExpandWeights({bytes.get(), m.rows, m.cols, AsBf16(weights.get())}, {stream_})));
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    EXPECT_TRUE(weights.Download() == want);
  });
}

TEST_F(CudaCompressedWeights, CountsTheBlocksThatFail) {
  // 29 patches in one block, 32 in two: all of a thread's, and one in each of several warps. The
  // eight values that have codes are others.
  Matrix m{256, 128, std::vector<uint16_t>(256 * 128)};
  for (size_t i = 0; i < m.bits.size(); ++i) m.bits[i] = static_cast<uint16_t>((56 + i % 8) << 8);
  const auto plant = [&](int64_t block, int t, int i) {
    const int64_t row = block / 2 * compressed::kRows + compressed::RowOf(t, i);
    const int64_t col = block % 2 * compressed::kCols + compressed::ColOf(t, i);
    m.bits[static_cast<size_t>(row * m.cols + col)] = static_cast<uint16_t>(i << 7 | t % 128);
  };
  for (int i = 0; i < 29; ++i) plant(0, 255, i);
  for (int i = 0; i < 32; ++i) plant(1, 0, i);
  for (int i = 0; i < 32; ++i) plant(3, 8 * i, i);
  const DeviceBuffer<uint16_t> weights(m.bits);
  const DeviceBuffer<uint8_t> out(static_cast<size_t>(compressed::Bytes(m.rows, m.cols)));
  const DeviceBuffer<uint32_t> failed(std::vector<uint32_t>{0});
  ASSERT_TRUE(
      Launched(CompressWeights({AsBf16(weights.get()), m.rows, m.cols, out.get(), failed.get()},
                               {stream_, Overlap::kNone})));
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(failed.Download()[0], 2u);
  const auto got = out.Download();
  std::vector<uint8_t> want(compressed::kBlockBytes * 2);
  (void)cpu::CompressWeights(m.bits.data(), 128, 128, want.data());
  for (size_t i = 0; i < compressed::kBlockBytes; ++i) ASSERT_EQ(got[i], want[i]) << "byte " << i;
}

TEST_F(CudaCompressedWeights, MayBeMadeEarly) {
  Matrix m{1000, 1024, {}};
  const DeviceBuffer<uint16_t> weights(static_cast<size_t>(m.rows * m.cols));
  const DeviceBuffer<uint8_t> bytes(static_cast<size_t>(compressed::Bytes(m.rows, m.cols)));
  const DeviceBuffer<uint32_t> failed(std::vector<uint32_t>{0});
  for (uint64_t seed = 0; seed < 5; ++seed) {
    ASSERT_EQ(cudaMemsetAsync(bytes.get(), 0xff, bytes.Bytes(), stream_), cudaSuccess);
    ASSERT_TRUE(Launched(FillNormal(
        {.dst = AsBf16(weights.get()), .count = m.rows * m.cols, .seed = seed, .scale = 0.05f},
        {stream_, Overlap::kPrologue})));
    ASSERT_TRUE(
        Launched(CompressWeights({AsBf16(weights.get()), m.rows, m.cols, bytes.get(), failed.get()},
                                 {stream_, Overlap::kPrologue})));
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    m.bits = weights.Download();
    ASSERT_TRUE(bytes.Download() == Compressed(m)) << "seed " << seed;
  }
  EXPECT_EQ(failed.Download()[0], 0u);
}

// Refused on the host: needs no GPU, and no pointer is followed.
template <typename T>
T* Pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

TEST(CudaCompressedWeightsParams, AreChecked) {
  const CompressParams good{Pointer<Bf16>(4096), 128, 64, Pointer<uint8_t>(4096),
                            Pointer<uint32_t>(4096)};
  const auto refused = [&](const auto& change) {
    CompressParams p = good;
    change(p);
    const LaunchStatus status = CompressWeights(p, {nullptr, Overlap::kNone});
    return status.code() == cudaErrorInvalidValue && status.message().starts_with("compress: ");
  };
  EXPECT_TRUE(refused([](CompressParams& p) { p.weights = nullptr; }));
  EXPECT_TRUE(refused([](CompressParams& p) { p.weights = Pointer<Bf16>(4096 + 8); }));
  EXPECT_TRUE(refused([](CompressParams& p) { p.out = nullptr; }));
  EXPECT_TRUE(refused([](CompressParams& p) { p.out = Pointer<uint8_t>(4096 + 1); }));
  EXPECT_TRUE(refused([](CompressParams& p) { p.failed = nullptr; }));
  EXPECT_TRUE(refused([](CompressParams& p) { p.failed = Pointer<uint32_t>(4096 + 2); }));
  for (const int64_t n : {int64_t{0}, int64_t{-64}, (int64_t{1} << 31) + 64}) {
    EXPECT_TRUE(refused([n](CompressParams& p) { p.rows = n; })) << n;
    EXPECT_TRUE(refused([n](CompressParams& p) { p.cols = n; })) << n;
  }
  EXPECT_TRUE(refused([](CompressParams& p) { p.cols = 96; }));
  EXPECT_TRUE(refused([](CompressParams& p) { p.rows = p.cols = int64_t{1} << 31; }));  // no grid
}

}  // namespace
}  // namespace weir::cuda
