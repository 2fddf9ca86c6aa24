// Products of compressed weights: those of the weights that were compressed.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/compressed_weights.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/skinny_gemm.h"
#include "tests/kernels/cuda/rows_testing.h"

namespace weir::cuda {
namespace {

using testing::AsBf16;
using testing::DeviceBuffer;
using testing::Launched;
using testing::Random;
using Values = std::vector<uint16_t>;

// All row counts that a kernel has a shape for, full or not, and several passes.
const std::vector<int64_t> kRowCounts = [] {
  std::vector<int64_t> counts = {1, 64, 128, 160, 256, 257, 500, 700};
  for (const int rows : kSkinnyRows) counts.push_back(rows - 1);
  return counts;
}();
constexpr int64_t kMostRows = 700;

size_t Size(int64_t count) {
  return static_cast<size_t>(count);
}

// A matrix on the device, as it is and compressed.
struct Weights {
  Weights(int64_t n_, int64_t k_, Values values) : n(n_), k(k_), bits(std::move(values)) {
    std::vector<uint8_t> bytes(Size(compressed::Bytes(n, k)));
    const auto failure = cpu::CompressWeights(bits.data(), n, k, bytes.data());
    EXPECT_FALSE(failure.has_value()) << failure->patches << " patches";
    plain = std::make_unique<DeviceBuffer<uint16_t>>(bits);
    compressed = std::make_unique<DeviceBuffer<uint8_t>>(bytes);
  }
  const Bf16* Of(const GemmKind& kind) const {
    return kind.compressed ? reinterpret_cast<const Bf16*>(compressed->get())
                           : AsBf16(plain->get());
  }

  int64_t n, k;
  Values bits;
  std::unique_ptr<DeviceBuffer<uint16_t>> plain;
  std::unique_ptr<DeviceBuffer<uint8_t>> compressed;
};

// Weights of the eight values that have codes, and in each block up to kMostPatches of any other,
// zeros among them.
Values PatchedWeights(int64_t n, int64_t k, uint32_t seed) {
  Random random(seed);
  Values w(Size(n * k));
  for (uint16_t& x : w) {
    x = static_cast<uint16_t>(random.Int(0, 1) << 15 | random.Int(112, 127) << 7 |
                              random.Int(0, 127));
  }
  for (int64_t row = 0; row < n; row += compressed::kRows) {
    const int64_t last = std::min(n - row, compressed::kRows) - 1;
    for (int64_t col = 0; col < k; col += compressed::kCols) {
      // A fourth of the blocks have about as many as they may; every third one is a zero.
      const int patches = random.Int(0, 3) == 0 ? compressed::kMostPatches
                                                : random.Int(0, compressed::kMostPatches - 1);
      for (int i = 0; i < patches; ++i) {
        const int64_t at = (row + random.Int(0, static_cast<int32_t>(last))) * k + col +
                           random.Int(0, compressed::kCols - 1);
        const int exponent = random.Int(1, 254);
        w[Size(at)] = static_cast<uint16_t>(i % 3 == 0 ? (i % 2) << 15
                                                       : random.Int(0, 1) << 15 | exponent << 7 |
                                                             random.Int(0, 127));
      }
    }
  }
  return w;
}

class CudaCompressedGemm : public testing::GpuTest {
 protected:
  void SetUp() override {
    testing::GpuTest::SetUp();
    if (IsSkipped()) return;
    SkinnyGemm skinny;
    const LaunchStatus status = SkinnyGemm::Create(&skinny);
    if (status.code() == cudaErrorNotSupported) GTEST_SKIP() << status.message();
    ASSERT_TRUE(Launched(status));
    workspace_ = std::make_unique<DeviceBuffer<uint8_t>>(32 << 20);
  }
  void TearDown() override {
    workspace_.reset();
    testing::GpuTest::TearDown();
  }

  std::unique_ptr<GemmPlanner> Planner(SkinnyUse skinny, Bf16* expanded = nullptr,
                                       size_t expanded_bytes = 0) const {
    std::unique_ptr<GemmPlanner> planner;
    EXPECT_TRUE(Launched(GemmPlanner::Create({.workspace = workspace_->get(),
                                              .workspace_bytes = workspace_->Bytes(),
                                              .expanded = expanded,
                                              .expanded_bytes = expanded_bytes,
                                              .skinny = skinny},
                                             &planner)));
    return planner;
  }

  struct Rows {
    const DeviceBuffer<uint16_t>* x;
    const DeviceBuffer<uint16_t>* bias;  // used if the kind has one
    int64_t m;
    int64_t first = 0;  // of x
  };
  GemmParams Params(const GemmKind& kind, const Weights& w, const Rows& rows, uint16_t* y) const {
    return {.kind = kind,
            .x = AsBf16(rows.x->get() + rows.first * kind.k),
            .weights = w.Of(kind),
            .bias = kind.bias ? AsBf16(rows.bias->get()) : nullptr,
            .y = y,
            .m = rows.m};
  }
  // Y of a product that was prepared, on top of |before|.
  Values ProductOf(GemmPlanner& planner, const GemmKind& kind, const Weights& w, const Rows& rows,
                   const Values& before) {
    const DeviceBuffer<uint16_t> y(before);
    EXPECT_TRUE(Launched(planner.Run(Params(kind, w, rows, y.get()), {.stream = stream_})));
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    return y.Download();
  }
  void Prepare(GemmPlanner& planner, const GemmKind& kind, const Weights& w, const Rows& rows) {
    const DeviceBuffer<uint16_t> y(Size(rows.m * kind.n));
    ASSERT_TRUE(Launched(planner.Prepare(Params(kind, w, rows, y.get()), {}, stream_)));
  }

  std::unique_ptr<DeviceBuffer<uint8_t>> workspace_;
};

std::vector<GemmKind> CompressedKinds(int64_t n, int64_t k) {
  return {{.n = n, .k = k, .compressed = true},
          {.n = n, .k = k, .bias = true, .compressed = true},
          {.n = n, .k = k, .output = GemmOutput::kAccumulate, .compressed = true}};
}

// Sums of products in double, and of their magnitudes.
struct Reference {
  Reference(const Values& x, const Values& w, int64_t rows, int64_t n, int64_t k)
      : sums(Size(rows * n)), magnitudes(Size(rows * n)) {
    const std::vector<float> wide_x = testing::Widen(x), wide_w = testing::Widen(w);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0, magnitude = 0;
        for (int64_t c = 0; c < k; ++c) {
          const double term = double{wide_x[Size(i * k + c)]} * double{wide_w[Size(j * k + c)]};
          sum += term;
          magnitude += std::abs(term);
        }
        sums[Size(i * n + j)] = sum;
        magnitudes[Size(i * n + j)] = magnitude;
      }
    }
  }
  std::vector<double> sums, magnitudes;
};

// gemm.h has the tolerance. Rows past m stay as they were.
void ExpectProduct(const Values& got, const Reference& reference, const GemmKind& kind, int64_t m,
                   const Values& bias, const Values& before) {
  const double order = std::sqrt(static_cast<double>(kind.k)) * 0x1p-22;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < kind.n; ++j) {
      const size_t at = Size(i * kind.n + j);
      double want = reference.sums[at];
      const double rounded = kind.output == GemmOutput::kAccumulate ? std::abs(want) : 0;
      if (kind.bias) want += double{cpu::Bf16ToFloat(bias[Size(j)])};
      if (kind.output == GemmOutput::kAccumulate) want += double{cpu::Bf16ToFloat(before[at])};
      const double tolerance =
          (std::abs(want) + rounded) * 0x1p-8 + order * reference.magnitudes[at];
      ASSERT_LE(std::abs(double{cpu::Bf16ToFloat(got[at])} - want), tolerance)
          << "row " << i << ", column " << j;
    }
  }
  const size_t end = Size(m * kind.n);
  EXPECT_EQ(
      std::memcmp(got.data() + end, before.data() + end, (before.size() - end) * sizeof(uint16_t)),
      0)
      << "behind the last row";
}

TEST_F(CudaCompressedGemm, AgreesWithADoubleReferenceInEveryKind) {
  uint32_t seed = 1;
  for (const int64_t n : {384, 1000}) {
    for (const int64_t k : {128, 576}) {
      Random random(seed++);
      const Values x = random.Bf16s(kMostRows * k), bias = random.Bf16s(n);
      const Values before = random.Bf16s((kMostRows + 1) * n);
      const Weights w(n, k, random.Bf16s(n * k));
      const Reference reference(x, w.bits, kMostRows, n, k);
      const DeviceBuffer<uint16_t> dx(x), db(bias);
      for (const SkinnyUse skinny : {SkinnyUse::kTimed, SkinnyUse::kAlways}) {
        const auto planner = Planner(skinny);
        for (const GemmKind& kind : CompressedKinds(n, k)) {
          for (const int64_t m : kRowCounts) {
            SCOPED_TRACE(::testing::Message()
                         << m << " rows, [" << n << ", " << k << "], bias " << kind.bias
                         << ", output " << static_cast<int>(kind.output) << ", use "
                         << static_cast<int>(skinny));
            const Rows rows{&dx, &db, m};
            ASSERT_NO_FATAL_FAILURE(Prepare(*planner, kind, w, rows));
            const Values got = ProductOf(*planner, kind, w, rows, before);
            ASSERT_NO_FATAL_FAILURE(ExpectProduct(got, reference, kind, m, bias, before));
          }
        }
      }
    }
  }
}

TEST_F(CudaCompressedGemm, ABucketTakesFewerRowsAndWritesNoMore) {
  constexpr int64_t kN = 1000, kK = 576;
  Random random(20);
  const Values x = random.Bf16s(kMostRows * kK), before = random.Bf16s(kMostRows * kN);
  const Weights w(kN, kK, random.Bf16s(kN * kK));
  const Reference reference(x, w.bits, kMostRows, kN, kK);
  const DeviceBuffer<uint16_t> dx(x);
  const auto planner = Planner(SkinnyUse::kAlways);
  const GemmKind kind{.n = kN, .k = kK, .compressed = true};
  ASSERT_NO_FATAL_FAILURE(Prepare(*planner, kind, w, {&dx, nullptr, kMostRows}));
  for (const int64_t m : kRowCounts) {
    SCOPED_TRACE(m);
    const Values got = ProductOf(*planner, kind, w, {&dx, nullptr, m}, before);
    ASSERT_NO_FATAL_FAILURE(ExpectProduct(got, reference, kind, m, {}, before));
  }
}

TEST_F(CudaCompressedGemm, ManyRowsAreMadeOfExpandedParts) {
  constexpr int64_t kN = 3072, kK = 128, kRows = 1600;
  constexpr int64_t kTileBytes = compressed::kRows * kK * 2;
  Random random(30);
  const Values x = random.Bf16s(kRows * kK), bias = random.Bf16s(kN);
  const Values before = random.Bf16s((kRows + 1) * kN);
  const Weights w(kN, kK, random.Bf16s(kN * kK));
  const Reference reference(x, w.bits, kRows, kN, kK);
  const DeviceBuffer<uint16_t> dx(x), db(bias);
  const DeviceBuffer<uint16_t> expanded(Values(Size(kN * kK), 0xffff));
  // All at once, three parts of 8 tiles of 24, and too few.
  for (const int64_t tiles : {24, 11, 7}) {
    const auto planner =
        Planner(SkinnyUse::kTimed, AsBf16(expanded.get()), Size(tiles * kTileBytes));
    for (const GemmKind& kind : CompressedKinds(kN, kK)) {
      ASSERT_NO_FATAL_FAILURE(Prepare(*planner, kind, w, {&dx, &db, kRows}));
      for (const int64_t m : {257, 1536, 1537, 1600}) {
        SCOPED_TRACE(::testing::Message()
                     << m << " rows, room for " << tiles << " tiles, bias " << kind.bias
                     << ", output " << static_cast<int>(kind.output));
        const Values got = ProductOf(*planner, kind, w, {&dx, &db, m}, before);
        ASSERT_NO_FATAL_FAILURE(ExpectProduct(got, reference, kind, m, bias, before));
      }
    }
    const Values part = expanded.Download();
    const int64_t rows = tiles == 24 ? kN : tiles == 11 ? kN / 3 : 0;
    EXPECT_EQ(std::memcmp(part.data(), w.bits.data() + (kN - rows) * kK, Size(rows * kK) * 2), 0);
    if (rows > 0) {
      ASSERT_EQ(cudaMemset(expanded.get(), 0xff, expanded.Bytes()), cudaSuccess);
    } else {
      EXPECT_EQ(part, Values(Size(kN * kK), 0xffff));
    }
  }
}

// Many tiles in several rounds, by every size of cluster: of each row the bits that plain weights
// give in clusters of that size, 64 rows at a time.
TEST_F(CudaCompressedGemm, HasTheBitsOfTheProductOfPlainWeights) {
  struct Shape {
    int64_t n, k;
  };
  SkinnyGemm skinny;
  ASSERT_TRUE(Launched(SkinnyGemm::Create(&skinny)));
  const auto product = [&](const GemmParams& params, int cluster) {
    ASSERT_TRUE(Launched(skinny.Run(params, cluster, {.stream = stream_})));
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  };
  uint32_t seed = 40;
  for (const Shape& shape : {Shape{384, 128}, {1000, 576}, {2000, 4096}, {40000, 192}}) {
    const auto [n, k] = shape;
    Random random(seed++);
    const Weights w(n, k, random.Bf16s(n * k));
    const Values before = random.Bf16s(kMostRows * n);
    const DeviceBuffer<uint16_t> x(random.Bf16s(kMostRows * k)), bias(random.Bf16s(n));
    for (const GemmKind& kind : CompressedKinds(n, k)) {
      GemmKind plain = kind;
      plain.compressed = false;
      for (const int64_t m : kRowCounts) {
        for (const int cluster : skinny.Clusters(kind, m)) {
          SCOPED_TRACE(::testing::Message()
                       << m << " rows, [" << n << ", " << k << "], bias " << kind.bias
                       << ", output " << static_cast<int>(kind.output) << ", clusters of "
                       << cluster);
          const DeviceBuffer<uint16_t> got(before), want(before);
          product(Params(kind, w, {&x, &bias, m}, got.get()), cluster);
          for (int64_t first = 0; first < m; first += kMaxSkinnyRows) {
            const int64_t rows = std::min(kMaxSkinnyRows, m - first);
            product(Params(plain, w, {&x, &bias, rows, first}, want.get() + first * n), cluster);
          }
          ASSERT_TRUE(got.Download() == want.Download());
        }
      }
    }
  }
}

// Rows of the identity: each product is one weight.
TEST_F(CudaCompressedGemm, EveryPatchedWeightIsTheOneItWas) {
  constexpr int64_t kK = 256;
  Values identity(kK * kK);
  for (int64_t i = 0; i < kK; ++i) identity[Size(i * kK + i)] = 0x3f80;
  const DeviceBuffer<uint16_t> x(identity);
  uint32_t seed = 60;
  for (const int64_t n : {384, 1000}) {
    const Weights w(n, kK, PatchedWeights(n, kK, seed++));
    const GemmKind kind{.n = n, .k = kK, .compressed = true};
    const auto planner = Planner(SkinnyUse::kAlways);
    for (const int64_t m : {8, 16, 32, 64, 96, 128, 256}) {
      ASSERT_NO_FATAL_FAILURE(Prepare(*planner, kind, w, {&x, nullptr, m}));
      for (int64_t first = 0; first < kK; first += m) {
        const int64_t rows = std::min(m, kK - first);
        const Values got = ProductOf(*planner, kind, w, {&x, nullptr, rows, first},
                                     Values(Size(rows * n), 0xffff));
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            ASSERT_EQ(cpu::Bf16ToFloat(got[Size(i * n + j)]),
                      cpu::Bf16ToFloat(w.bits[Size(j * kK + first + i)]))
                << "weight (" << j << ", " << first + i << "), " << m << " rows";
          }
        }
      }
    }
  }
}

TEST_F(CudaCompressedGemm, ImportsWhatItExported) {
  constexpr int64_t kN = 6144, kK = 1024;
  Random random(80);
  const Weights w(kN, kK, random.Bf16s(kN * kK));
  const DeviceBuffer<uint16_t> x(random.Bf16s(256 * kK));
  const auto first = Planner(SkinnyUse::kTimed), second = Planner(SkinnyUse::kTimed);
  const GemmKind kind{.n = kN, .k = kK, .compressed = true};
  GemmKind plain = kind;
  plain.compressed = false;
  for (const GemmKind& each : {kind, plain}) {
    for (const int64_t m : {1, 8, 64, 100, 256}) {
      ASSERT_NO_FATAL_FAILURE(Prepare(*first, each, w, {&x, nullptr, m}));
    }
  }
  ASSERT_TRUE(Launched(second->Import(first->Export())));
  for (const GemmKind& each : {kind, plain}) {
    for (const int64_t m : {1, 8, 64, 100, 256}) {
      SCOPED_TRACE(::testing::Message() << m << " rows, compressed " << each.compressed);
      const Rows rows{&x, nullptr, m};
      ASSERT_NO_FATAL_FAILURE(Prepare(*second, each, w, rows));
      EXPECT_GT(first->SecondsOf(each, m), 0);
      EXPECT_EQ(second->SecondsOf(each, m), 0);
      const Values before(Size(m * kN), 0xffff);
      EXPECT_TRUE(ProductOf(*first, each, w, rows, before) ==
                  ProductOf(*second, each, w, rows, before));
    }
  }
  EXPECT_EQ(second->Export(), first->Export());
}

TEST_F(CudaCompressedGemm, NamesWhatIsWrong) {
  const DeviceBuffer<uint16_t> memory(Values(1 << 16, 0));
  const auto refused = [&](GemmPlanner& planner, const GemmKind& kind) {
    const GemmParams p{.kind = kind,
                       .x = AsBf16(memory.get()),
                       .weights = AsBf16(memory.get()),
                       .y = memory.get(),
                       .m = 1};
    for (const LaunchStatus& status :
         {planner.Prepare(p, {}, stream_), planner.Run(p, {.stream = stream_})}) {
      if (status.code() != cudaErrorNotSupported ||
          status.message().find("compressed weights need") == std::string::npos) {
        return false;
      }
    }
    return true;
  };
  const auto planner = Planner(SkinnyUse::kTimed);
  EXPECT_TRUE(refused(*planner, {.n = 256, .k = 72, .compressed = true}));
  EXPECT_TRUE(refused(*planner, {.n = 254, .k = 64, .compressed = true}));
  EXPECT_TRUE(
      refused(*planner, {.n = 256, .k = 64, .type = GemmOutputType::kF32, .compressed = true}));
  EXPECT_FALSE(refused(*planner, {.n = 256, .k = 64, .compressed = true}));
  // It is our own kernel that makes them.
  EXPECT_TRUE(refused(*Planner(SkinnyUse::kNever), {.n = 256, .k = 64, .compressed = true}));
}

}  // namespace
}  // namespace weir::cuda
