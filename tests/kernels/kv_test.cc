#include "kernels/cpu/kv.h"

#include "tests/kernels/kernel_testing.h"

namespace weir::cpu {
namespace {

using testing::Random;

TEST(KvLayoutTest, SlabsTileTheBlockWithoutGapOrOverlap) {
  const KvLayout layout{.layers = 3, .kv_heads = 2, .head_dim = 72, .dtype = KvDtype::kBf16};
  ASSERT_TRUE(layout.Valid());
  int64_t at = 0;
  for (int64_t l = 0; l < 3; ++l) {
    for (int64_t h = 0; h < 2; ++h, at += 72 * 16 * 2) EXPECT_EQ(layout.KOffset(l, h), at);
    for (int64_t h = 0; h < 2; ++h, at += 80 * 16 * 2) EXPECT_EQ(layout.VOffset(l, h), at);
  }
  EXPECT_EQ(layout.BlockBytes(), at);
}

TEST(KvLayoutTest, RejectsHeadSizesTheKernelsLack) {
  EXPECT_FALSE((KvLayout{.layers = 1, .kv_heads = 1, .head_dim = 12}).Valid());
  EXPECT_FALSE((KvLayout{.layers = 1, .kv_heads = 1, .head_dim = 264}).Valid());
  EXPECT_FALSE((KvLayout{.layers = 1, .kv_heads = 0, .head_dim = 64}).Valid());
}

TEST(KvAppendTest, WritesExactlyTheSlotsOfOneLayer) {
  for (const KvDtype dtype : {KvDtype::kBf16, KvDtype::kF32}) {
    for (const Isa isa : SupportedIsas()) {
      const testing::ScopedIsa scoped(isa);
      const KvLayout layout{.layers = 2, .kv_heads = 3, .head_dim = 72, .dtype = dtype};
      const int64_t stride = layout.BlockBytes() + 64;
      std::vector<uint8_t> memory(static_cast<size_t>(stride * 4), 0xee);
      std::vector<uint8_t> expected = memory;
      const int64_t width = 3 * 72;
      Random random(6);
      const std::vector<float> qkv = random.Values(6 * 3 * width);
      const std::vector<int64_t> slots = {3 * 16 + 15, 0, 17, -1, 2 * 16 + 7, 18};
      const auto put = [&](int64_t offset, float value) {
        if (dtype == KvDtype::kBf16) {
          const uint16_t b = FloatToBf16(value);
          std::memcpy(expected.data() + offset, &b, 2);
        } else {
          std::memcpy(expected.data() + offset, &value, 4);
        }
      };
      for (int64_t i = 0; i < 6; ++i) {
        const int64_t slot = slots[static_cast<size_t>(i)];
        if (slot < 0) continue;
        for (int64_t h = 0; h < 3; ++h) {
          for (int64_t d = 0; d < 72; ++d) {
            const size_t row = static_cast<size_t>(i * 3 * width + h * 72 + d);
            const size_t w = static_cast<size_t>(width);
            const int64_t block = slot / 16 * stride;
            const int64_t e = layout.ElementBytes();
            put(block + layout.KOffset(1, h) + (d * 16 + slot % 16) * e, qkv[row + w]);
            put(block + layout.VOffset(1, h) + (slot % 16 * 80 + d) * e, qkv[row + 2 * w]);
          }
        }
      }
      ThreadPool pool(2);
      KvAppend({.base = memory.data(), .block_stride_bytes = stride, .layout = layout},
               {.k = qkv.data() + width,
                .v = qkv.data() + 2 * width,
                .row_stride = 3 * width,
                .m = 6,
                .layer = 1,
                .slots = slots.data()},
               pool);
      EXPECT_EQ(memory, expected) << IsaName(isa);
    }
  }
}

}  // namespace
}  // namespace weir::cpu
