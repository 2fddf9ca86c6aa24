#include "kernels/cuda/gemm.h"

#include <cmath>
#include <random>

#include "kernels/cuda/fill.h"
#include "kernels/cuda/norm.h"
#include "tests/kernels/cuda/device_testing.h"

namespace weir::cuda {
namespace {

using testing::AsBf16;
using testing::DeviceBuffer;

class CudaGemm : public testing::GpuTest {
 protected:
  // |y| against a double reference of the same bf16 inputs; gemm.h has the tolerance.
  void CheckProduct(const GemmKind& kind, int64_t bucket, int64_t m, uint32_t seed,
                    SkinnyUse skinny = SkinnyUse::kAlways) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    const auto random = [&](int64_t n) {
      std::vector<uint16_t> v(static_cast<size_t>(n));
      for (uint16_t& x : v) x = cpu::FloatToBf16(normal(rng));
      return v;
    };
    const auto x = random(bucket * kind.k), w = random(kind.n * kind.k), bias = random(kind.n);
    const auto before = random(bucket * kind.n);
    const bool f32 = kind.type == GemmOutputType::kF32;
    const DeviceBuffer<uint16_t> dx(x), dw(w), db(bias);
    const DeviceBuffer<uint16_t> y16(before);
    const DeviceBuffer<float> y32(static_cast<size_t>(bucket * kind.n));
    const DeviceBuffer<uint16_t> workspace(16 << 20);
    std::unique_ptr<GemmPlanner> planner;
    GemmPlannerOptions options;
    options.workspace = workspace.get();
    options.workspace_bytes = 32 << 20;
    options.skinny = skinny;
    LaunchStatus status = GemmPlanner::Create(options, &planner);
    ASSERT_TRUE(status.ok()) << status.message();
    GemmParams p;
    p.kind = kind;
    p.x = AsBf16(dx.get());
    p.weights = AsBf16(dw.get());
    p.bias = kind.bias ? AsBf16(db.get()) : nullptr;
    p.y = f32 ? static_cast<void*>(y32.get()) : y16.get();
    p.m = bucket;
    status = planner->Prepare(p, {}, stream_);
    ASSERT_TRUE(status.ok()) << status.message();
    (void)cudaMemcpy(y16.get(), before.data(), y16.Bytes(), cudaMemcpyHostToDevice);
    (void)cudaMemset(y32.get(), 0xff, y32.Bytes());
    p.m = m;
    status = planner->Run(p, {.stream = stream_});
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    const auto got16 = y16.Download();
    const auto got32 = y32.Download();
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < kind.n; ++j) {
        const auto at = static_cast<size_t>(i * kind.n + j);
        double want = 0, magnitude = 0;
        for (int64_t c = 0; c < kind.k; ++c) {
          const double term = double{cpu::Bf16ToFloat(x[static_cast<size_t>(i * kind.k + c)])} *
                              double{cpu::Bf16ToFloat(w[static_cast<size_t>(j * kind.k + c)])};
          want += term;
          magnitude += std::abs(term);
        }
        // What is added to may meet a product that was rounded already.
        const double rounded = kind.output == GemmOutput::kAccumulate ? std::abs(want) : 0;
        if (kind.bias) want += double{cpu::Bf16ToFloat(bias[static_cast<size_t>(j)])};
        if (kind.output == GemmOutput::kAccumulate) want += double{cpu::Bf16ToFloat(before[at])};
        const double got = f32 ? double{got32[at]} : double{cpu::Bf16ToFloat(got16[at])};
        const double tolerance = (f32 ? 0 : (std::abs(want) + rounded) * 0x1p-8) +
                                 std::sqrt(static_cast<double>(kind.k)) * 0x1p-22 * magnitude;
        ASSERT_LE(std::abs(got - want), tolerance) << "row " << i << ", column " << j;
      }
    }
    if (m < bucket && !f32) {  // rows past m stay as they were
      const auto first = static_cast<size_t>(m * kind.n);
      EXPECT_EQ(std::memcmp(got16.data() + first, before.data() + first,
                            (before.size() - first) * sizeof(uint16_t)),
                0);
    }
  }
};

TEST_F(CudaGemm, AgreesWithADoubleReferenceInEveryKind) {
  uint32_t seed = 1;
  for (const SkinnyUse skinny : {SkinnyUse::kNever, SkinnyUse::kTimed, SkinnyUse::kAlways}) {
    for (const int64_t m : {1, 7, 64, 200}) {
      CheckProduct({256, 512}, m, m, seed++, skinny);
      CheckProduct({.n = 320, .k = 264, .bias = true}, m, m, seed++, skinny);
      CheckProduct({.n = 256, .k = 512, .output = GemmOutput::kAccumulate}, m, m, seed++, skinny);
      CheckProduct({.n = 1000, .k = 256, .type = GemmOutputType::kF32}, m, m, seed++, skinny);
    }
  }
}

TEST_F(CudaGemm, ABucketTakesFewerRowsAndWritesNoMore) {
  CheckProduct({256, 512}, 64, 33, 90);
}

// Tiles are put together by clusters of several sizes, in several rounds.
TEST_F(CudaGemm, FewRowsOfALargeMatrixAgreeWithADoubleReference) {
  CheckProduct({2000, 4096}, 1, 1, 100);
  CheckProduct({.n = 2000, .k = 4096, .output = GemmOutput::kAccumulate}, 64, 64, 101);
  CheckProduct({.n = 40000, .k = 136, .type = GemmOutputType::kF32}, 9, 9, 102);
  CheckProduct({.n = 1032, .k = 2056, .bias = true}, 32, 32, 103);
}

// Products of so many rows choose among what is proposed for other row counts as well.
TEST_F(CudaGemm, ManyRowsAgreeWithADoubleReference) {
  CheckProduct({256, 512}, 832, 817, 110);
  CheckProduct({.n = 320, .k = 264, .bias = true}, 640, 640, 111);
  CheckProduct({.n = 256, .k = 512, .output = GemmOutput::kAccumulate}, 1984, 1921, 112);
}

// Chosen once, in one process: others import it and time nothing.
TEST_F(CudaGemm, ImportsWhatItExported) {
  constexpr int64_t kN = 6144, kK = 4096;
  const DeviceBuffer<uint16_t> weights(kN * kK), x(64 * kK), y(64 * kN), again(64 * kN),
      workspace(16 << 20);
  for (const auto* buffer : {&weights, &x}) {
    ASSERT_TRUE(FillNormal({.dst = AsBf16(buffer->get()),
                            .count = static_cast<int64_t>(buffer->Bytes() / 2),
                            .seed = 7},
                           {.stream = stream_})
                    .ok());
  }
  std::unique_ptr<GemmPlanner> first, second;
  const GemmPlannerOptions options{.workspace = workspace.get(), .workspace_bytes = 32 << 20};
  ASSERT_TRUE(GemmPlanner::Create(options, &first).ok());
  ASSERT_TRUE(GemmPlanner::Create(options, &second).ok());
  GemmParams p{
      .kind = {kN, kK}, .x = AsBf16(x.get()), .weights = AsBf16(weights.get()), .y = y.get()};
  for (p.m = 1; p.m <= 64; p.m *= 8) ASSERT_TRUE(first->Prepare(p, {}, stream_).ok());
  ASSERT_TRUE(second->Import(first->Export()).ok());
  for (p.m = 1; p.m <= 64; p.m *= 8) {
    p.y = y.get();
    ASSERT_TRUE(first->Run(p, {.stream = stream_}).ok());
    p.y = again.get();
    ASSERT_TRUE(second->Prepare(p, {}, stream_).ok());
    EXPECT_EQ(second->SecondsOf(p.kind, p.m), 0);
    ASSERT_TRUE(second->Run(p, {.stream = stream_}).ok());
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    const auto values = static_cast<size_t>(p.m * kN);
    const auto whole = y.Download(), imported = again.Download();
    EXPECT_TRUE(std::equal(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(values),
                           imported.begin()))
        << p.m << " rows";
  }
  EXPECT_EQ(second->Export(), first->Export());
}

// The weights come from the kernel before, as chunks do behind a gate (early_weights_test.cc has
// such gates).
TEST_F(CudaGemm, AnEarlyLaunchWaitsForWeightsThatAreOnTheirWay) {
  constexpr int64_t kN = 4096, kK = 4096, kM = 8;
  const auto elements = static_cast<size_t>(kN * kK);
  const DeviceBuffer<uint16_t> raw(elements), weights(elements), x(kM * kK), early(kM * kN),
      late(kM * kN), workspace(16 << 20);
  const DeviceBuffer<float> scale(std::vector<float>(kK, 1.0f));
  const DeviceBuffer<int32_t> armed(std::vector<int32_t>{3});
  const DeviceBuffer<GateHeader> header(std::vector<GateHeader>(1));
  const DeviceBuffer<uint64_t> produced(std::vector<uint64_t>{3});  // chunks 0 to 2
  for (const auto* buffer : {&raw, &x}) {
    ASSERT_TRUE(FillNormal({.dst = AsBf16(buffer->get()),
                            .count = static_cast<int64_t>(buffer->Bytes() / 2),
                            .seed = 5},
                           {.stream = stream_})
                    .ok());
  }
  std::unique_ptr<GemmPlanner> planner;
  ASSERT_TRUE(
      GemmPlanner::Create(
          {.workspace = workspace.get(), .workspace_bytes = 32 << 20, .skinny = SkinnyUse::kAlways},
          &planner)
          .ok());
  GemmParams p{.kind = {kN, kK},
               .x = AsBf16(x.get()),
               .weights = AsBf16(weights.get()),
               .y = late.get(),
               .m = kM,
               .gate = {armed.get(), header.get(), produced.get()}};
  ASSERT_TRUE(planner->Prepare(p, {}, stream_).ok());
  for (int round = 0; round < 20; ++round) {
    ASSERT_EQ(cudaMemsetAsync(weights.get(), 0, weights.Bytes(), stream_), cudaSuccess);
    ASSERT_TRUE(RmsNorm({.x = AsBf16(raw.get()),
                         .ldx = kK,
                         .weight = scale.get(),
                         .eps = 1e-5f,
                         .y = AsBf16(weights.get()),
                         .ldy = kK,
                         .m = kN,
                         .h = kK},
                        {.stream = stream_})
                    .ok());
    p.y = early.get();
    ASSERT_TRUE(planner->Run(p, {.stream = stream_, .overlap = Overlap::kPrologue}).ok());
    p.y = late.get();
    ASSERT_TRUE(planner->Run(p, {.stream = stream_}).ok());
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    ASSERT_EQ(early.Download(), late.Download()) << "round " << round;
  }
}

TEST_F(CudaGemm, NamesWhatIsWrong) {
  std::unique_ptr<GemmPlanner> planner;
  ASSERT_TRUE(GemmPlanner::Create({}, &planner).ok());
  GemmParams p;
  p.kind = {256, 12};
  p.m = 1;
  EXPECT_NE(planner->Run(p, {.stream = stream_}).message().find("multiple of 8"),
            std::string::npos);
  EXPECT_NE(planner->Import("of another machine\n").message().find("algorithms are of"),
            std::string::npos);
}

}  // namespace
}  // namespace weir::cuda
