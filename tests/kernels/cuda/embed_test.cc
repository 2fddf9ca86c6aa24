#include "kernels/cuda/embed.h"

#include <limits>

#include "tests/kernels/cuda/rows_testing.h"

namespace weir::cuda {
namespace {

using testing::AsBf16;
using testing::DeviceBuffer;

constexpr int32_t kVocab = 101;

class CudaEmbed : public testing::GpuTest {
 protected:
  // |want|: the row of the table that each token stands for.
  void Check(int64_t h, const std::vector<int32_t>& tokens, const std::vector<int32_t>& sampled,
             const std::vector<int32_t>& want) {
    testing::Random random(static_cast<uint32_t>(h));
    const auto table = random.Bf16s(kVocab * h);
    const auto rows = static_cast<int64_t>(tokens.size());
    const DeviceBuffer<uint16_t> dtable(table), dy(static_cast<size_t>((rows + 1) * h));
    const DeviceBuffer<int32_t> dtokens(tokens), dsampled(sampled);
    EmbedParams p;
    p.table = AsBf16(dtable.get());
    p.tokens = dtokens.get();
    if (!sampled.empty()) p.sampled = dsampled.get();
    p.sampled_count = static_cast<int32_t>(sampled.size());
    p.vocab = kVocab;
    p.y = AsBf16(dy.get());
    p.m = rows;
    p.h = h;
    ASSERT_TRUE(testing::Launched(Embed(p, {stream_, Overlap::kNone})));
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    std::vector<uint16_t> y;
    for (const int32_t token : want) {
      y.insert(y.end(), table.begin() + token * h, table.begin() + (token + 1) * h);
    }
    y.insert(y.end(), static_cast<size_t>(h), 0xffff);
    EXPECT_EQ(dy.Download(), y) << "h " << h;
  }
};

TEST_F(CudaEmbed, CopiesRowsOfTokensAndOfSampledTokens) {
  for (const int64_t h : {8, 4096, 5120}) {
    Check(h, {5, 0, 100, 5}, {}, {5, 0, 100, 5});
    Check(h, {-1, 7, -3, -2}, {42, 100, 9}, {42, 7, 9, 100});
  }
}

TEST_F(CudaEmbed, TakesTokenZeroForWhatIsNoToken) {
  constexpr int32_t kLowest = std::numeric_limits<int32_t>::min();
  Check(64, {kVocab, std::numeric_limits<int32_t>::max(), -1, 3}, {}, {0, 0, 0, 3});
  Check(64, {-1, -2, -3, -4, kLowest}, {-1, kVocab, kLowest}, {0, 0, 0, 0, 0});
}

TEST_F(CudaEmbed, EmbedsManyRows) {
  testing::Random random(3);
  std::vector<int32_t> tokens(70000);
  for (int32_t& token : tokens) token = random.Int(0, kVocab - 1);
  Check(8, tokens, {}, tokens);
}

TEST_F(CudaEmbed, BeginsTheStepsLog) {
  const DeviceBuffer<uint16_t> table(8), y(8);
  const DeviceBuffer<int32_t> tokens(std::vector<int32_t>{0});
  const DeviceBuffer<StepLog> log(1);
  EmbedParams p;
  p.table = AsBf16(table.get());
  p.tokens = tokens.get();
  p.vocab = 1;
  p.y = AsBf16(y.get());
  p.m = 1;
  p.h = 8;
  p.begin = log.get();
  ASSERT_TRUE(testing::Launched(Embed(p, {stream_, Overlap::kNone})));
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  const StepLog got = log.Download()[0];
  EXPECT_NE(got.begin_ns, 0u);
  EXPECT_NE(got.begin_ns, ~uint64_t{0});
  EXPECT_EQ(got.end_ns, 0u);
  EXPECT_EQ(got.passed, 0u);
  EXPECT_EQ(got.departed, 0u);
  EXPECT_EQ(got.faults, 0u);
  EXPECT_EQ(got.failed_gate, -1);
  EXPECT_EQ(got.stall_ns, 0u);
  EXPECT_EQ(got.max_stall_ns, 0u);

  p.h = 12;
  EXPECT_FALSE(Embed(p, {stream_, Overlap::kNone}).ok());
  p.h = 8;
  p.sampled = tokens.get();  // without a count
  EXPECT_FALSE(Embed(p, {stream_, Overlap::kNone}).ok());
}

}  // namespace
}  // namespace weir::cuda
