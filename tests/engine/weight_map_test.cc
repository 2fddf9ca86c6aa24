// Where a model's weights lie, and that what lies there can leave.
#include "engine/weight_map.h"

#include <gtest/gtest.h>

#include "kernels/compressed_weights.h"
#include "pager/eviction_plan.h"
#include "vmm/types.h"

namespace weir {
namespace {

ModelConfig Shape(uint32_t layers, uint32_t hidden, uint32_t ffn, uint32_t heads, uint32_t kv_heads,
                  uint32_t head_dim, uint32_t vocab) {
  ModelConfig c;
  c.num_layers = layers;
  c.hidden_size = hidden;
  c.intermediate_size = ffn;
  c.num_heads = heads;
  c.num_kv_heads = kv_heads;
  c.head_dim = head_dim;
  c.vocab_size = vocab;
  return c;
}

ModelConfig SmolLm2() {
  ModelConfig c = Shape(30, 576, 1536, 9, 3, 64, 49152);
  c.tie_word_embeddings = true;
  return c;
}

void ExpectInOrder(const WeightMap& map) {
  uint64_t end = 0;
  for (size_t l = 0; l < map.layers.size(); ++l) {
    const LayerOffsets& o = map.layers[l];
    const std::vector<WeightSegment>& s = map.layout.layers[l];
    EXPECT_GE(s[0].offset, end);
    EXPECT_EQ(o.qkv, s[0].offset);
    EXPECT_EQ(o.gate_up, s[1].offset);
    EXPECT_EQ(s[1].offset, s[0].offset + s[0].bytes);
    EXPECT_EQ(o.down, s[2].offset);
    EXPECT_EQ(s[2].offset, s[1].offset + s[1].bytes);
    end = s[2].offset + s[2].bytes;
  }
  EXPECT_EQ(map.layout.region_bytes, end);
}

TEST(WeightMapTest, EveryLayerOfASmallModelCanLendAGranule) {
  constexpr uint64_t kGranule = 2 * kMiB;
  const WeightMap packed = WeightMap::Make(SmolLm2(), WeightFormat::kCuda);
  ASSERT_EQ(EvictionPlan::MaxGranulesPerLayer(packed.layout, kGranule), 0U)
      << "this shape no longer shows what the test is about";
  const WeightMap map = WeightMap::Make(SmolLm2(), WeightFormat::kCuda, kGranule);
  ExpectInOrder(map);
  EXPECT_EQ(EvictionPlan::MaxGranulesPerLayer(map.layout, kGranule), 1U);
  EXPECT_LT(map.layout.region_bytes, packed.layout.region_bytes * 104 / 100);
  // Norms and embeddings stay where they were.
  EXPECT_EQ(map.final_norm, packed.final_norm);
  EXPECT_EQ(map.layers[29].mlp_norm, packed.layers[29].mlp_norm);
}

TEST(WeightMapTest, NothingIsPaddedWhereLayersLendAnyway) {
  const ModelConfig llama = Shape(32, 4096, 14336, 32, 8, 128, 128256);
  for (const uint64_t granule : {2 * kMiB, 16 * kMiB}) {
    const WeightMap map = WeightMap::Make(llama, WeightFormat::kCuda, granule);
    ExpectInOrder(map);
    EXPECT_EQ(map.layout.region_bytes,
              WeightMap::Make(llama, WeightFormat::kCuda).layout.region_bytes);
  }
}

TEST(WeightMapTest, NothingIsPaddedWhereNoSegmentCouldHoldAGranule) {
  const WeightMap map = WeightMap::Make(SmolLm2(), WeightFormat::kCuda, 4 * kMiB);
  ExpectInOrder(map);
  EXPECT_EQ(map.layout.region_bytes,
            WeightMap::Make(SmolLm2(), WeightFormat::kCuda).layout.region_bytes);
}

TEST(WeightMapTest, CompressedTakesLessForGateAndUpAndAsMuchForTheRest) {
  const ModelConfig c = SmolLm2();
  for (const uint64_t granule : {uint64_t{0}, kMiB}) {
    const WeightMap plain = WeightMap::Make(c, WeightFormat::kCuda, granule);
    const WeightMap map = WeightMap::Make(c, WeightFormat::kCuda, granule, true);
    ExpectInOrder(map);
    EXPECT_FALSE(plain.compressed);
    EXPECT_TRUE(map.compressed);
    EXPECT_EQ(plain.GateUpBytes(3072, 576), 3072U * 576 * 2);
    EXPECT_EQ(map.GateUpBytes(3072, 576), static_cast<uint64_t>(compressed::Bytes(3072, 576)));
    EXPECT_EQ(map.GateUpBytes(3072, 576), 24U * 9 * compressed::kBlockBytes);
    EXPECT_EQ(map.embedding, plain.embedding);
    EXPECT_EQ(map.final_norm, plain.final_norm);
    for (size_t l = 0; l < map.layers.size(); ++l) {
      const LayerOffsets& got = map.layers[l];
      const LayerOffsets& want = plain.layers[l];
      EXPECT_EQ(got.attn_norm, want.attn_norm);
      EXPECT_EQ(got.mlp_norm, want.mlp_norm);
      EXPECT_EQ(got.o - got.qkv, want.o - want.qkv);
      EXPECT_EQ(got.gate_up - got.o, want.gate_up - want.o);
      const std::vector<WeightSegment>& segments = map.layout.layers[l];
      const std::vector<WeightSegment>& before = plain.layout.layers[l];
      EXPECT_EQ(segments[0].bytes, before[0].bytes);
      EXPECT_EQ(segments[1].bytes, AlignUp(map.GateUpBytes(3072, 576), 256));
      EXPECT_EQ(segments[2].bytes, before[2].bytes);
    }
    EXPECT_LT(map.layout.region_bytes, plain.layout.region_bytes);
  }
}

}  // namespace
}  // namespace weir
