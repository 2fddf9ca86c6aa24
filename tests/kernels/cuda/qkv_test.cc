#include "kernels/cuda/qkv.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/cpu/norm.h"
#include "kernels/cpu/rope.h"
#include "tests/kernels/cuda/rows_testing.h"

namespace weir::cuda {
namespace {

using testing::AsBf16;
using testing::DeviceBuffer;

constexpr float kEps = 1e-6f;
constexpr int32_t kMaxPositions = 300;
constexpr int32_t kLayers = 3, kLayer = 1;

struct Case {
  int64_t m;
  int32_t q_heads, kv_heads, head_dim, padded;
  KvOrder order;
  bool norm;

  int64_t Heads() const { return q_heads + 2 * kv_heads; }
  int64_t Stride() const { return Heads() * padded + 8; }
};

std::string Describe(const Case& c) {
  return std::to_string(c.m) + " rows, " + std::to_string(c.q_heads) + " + " +
         std::to_string(c.kv_heads) + " heads of " + std::to_string(c.head_dim) + " in " +
         std::to_string(c.padded) + (c.norm ? ", norms" : "") +
         (c.order == KvOrder::kTokenHead ? ", token-head" : ", head-token");
}

struct Inputs {
  std::vector<uint16_t> qkv;  // [m, Stride()]
  std::vector<float> q_norm, k_norm, cos, sin;
  std::vector<int32_t> positions, slots;
  int64_t blocks = 0;
};

Inputs MakeInputs(const Case& c, uint32_t seed) {
  testing::Random random(seed);
  Inputs in;
  in.qkv = random.Bf16s(c.m * c.Stride());
  for (int64_t i = 0; i < c.m * c.Heads(); ++i) {  // padding
    const int64_t at = i / c.Heads() * c.Stride() + i % c.Heads() * c.padded;
    std::fill(in.qkv.begin() + at + c.head_dim, in.qkv.begin() + at + c.padded, uint16_t{0});
  }
  in.q_norm = random.Floats(c.head_dim, 1);
  in.k_norm = random.Floats(c.head_dim, 1);
  const int64_t half = c.head_dim / 2;
  std::vector<float> inv_freq(static_cast<size_t>(half));
  cpu::DefaultInvFreq(10000, c.head_dim, inv_freq.data());
  in.cos.resize(static_cast<size_t>(kMaxPositions * half));
  in.sin.resize(in.cos.size());
  cpu::FillRopeTable(inv_freq.data(), half, 0, kMaxPositions, 1, in.cos.data(), in.sin.data());
  in.blocks = c.m / 8 + 3;
  in.slots.resize(static_cast<size_t>(in.blocks * kBlockTokens));
  std::iota(in.slots.begin(), in.slots.end(), 0);
  std::shuffle(in.slots.begin(), in.slots.end(), random.engine());
  in.slots.resize(static_cast<size_t>(c.m));
  for (int64_t i = 0; i < c.m; ++i) {
    in.positions.push_back(random.Int(0, kMaxPositions - 1));
    if (i % 5 == 3) {  // a padding row, with a position out of range
      in.slots[static_cast<size_t>(i)] = i % 2 == 0 ? -1 : -1000;
      in.positions.back() = i % 2 == 0 ? -7 : kMaxPositions + 5;
    }
  }
  return in;
}

// Heads [first, first + heads) of every row, normalised and rotated on the CPU: [m, heads, dim].
std::vector<float> Reference(const Case& c, const Inputs& in, int64_t first, int64_t heads,
                             const std::vector<float>& norm) {
  const int64_t dim = c.head_dim;
  std::vector<float> x(static_cast<size_t>(c.m * heads * dim));
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t d = 0; d < dim; ++d) {
        x[static_cast<size_t>((i * heads + h) * dim + d)] = cpu::Bf16ToFloat(
            in.qkv[static_cast<size_t>(i * c.Stride() + (first + h) * c.padded + d)]);
      }
    }
  }
  cpu::ThreadPool pool(1);
  if (c.norm) cpu::HeadRmsNorm({x.data(), heads * dim, norm.data(), kEps, c.m, heads, dim}, pool);
  std::vector<int32_t> positions = in.positions;
  for (int32_t& position : positions) position = std::clamp(position, 0, kMaxPositions - 1);
  cpu::ApplyRope(
      {x.data(), heads * dim, c.m, heads, dim, dim, positions.data(), in.cos.data(), in.sin.data()},
      pool);
  return x;
}

class CudaQkv : public testing::GpuTest {
 protected:
  void Check(const Case& c, uint32_t seed) {
    SCOPED_TRACE(Describe(c));
    const Inputs in = MakeInputs(c, seed);
    const KvLayout layout{kLayers, c.kv_heads, c.padded, c.order};
    const int64_t block_stride = layout.BlockElements() + 64;
    const DeviceBuffer<uint16_t> qkv(in.qkv), pool(static_cast<size_t>(in.blocks * block_stride));
    const DeviceBuffer<float> q_norm(in.q_norm), k_norm(in.k_norm), cos(in.cos), sin(in.sin);
    const DeviceBuffer<int32_t> positions(in.positions), slots(in.slots);
    QkvParams p;
    p.qkv = AsBf16(qkv.get());
    p.ldqkv = c.Stride();
    p.m = c.m;
    p.q_heads = c.q_heads;
    p.head_dim = c.head_dim;
    if (c.norm) p.q_norm = q_norm.get(), p.k_norm = k_norm.get();
    p.eps = kEps;
    p.cos = cos.get();
    p.sin = sin.get();
    p.max_positions = kMaxPositions;
    p.positions = positions.get();
    p.slots = slots.get();
    p.kv = {AsBf16(pool.get()), block_stride, layout};
    p.layer = kLayer;
    ASSERT_TRUE(testing::Launched(FinishQkv(p, {stream_, Overlap::kNone})));
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    CheckQ(c, in, qkv.Download());
    CheckPool(c, in, layout, block_stride, pool.Download());
  }

  // Without norms the result is exact; with them the sum's order differs, and a rotation may
  // cancel.
  static bool Agrees(const Case& c, uint16_t got, float want) {
    return c.norm ? testing::IsRounded(got, want, 1e-4f) : got == cpu::FloatToBf16(want);
  }

  static void CheckQ(const Case& c, const Inputs& in, std::vector<uint16_t> got) {
    const auto want = Reference(c, in, 0, c.q_heads, in.q_norm);
    for (int64_t i = 0; i < c.m * c.q_heads; ++i) {
      const int64_t at = i / c.q_heads * c.Stride() + i % c.q_heads * c.padded;
      for (int64_t d = 0; d < c.head_dim; ++d) {
        uint16_t& value = got[static_cast<size_t>(at + d)];
        ASSERT_TRUE(Agrees(c, value, want[static_cast<size_t>(i * c.head_dim + d)]))
            << "q: row " << i / c.q_heads << ", head " << i % c.q_heads << ", value " << d;
        value = in.qkv[static_cast<size_t>(at + d)];
      }
    }
    EXPECT_TRUE(got == in.qkv) << "something beside q was written";
  }

  static void CheckPool(const Case& c, const Inputs& in, const KvLayout& layout,
                        int64_t block_stride, std::vector<uint16_t> got) {
    const auto want = Reference(c, in, c.q_heads, c.kv_heads, in.k_norm);
    const auto take = [&](int64_t at) {
      return std::exchange(got[static_cast<size_t>(at)], 0xffff);
    };
    for (int64_t i = 0; i < c.m; ++i) {
      const int32_t slot = in.slots[static_cast<size_t>(i)];
      if (slot < 0) continue;
      for (int64_t h = 0; h < c.kv_heads; ++h) {
        const int64_t at = slot / kBlockTokens * block_stride +
                           slot % kBlockTokens * layout.TokenStride() + h * layout.HeadStride();
        const int64_t v = i * c.Stride() + (c.q_heads + c.kv_heads + h) * c.padded;
        for (int64_t d = 0; d < c.padded; ++d) {
          const uint16_t k_got = take(at + layout.KOffset(kLayer) + d);
          const uint16_t v_got = take(at + layout.VOffset(kLayer) + d);
          const auto k_at = static_cast<size_t>((i * c.kv_heads + h) * c.head_dim + d);
          ASSERT_TRUE(d < c.head_dim ? Agrees(c, k_got, want[k_at]) : k_got == 0)
              << "k: row " << i << ", head " << h << ", value " << d;
          ASSERT_EQ(v_got, in.qkv[static_cast<size_t>(v + d)])
              << "v: row " << i << ", head " << h << ", value " << d;
        }
      }
    }
    EXPECT_TRUE(std::all_of(got.begin(), got.end(), [](uint16_t x) { return x == 0xffff; }))
        << "something beside the slots was written";
  }
};

TEST_F(CudaQkv, AgreesWithTheCpuForEveryHeadSizeAndOrder) {
  struct Dims {
    int32_t real, padded;
  };
  uint32_t seed = 1;
  for (const Dims d : {Dims{64, 64},
                       {128, 128},
                       {256, 256},
                       {96, 128},
                       {80, 128},
                       {64, 128},
                       {48, 64},
                       {16, 64}}) {
    for (const KvOrder order : {KvOrder::kTokenHead, KvOrder::kHeadToken}) {
      for (const bool norm : {false, true}) {
        for (const int64_t m : {1, 5, 67}) {
          Check({m, 8, 2, d.real, d.padded, order, norm}, seed++);
          Check({m, 7, 1, d.real, d.padded, order, norm}, seed++);
        }
      }
    }
  }
}

TEST_F(CudaQkv, ReachesBlocksBeyondFourGigabytes) {
  constexpr int64_t kStride = (int64_t{1} << 31) + 8;  // elements
  const KvLayout layout{1, 1, 64, KvOrder::kTokenHead};
  size_t free_bytes = 0, total_bytes = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
  if (free_bytes < (size_t{6} << 30)) GTEST_SKIP() << "needs 6 GiB of device memory";
  void* pool = nullptr;
  ASSERT_EQ(cudaMalloc(&pool, static_cast<size_t>(2 * (kStride + layout.BlockElements()))),
            cudaSuccess);
  const DeviceBuffer<uint16_t> qkv(std::vector<uint16_t>(3 * 64, 0x3f80));
  const DeviceBuffer<float> cos(std::vector<float>(32, 1)), sin(std::vector<float>(32, 0));
  const DeviceBuffer<int32_t> position(std::vector<int32_t>{0}),
      slot(std::vector<int32_t>{16 + 15});
  QkvParams p;
  p.qkv = AsBf16(qkv.get());
  p.ldqkv = 3 * 64;
  p.m = p.q_heads = p.max_positions = 1;
  p.head_dim = 64;
  p.cos = cos.get();
  p.sin = sin.get();
  p.positions = position.get();
  p.slots = slot.get();
  p.kv = {static_cast<Bf16*>(pool), kStride, layout};
  EXPECT_TRUE(testing::Launched(FinishQkv(p, {stream_, Overlap::kNone})));
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  std::vector<uint16_t> k(64, 0);
  EXPECT_EQ(cudaMemcpy(k.data(), p.kv.base + kStride + 15 * 64, 128, cudaMemcpyDeviceToHost),
            cudaSuccess);
  EXPECT_EQ(k, std::vector<uint16_t>(64, 0x3f80));
  (void)cudaFree(pool);
}

TEST_F(CudaQkv, RefusesWhatItCannotDo) {
  const DeviceBuffer<uint16_t> qkv(3 * 64), pool(2 * 16 * 64);
  const DeviceBuffer<float> table(32);
  const DeviceBuffer<int32_t> numbers(std::vector<int32_t>{0});
  const auto refused = [&](auto change) {
    QkvParams p;
    p.qkv = AsBf16(qkv.get());
    p.ldqkv = 3 * 64;
    p.m = p.q_heads = p.max_positions = 1;
    p.head_dim = 64;
    p.cos = p.sin = table.get();
    p.positions = p.slots = numbers.get();
    const KvLayout layout{1, 1, 64, KvOrder::kTokenHead};
    p.kv = {AsBf16(pool.get()), layout.BlockElements(), layout};
    change(p);
    return !FinishQkv(p, {stream_, Overlap::kNone}).ok();
  };
  EXPECT_FALSE(refused([](QkvParams&) {}));
  EXPECT_TRUE(refused([](QkvParams& p) { p.m = 0; }));
  EXPECT_TRUE(refused([](QkvParams& p) { p.head_dim = 128; }));
  EXPECT_TRUE(refused([](QkvParams& p) { p.head_dim = 40; }));
  EXPECT_TRUE(refused([](QkvParams& p) { p.ldqkv = 2 * 64; }));
  EXPECT_TRUE(refused([](QkvParams& p) { p.layer = 1; }));
  EXPECT_TRUE(refused([](QkvParams& p) { p.q_norm = p.cos + 1; }));
  EXPECT_TRUE(refused([](QkvParams& p) { p.slots = nullptr; }));
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
}

}  // namespace
}  // namespace weir::cuda
