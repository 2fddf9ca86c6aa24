#include "kernels/cuda/norm.h"

#include <cstring>

#include "kernels/cpu/norm.h"
#include "tests/kernels/cuda/rows_testing.h"

namespace weir::cuda {
namespace {

using testing::AsBf16;
using testing::DeviceBuffer;
using testing::Launched;

constexpr float kEps = 1e-5f;

class CudaNorm : public testing::GpuTest {
 protected:
  RmsNormParams ParamsFor(int64_t m, int64_t h, const uint16_t* x, const float* weight,
                          uint16_t* y) const {
    RmsNormParams p;
    p.x = AsBf16(x);
    p.ldx = p.ldy = p.h = h;
    p.weight = weight;
    p.eps = kEps;
    p.y = AsBf16(y);
    p.m = m;
    return p;
  }

  // Strided, with rows in another order if |gather|.
  void CheckShape(int64_t m, int64_t h, bool gather, uint32_t seed) {
    SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(h));
    testing::Random random(seed);
    const int64_t ldx = h + 16, ldy = h + 8, x_rows = gather ? m + 5 : m;
    const auto x = random.Bf16s(x_rows * ldx, 3);
    const auto weight = random.Floats(h, 1);
    std::vector<int32_t> rows(static_cast<size_t>(m));
    for (int64_t i = 0; i < m; ++i) {
      rows[static_cast<size_t>(i)] =
          gather ? random.Int(0, static_cast<int32_t>(x_rows) - 1) : static_cast<int32_t>(i);
    }
    const DeviceBuffer<uint16_t> dx(x), dy(static_cast<size_t>(m * ldy));
    const DeviceBuffer<float> dw(weight);
    const DeviceBuffer<int32_t> drows(rows);
    RmsNormParams p = ParamsFor(m, h, dx.get(), dw.get(), dy.get());
    p.ldx = ldx;
    p.ldy = ldy;
    if (gather) p.rows = drows.get();
    ASSERT_TRUE(Launched(RmsNorm(p, {stream_, Overlap::kNone})));
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    const auto y = dy.Download();

    const auto wide = testing::Widen(x);
    std::vector<float> want(static_cast<size_t>(h));
    cpu::ThreadPool pool(1);
    for (int64_t i = 0; i < m; ++i) {
      cpu::RmsNorm({wide.data() + rows[static_cast<size_t>(i)] * ldx, ldx, weight.data(), kEps,
                    want.data(), h, 1, h},
                   pool);
      for (int64_t j = 0; j < ldy; ++j) {
        const uint16_t got = y[static_cast<size_t>(i * ldy + j)];
        if (j < h) {
          ASSERT_TRUE(testing::IsRounded(got, want[static_cast<size_t>(j)], 0))
              << "row " << i << ", column " << j << ": " << cpu::Bf16ToFloat(got) << ", not "
              << want[static_cast<size_t>(j)];
        } else {
          ASSERT_EQ(got, 0xffff) << "between rows " << i << " and the next";
        }
      }
    }
  }
};

TEST_F(CudaNorm, AgreesWithTheCpuForEveryWidth) {
  uint32_t seed = 1;
  for (const int64_t h : {8, 24, 896, 1024, 1032, 2048, 3072, 4096, 5120, 8192, 8200, 16384}) {
    for (const int64_t m : {1, 3, 37}) CheckShape(m, h, /*gather=*/false, seed++);
  }
}

TEST_F(CudaNorm, GathersRows) {
  CheckShape(1, 4096, /*gather=*/true, 50);
  CheckShape(41, 2048, /*gather=*/true, 51);
}

TEST_F(CudaNorm, ARowsBitsDependOnNoOtherRow) {
  for (const int64_t h : {2048, 4096, 8192, 12288}) {
    constexpr int64_t kRows = 513;
    testing::Random random(static_cast<uint32_t>(h));
    const auto x = random.Bf16s(kRows * h);
    const DeviceBuffer<uint16_t> dx(x), all(x.size()), one(x.size());
    const DeviceBuffer<float> dw(random.Floats(h, 1));
    const Launch launch{stream_, Overlap::kNone};
    ASSERT_TRUE(Launched(RmsNorm(ParamsFor(kRows, h, dx.get(), dw.get(), all.get()), launch)));
    for (int64_t i = 0; i < kRows; ++i) {
      ASSERT_TRUE(Launched(
          RmsNorm(ParamsFor(1, h, dx.get() + i * h, dw.get(), one.get() + i * h), launch)));
    }
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    EXPECT_EQ(all.Download(), one.Download()) << "h " << h;
  }
}

TEST_F(CudaNorm, WorksInPlaceAndLaunchedEarly) {
  constexpr int64_t kRows = 200, kWidth = 4096;
  constexpr int kTimes = 50;
  testing::Random random(7);
  const auto x = random.Bf16s(kRows * kWidth);
  const DeviceBuffer<uint16_t> in_place(x), a(x), b(x.size());
  const DeviceBuffer<float> dw(random.Floats(kWidth, 1));
  for (int i = 0; i < kTimes; ++i) {
    ASSERT_TRUE(Launched(RmsNorm(ParamsFor(kRows, kWidth, in_place.get(), dw.get(), in_place.get()),
                                 {stream_, Overlap::kPrologue})));
  }
  for (int i = 0; i < kTimes; ++i) {
    uint16_t* from = i % 2 == 0 ? a.get() : b.get();
    uint16_t* to = i % 2 == 0 ? b.get() : a.get();
    ASSERT_TRUE(
        Launched(RmsNorm(ParamsFor(kRows, kWidth, from, dw.get(), to), {stream_, Overlap::kNone})));
  }
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(in_place.Download(), a.Download());
}

TEST_F(CudaNorm, RefusesWhatItCannotDo) {
  const DeviceBuffer<uint16_t> x(64), y(64);
  const DeviceBuffer<float> w(64);
  const Launch launch{stream_, Overlap::kNone};
  const auto refused = [&](auto change) {
    RmsNormParams p = ParamsFor(1, 32, x.get(), w.get(), y.get());
    change(p);
    return !RmsNorm(p, launch).ok();
  };
  EXPECT_FALSE(refused([](RmsNormParams&) {}));
  EXPECT_TRUE(refused([](RmsNormParams& p) { p.m = 0; }));
  EXPECT_TRUE(refused([](RmsNormParams& p) { p.h = 12; }));
  EXPECT_TRUE(refused([](RmsNormParams& p) { p.h = p.ldx = p.ldy = 16392; }));
  EXPECT_TRUE(refused([](RmsNormParams& p) { p.ldx = 24; }));
  EXPECT_TRUE(refused([](RmsNormParams& p) { p.x += 1; }));
  EXPECT_TRUE(refused([](RmsNormParams& p) { p.gate.arrive = 0; }));
  EXPECT_TRUE(refused([&](RmsNormParams& p) {
    p.y = AsBf16(x.get());
    p.ldy += 8;
  }));
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
}

}  // namespace
}  // namespace weir::cuda
