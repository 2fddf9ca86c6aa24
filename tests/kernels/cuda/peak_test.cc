#include "kernels/cuda/peak.h"

#include "tests/kernels/cuda/rows_testing.h"

namespace weir::cuda {
namespace {

using testing::DeviceBuffer;

using CudaPeak = testing::GpuTest;

TEST_F(CudaPeak, ReadsEveryWordOnce) {
  std::mt19937 rng(1);
  for (const size_t words : {size_t{4}, size_t{8192}, size_t{24580}, size_t{(64 << 20) / 4 + 4}}) {
    std::vector<uint32_t> data(words);
    uint32_t want = 0;
    for (uint32_t& word : data) want ^= word = static_cast<uint32_t>(rng());
    const DeviceBuffer<uint32_t> src(data), checksum(std::vector<uint32_t>{0});
    ReadBandwidthParams p;
    p.src = src.get();
    p.bytes = static_cast<int64_t>(words * sizeof(uint32_t));
    p.checksum = checksum.get();
    ASSERT_TRUE(testing::Launched(ReadBandwidth(p, {stream_, Overlap::kNone})));
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    EXPECT_EQ(checksum.Download()[0], want) << words << " words";
    p.bytes -= 4;
    EXPECT_FALSE(ReadBandwidth(p, {stream_, Overlap::kNone}).ok());
  }
}

}  // namespace
}  // namespace weir::cuda
