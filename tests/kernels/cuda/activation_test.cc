#include "kernels/cuda/activation.h"

#include "tests/kernels/cuda/rows_testing.h"

namespace weir::cuda {
namespace {

using testing::AsBf16;
using testing::DeviceBuffer;

using CudaActivation = testing::GpuTest;

TEST_F(CudaActivation, AgreesWithTheCpu) {
  struct Shape {
    int64_t m, f;
  };
  uint32_t seed = 1;
  for (const Shape shape : {Shape{1, 8}, {3, 14336}, {70000, 8}, {5, 2056}, {130, 2048}}) {
    SCOPED_TRACE(std::to_string(shape.m) + " x " + std::to_string(shape.f));
    testing::Random random(seed++);
    // Both halves far beyond where silu is linear or 0.
    const auto gate_up = random.Bf16s(2 * shape.m * shape.f, 20);
    const DeviceBuffer<uint16_t> dx(gate_up), dy(gate_up.size() / 2 + 8);
    SiluMulParams p;
    p.gate_up = AsBf16(dx.get());
    p.y = AsBf16(dy.get());
    p.m = shape.m;
    p.f = shape.f;
    ASSERT_TRUE(testing::Launched(SiluMul(p, {stream_, Overlap::kNone})));
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    const auto y = dy.Download();

    const auto wide = testing::Widen(gate_up);
    std::vector<float> want(gate_up.size() / 2);
    cpu::ThreadPool pool(1);
    cpu::SiluMul({wide.data(), 2 * shape.f, want.data(), shape.f, shape.m, shape.f}, pool);
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_TRUE(testing::IsRounded(y[i], want[i], 0x1p-110f))
          << "value " << i << ": " << cpu::Bf16ToFloat(y[i]) << ", not " << want[i];
    }
    for (size_t i = want.size(); i < y.size(); ++i) ASSERT_EQ(y[i], 0xffff) << "past the end";
  }
}

TEST_F(CudaActivation, RefusesWhatItCannotDo) {
  const DeviceBuffer<uint16_t> x(64), y(64);
  const auto refused = [&](auto change) {
    SiluMulParams p;
    p.gate_up = AsBf16(x.get());
    p.y = AsBf16(y.get());
    p.m = 1;
    p.f = 16;
    change(p);
    return !SiluMul(p, {stream_, Overlap::kNone}).ok();
  };
  EXPECT_FALSE(refused([](SiluMulParams&) {}));
  EXPECT_TRUE(refused([](SiluMulParams& p) { p.m = 0; }));
  EXPECT_TRUE(refused([](SiluMulParams& p) { p.f = 12; }));
  EXPECT_TRUE(refused([](SiluMulParams& p) { p.y += 1; }));
  EXPECT_TRUE(refused([](SiluMulParams& p) { p.gate.depart = 0; }));
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
}

}  // namespace
}  // namespace weir::cuda
