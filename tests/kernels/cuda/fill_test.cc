#include "kernels/cuda/fill.h"

#include "tests/kernels/cuda/rows_testing.h"

namespace weir::cuda {
namespace {

using testing::AsBf16;
using testing::DeviceBuffer;
using testing::Launched;

TEST(FillNormalReference, IsRoughlyNormal) {
  constexpr int kCount = 1 << 20;
  double sum = 0, squares = 0;
  int beyond_one = 0;
  for (uint64_t i = 0; i < kCount; ++i) {
    const double x = double{cpu::Bf16ToFloat(NormalBits(1, i, NormalFactor(1)))};
    ASSERT_LT(std::abs(x), 3.5);
    sum += x;
    squares += x * x;
    beyond_one += std::abs(x) > 1 ? 1 : 0;
  }
  EXPECT_NEAR(sum / kCount, 0, 0.005);
  EXPECT_NEAR(std::sqrt(squares / kCount), 1, 0.005);
  EXPECT_NEAR(static_cast<double>(beyond_one) / kCount, 0.32, 0.02);
}

TEST(FillNormalReference, DependsOnSeedAndIndex) {
  int same = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    same += NormalBits(1, i, 1) == NormalBits(2, i, 1) ? 1 : 0;
    same += NormalBits(1, i, 1) == NormalBits(1, i + 1, 1) ? 1 : 0;
  }
  EXPECT_LT(same, 20);
}

using CudaFill = testing::GpuTest;

TEST_F(CudaFill, HasTheBitsOfTheReferenceWhateverThePiece) {
  constexpr float kScale = 0.02f;
  for (const int64_t count : {1, 7, 8, 9, 4096, 1000003}) {
    const uint64_t first = (uint64_t{1} << 35) + static_cast<uint64_t>(count);
    const DeviceBuffer<uint16_t> d(static_cast<size_t>(count) + 8);
    ASSERT_TRUE(Launched(
        FillNormal({AsBf16(d.get()), count, 77, first, kScale}, {stream_, Overlap::kNone})));
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    const auto got = d.Download();
    for (size_t i = 0; i < got.size(); ++i) {
      const uint16_t want = i < static_cast<size_t>(count)
                                ? NormalBits(77, first + i, NormalFactor(kScale))
                                : uint16_t{0xffff};
      ASSERT_EQ(got[i], want) << "value " << i << " of " << count;
    }
  }
}

TEST_F(CudaFill, FillsMoreThanOneGrid) {
  constexpr int64_t kCount = (int64_t{1} << 25) + 3000001;
  const DeviceBuffer<uint16_t> d(static_cast<size_t>(kCount));
  ASSERT_TRUE(Launched(FillNormal({AsBf16(d.get()), kCount, 5, 0, 1}, {stream_, Overlap::kNone})));
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  const auto got = d.Download();
  for (size_t i = 0; i < got.size(); i += i < (size_t{1} << 25) ? 997 : 1) {
    ASSERT_EQ(got[i], NormalBits(5, i, NormalFactor(1))) << "value " << i;
  }
}

TEST_F(CudaFill, FillsFloats) {
  for (const int64_t count : {1, 255, 5000000}) {
    const DeviceBuffer<uint32_t> d(static_cast<size_t>(count) + 1);
    ASSERT_TRUE(Launched(
        FillFloat(reinterpret_cast<float*>(d.get()), count, 1, {stream_, Overlap::kNone})));
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    std::vector<uint32_t> want(static_cast<size_t>(count), std::bit_cast<uint32_t>(1.0f));
    want.push_back(0xffffffffu);
    EXPECT_EQ(d.Download(), want);
  }
  EXPECT_FALSE(FillFloat(nullptr, 1, 1, {stream_, Overlap::kNone}).ok());
}

}  // namespace
}  // namespace weir::cuda
