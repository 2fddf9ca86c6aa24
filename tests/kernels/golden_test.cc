// One number a kernel, the same on every machine and in every release: a change here changes the
// tokens that served models produce, and is to be announced as such.

#include <cstring>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/rope.h"
#include "tests/kernels/kernel_testing.h"

namespace weir::cpu {
namespace {

// Values made of integer steps only, so that no libm stands between two machines.
std::vector<float> Inputs(int64_t n, uint64_t seed, float scale) {
  std::vector<float> v(static_cast<size_t>(n));
  uint64_t state = seed;
  for (float& x : v) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    x = static_cast<float>(static_cast<int64_t>(state >> 40) - (1 << 23)) * (scale / 8388608.0f);
  }
  return v;
}

uint64_t Hash(const std::vector<float>& v) {  // FNV-1a over the bits
  uint64_t h = 14695981039346656037u;
  for (const float f : v) {
    const uint32_t u = std::bit_cast<uint32_t>(f);
    for (int i = 0; i < 4; ++i) h = (h ^ ((u >> (8 * i)) & 0xff)) * 1099511628211u;
  }
  return h;
}

TEST(GoldenTest, Gemm) {
  const std::vector<float> w = Inputs(200 * 577, 1, 0.2f);
  const std::vector<float> x = Inputs(9 * 577, 2, 3.0f);
  const std::vector<float> bias = Inputs(200, 3, 1.0f);
  std::vector<uint16_t> packed(PackedWeightBytes(200, 577) / 2);
  PackRows(w.data(), 0, 200, 200, 577, packed.data());
  const std::vector<float> y = testing::SameBitsEverywhere([&](ThreadPool& pool) {
    std::vector<float> out = Inputs(9 * 200, 4, 5.0f);
    Gemm({.x = x.data(),
          .ldx = 577,
          .weights = packed.data(),
          .bias = bias.data(),
          .y = out.data(),
          .ldy = 200,
          .m = 9,
          .n = 200,
          .k = 577,
          .output = GemmOutput::kAccumulate},
         pool);
    return out;
  });
  EXPECT_EQ(Hash(y), 0x78e2791f6174c5f0u);
}

TEST(GoldenTest, RowKernels) {
  const std::vector<float> x = Inputs(3 * 1000, 5, 8.0f);
  const std::vector<float> weight = Inputs(1000, 6, 2.0f);
  const std::vector<float> cos = Inputs(4 * 40, 7, 1.0f);
  const std::vector<float> sin = Inputs(4 * 40, 8, 1.0f);
  const std::vector<int32_t> positions = {3, 0, 2};
  const std::vector<float> y = testing::SameBitsEverywhere([&](ThreadPool& pool) {
    std::vector<float> out(3 * 1000);
    RmsNorm({.x = x.data(),
             .ldx = 1000,
             .weight = weight.data(),
             .eps = 1e-5f,
             .y = out.data(),
             .ldy = 1000,
             .m = 3,
             .h = 1000},
            pool);
    ApplyRope({.x = out.data(),
               .row_stride = 1000,
               .m = 3,
               .heads = 12,
               .head_dim = 80,
               .rotary_dim = 80,
               .positions = positions.data(),
               .cos = cos.data(),
               .sin = sin.data()},
              pool);
    SiluMul({.gate_up = out.data(),
             .ld_gate_up = 1000,
             .y = out.data(),
             .ldy = 1000,
             .m = 3,
             .ffn = 500},
            pool);
    return out;
  });
  EXPECT_EQ(Hash(y), 0xea17da17b3f9c95fu);
}

TEST(GoldenTest, Attention) {
  for (const KvDtype dtype : {KvDtype::kBf16, KvDtype::kF32}) {
    const int64_t tokens = 1200;
    const KvLayout layout{.layers = 1, .kv_heads = 2, .head_dim = 72, .dtype = dtype};
    std::vector<uint8_t> memory(static_cast<size_t>(layout.BlockBytes() * 75), 0xff);
    const KvPool kv{
        .base = memory.data(), .block_stride_bytes = layout.BlockBytes(), .layout = layout};
    const std::vector<float> k = Inputs(tokens * 144, 9, 2.0f);
    const std::vector<float> v = Inputs(tokens * 144, 10, 2.0f);
    const std::vector<float> q = Inputs(5 * 6 * 72, 11, 2.0f);
    std::vector<int64_t> slots;
    std::vector<int32_t> blocks;
    for (int64_t t = 0; t < tokens; ++t) slots.push_back(t);
    for (int32_t b = 0; b < 75; ++b) blocks.push_back(b);
    const std::vector<float> y = testing::SameBitsEverywhere([&](ThreadPool& pool) {
      KvAppend(kv,
               {.k = k.data(),
                .v = v.data(),
                .row_stride = 144,
                .m = tokens,
                .layer = 0,
                .slots = slots.data()},
               pool);
      const AttentionSeq seq{.q_begin = 0, .q_end = 5, .context = tokens, .blocks = blocks.data()};
      std::vector<float> scratch(AttentionScratchBytes(1, 0, 6, 72) / 4 + 16);
      std::vector<float> out(5 * 6 * 72);
      PagedAttention(kv,
                     {.q = q.data(),
                      .q_stride = 6 * 72,
                      .out = out.data(),
                      .out_stride = 6 * 72,
                      .q_heads = 6,
                      .layer = 0,
                      .scale = 0.125f,
                      .seqs = &seq,
                      .num_seqs = 1,
                      .scratch = reinterpret_cast<void*>(
                          (reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64),
                      .scratch_bytes = AttentionScratchBytes(1, 0, 6, 72)},
                     pool);
      return out;
    });
    EXPECT_EQ(Hash(y), dtype == KvDtype::kBf16 ? 0x74a825573fb25b4bu : 0x9cb047923dea9e0eu);
  }
}

}  // namespace
}  // namespace weir::cpu
