#include "kernels/cuda/prefetch.h"

#include "kernels/cuda/activation.h"
#include "tests/kernels/cuda/gates_testing.h"

namespace weir::cuda {
namespace {

using testing::AsBf16;
using testing::DeviceBuffer;
using testing::kBase;
using testing::kLongNs;
using testing::Launched;

class CudaPrefetch : public testing::GateTest {};

const Bf16* const kAligned = reinterpret_cast<const Bf16*>(uintptr_t{1} << 20);

TEST(PrefetchOf, StaysInsideTheMatrixAndTheBytes) {
  for (const PrefetchOrder order : {PrefetchOrder::kColumns, PrefetchOrder::kRows}) {
    for (const int64_t n : {1, 7, 6144, 28672, 128256}) {
      for (const int64_t k : {8, 128, 4096, 14336, 1 << 20}) {
        for (const int64_t bytes :
             {int64_t{1}, int64_t{4096}, int64_t{1} << 22, int64_t{1} << 42}) {
          const WeightPrefetch p = PrefetchOf(kAligned, n, k, {}, order, bytes);
          SCOPED_TRACE(::testing::Message() << n << " x " << k << ", " << bytes << " bytes");
          EXPECT_TRUE(Launched(CheckPrefetch(p, "a launch")));
          EXPECT_LE(p.rows, n);
          EXPECT_LE(p.row_bytes, k * 2);
          EXPECT_EQ(p.stride, k * 2);
          EXPECT_LE(p.rows * p.row_bytes, bytes);
        }
      }
    }
  }
}

TEST(PrefetchOf, TakesWhatItIsAskedFor) {
  const WeightPrefetch rows =
      PrefetchOf(kAligned, 6144, 4096, {}, PrefetchOrder::kRows, int64_t{4} << 20);
  EXPECT_EQ(rows.rows, 512);
  EXPECT_EQ(rows.row_bytes, 8192);
  const WeightPrefetch columns =
      PrefetchOf(kAligned, 4096, 4096, {}, PrefetchOrder::kColumns, int64_t{4} << 20);
  EXPECT_EQ(columns.rows, 4096);
  EXPECT_EQ(columns.row_bytes, 1024);
  // Too many rows for whole pieces of each: the first of them.
  const WeightPrefetch many =
      PrefetchOf(kAligned, 28672, 4096, {}, PrefetchOrder::kColumns, int64_t{4} << 20);
  EXPECT_EQ(many.rows, 8192);
  EXPECT_EQ(many.row_bytes, 512);
  EXPECT_EQ(PrefetchOf(kAligned, 6144, 4096, {}, PrefetchOrder::kRows, 0).rows, 0);
  EXPECT_EQ(PrefetchOf(kAligned, 6144, 4096, {}, PrefetchOrder::kColumns, 0).rows, 0);
}

TEST(CheckPrefetch, NamesWhatIsWrong) {
  const WeightPrefetch right{.weights = kAligned, .rows = 4, .row_bytes = 512, .stride = 1024};
  EXPECT_TRUE(CheckPrefetch(right, "a launch").ok());
  EXPECT_TRUE(CheckPrefetch({}, "a launch").ok());
  EXPECT_EQ(PrefetchBlocks({}), 0);
  const auto refused = [&](auto change) {
    WeightPrefetch p = right;
    change(p);
    return !CheckPrefetch(p, "a launch").ok();
  };
  EXPECT_TRUE(refused([](WeightPrefetch& p) { p.rows = -1; }));
  EXPECT_TRUE(refused([](WeightPrefetch& p) { p.row_bytes = 520; }));
  EXPECT_TRUE(refused([](WeightPrefetch& p) { p.row_bytes = 0; }));
  EXPECT_TRUE(refused([](WeightPrefetch& p) { p.stride = 256; }));
  EXPECT_TRUE(refused([](WeightPrefetch& p) { p.stride = 1032; }));
  EXPECT_TRUE(refused([](WeightPrefetch& p) { p.stride = p.row_bytes = int64_t{1} << 31; }));
  EXPECT_TRUE(refused([](WeightPrefetch& p) { p.weights = nullptr; }));
  EXPECT_TRUE(refused([](WeightPrefetch& p) { p.weights += 1; }));
  const int32_t chunk = 0;
  EXPECT_TRUE(refused([&](WeightPrefetch& p) { p.gate.chunk = &chunk; }));
}

// Norm and activation, of few rows and of many, with and without a gate of their own, in front of
// weights that are at home, have come, and are away.
TEST_F(CudaPrefetch, ChangesNoBit) {
  constexpr int64_t kWeightRows = 6144, kColumns = 4096;
  const DeviceBuffer<uint16_t> weights(kWeightRows * kColumns);
  bed_->produced().Store(kBase + 1);
  const GateTable& table = bed_->table();
  testing::Random random(3);
  for (const int64_t rows : {1, 64, 300}) {
    const DeviceBuffer<uint16_t> x(random.Bf16s(rows * 2 * kColumns));
    const DeviceBuffer<float> scale(random.Floats(kColumns, 1));
    const auto run = [&](const WeightPrefetch& prefetch, const GatePoint& gate) {
      const DeviceBuffer<uint16_t> normed(static_cast<size_t>(rows * kColumns));
      const DeviceBuffer<uint16_t> activated(static_cast<size_t>(rows * kColumns));
      if (gate.used()) bed_->Begin();
      const Launch launch{stream_, Overlap::kPrologue};
      EXPECT_TRUE(Launched(RmsNorm({.x = AsBf16(x.get()),
                                    .ldx = kColumns,
                                    .weight = scale.get(),
                                    .eps = 1e-5f,
                                    .y = AsBf16(normed.get()),
                                    .ldy = kColumns,
                                    .m = rows,
                                    .h = kColumns,
                                    .gate = gate,
                                    .prefetch = prefetch},
                                   launch)));
      EXPECT_TRUE(Launched(SiluMul({.gate_up = AsBf16(x.get()),
                                    .y = AsBf16(activated.get()),
                                    .m = rows,
                                    .f = kColumns,
                                    .gate = gate,
                                    .prefetch = prefetch},
                                   launch)));
      Finish();
      return std::pair(normed.Download(), activated.Download());
    };
    const auto want = run({}, {});
    for (const PrefetchOrder order : {PrefetchOrder::kColumns, PrefetchOrder::kRows}) {
      for (const int32_t chunk : {-1, 0, 1}) {
        for (const int64_t bytes : {8192, 4 << 20, 1 << 30}) {
          bed_->Prepare({kBase, kLongNs}, {0, chunk});
          const WeightGate before{table.chunk_of_gate + 1, table.header, table.produced};
          const WeightPrefetch prefetch =
              PrefetchOf(AsBf16(weights.get()), kWeightRows, kColumns, before, order, bytes);
          ASSERT_GT(prefetch.rows, 0);
          EXPECT_EQ(run(prefetch, {}), want);
          EXPECT_EQ(run(prefetch, {table, 0, -1}), want);
          EXPECT_EQ(bed_->Log().passed, 2u);
          EXPECT_EQ(bed_->Log().failed_gate, -1);
        }
      }
    }
  }
}

}  // namespace
}  // namespace weir::cuda
