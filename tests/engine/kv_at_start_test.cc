// KV that is mapped before the first request: what is wanted of what it has with all weights at
// home, no more.
#include <gtest/gtest.h>

#include "engine/memory.h"
#include "tests/support/sim_model.h"
#include "vmm/sim_driver.h"

namespace weir {
namespace {

using testing::SimModel;
using testing::SimModelShape;

constexpr uint64_t kGranule = 4096;
constexpr uint32_t kKvGranules = 64;
constexpr uint32_t kBlocksPerGranule = 4;

class KvAtStart : public ::testing::Test {
 protected:
  ~KvAtStart() override {
    memory_.reset();
    EXPECT_EQ(driver_->violations(), 0U);
  }

  // |kv_granules|: of the budget beside weights and step buffers; below zero where it does not hold
  // those.
  void Make(int kv_granules, bool map_kv_at_start, uint64_t wanted_granules = 1000) {
    memory_.reset();
    const SimModelShape shape{.layers = 8, .segments = 1, .segment_bytes = 8 * kGranule};
    MemoryOptions m;
    m.granule_bytes = kGranule;
    m.scratch_bytes = kGranule;
    m.kv_block_bytes = kGranule / kBlocksPerGranule;
    m.weights = SimModel::Layout(shape);
    m.kv_wanted_bytes = wanted_granules * kGranule;
    m.map_kv_at_start = map_kv_at_start;
    const auto fixed = static_cast<int>(CeilDiv(m.weights.region_bytes, kGranule) + 1);
    m.hbm_budget_bytes = static_cast<uint64_t>(fixed + kv_granules) * kGranule;
    memory_ = Memory::Create(*driver_, m).value();
    ASSERT_TRUE(memory_->weights().Write(0, SimModel::WeightBytes(shape)).ok());
    ASSERT_TRUE(memory_->weights().Seal().ok());
  }
  uint32_t capacity() const { return memory_->blocks().counts().capacity; }
  Status MoveTo(uint32_t granules_per_layer) {
    return memory_->MoveBorder({.granules_per_layer = granules_per_layer},
                               {.rest = [] {}, .patch = [](const auto&) {}, .lost = [] {}});
  }

  std::unique_ptr<SimDriver> driver_ = SimDriver::Create({.granularity_bytes = kGranule}).value();
  std::unique_ptr<Memory> memory_;
};

TEST_F(KvAtStart, NothingIsMappedUnlessAskedFor) {
  Make(kKvGranules, false);
  EXPECT_EQ(capacity(), 0U);
  EXPECT_EQ(memory_->pool().Available(), kKvGranules);
}

TEST_F(KvAtStart, AllThatKvHasWithAllWeightsAtHomeIsMapped) {
  Make(kKvGranules, true);
  EXPECT_EQ(capacity(), kKvGranules * kBlocksPerGranule);
  EXPECT_EQ(capacity(), memory_->KvBlocksAt({}));
  EXPECT_EQ(memory_->blocks().counts().free, capacity());
  EXPECT_EQ(memory_->pool().Available(), 0U);
  EXPECT_TRUE(memory_->CheckIntegrity().ok());
}

TEST_F(KvAtStart, NoMoreIsMappedThanIsWanted) {
  Make(kKvGranules, true, 5);
  EXPECT_EQ(capacity(), 5 * kBlocksPerGranule);
  EXPECT_EQ(memory_->pool().Available(), kKvGranules - 5);
}

TEST_F(KvAtStart, ABudgetThatLacksRoomForTheWeightsHasNoneToMap) {
  Make(-4, true);
  EXPECT_EQ(memory_->KvBlocksAt({}), std::nullopt);
  EXPECT_EQ(capacity(), 0U);
  ASSERT_TRUE(memory_->GrowKv(1).ok());
  EXPECT_EQ(capacity(), kBlocksPerGranule);
}

TEST_F(KvAtStart, WeightsLeaveAndComeHomeWithoutTouchingIt) {
  Make(kKvGranules, true);
  const uint32_t home = capacity();
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(MoveTo(4).ok());
    EXPECT_EQ(capacity(), home) << "what left is lent when it is asked for";
    ASSERT_TRUE(MoveTo(0).ok());
    EXPECT_EQ(capacity(), home);
  }
  ASSERT_TRUE(MoveTo(4).ok());
  ASSERT_TRUE(memory_->GrowKv(1 << 20).ok());
  EXPECT_GT(capacity(), home);
  ASSERT_TRUE(MoveTo(0).ok());
  EXPECT_EQ(capacity(), home) << "KV gave back what it was lent";
  EXPECT_TRUE(memory_->CheckIntegrity().ok());
}

}  // namespace
}  // namespace weir
