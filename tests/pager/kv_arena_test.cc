#include "pager/kv_arena.h"

#include <numeric>

#include "tests/pager/pager_world.h"

namespace weir {
namespace {

using test::DriverKind;

TEST(KvGeometryTest, AGranuleHoldsSeveralBlocksOfASmallModel) {
  const auto g = KvGeometry::Choose(64 * kKiB, 2 * kMiB);
  ASSERT_TRUE(g.ok());
  EXPECT_EQ(g->granules_per_extent, 1U);
  EXPECT_EQ(g->blocks_per_extent, 32U);
  EXPECT_EQ(g->block_stride, 64 * kKiB);
}

TEST(KvGeometryTest, ABlockOfALargeModelTakesSeveralGranules) {
  const auto g = KvGeometry::Choose(5 * kMiB, 2 * kMiB);
  ASSERT_TRUE(g.ok());
  EXPECT_EQ(g->block_stride % 64, 0U);
  EXPECT_LE(g->waste(), 0.02);
  EXPECT_EQ(g->granules_per_extent, 5U);
  EXPECT_EQ(g->blocks_per_extent, 2U);
}

TEST(KvGeometryTest, ABlockLargerThanAnyExtentIsRefused) {
  EXPECT_FALSE(KvGeometry::Choose(65 * kMiB, 2 * kMiB, 32).ok());
  EXPECT_TRUE(KvGeometry::Choose(64 * kMiB, 2 * kMiB, 32).ok());
  EXPECT_FALSE(KvGeometry::Choose(0, 2 * kMiB).ok());
  EXPECT_FALSE(KvGeometry::Choose(1, 3).ok());
  EXPECT_FALSE(KvGeometry::Choose(~uint64_t{0}, 2 * kMiB).ok());
}

TEST(KvGeometryTest, RandomGeometriesFillTheirExtentsAndWasteAsLittleAsPossible) {
  std::mt19937_64 rng(11);
  for (int i = 0; i < 3000; ++i) {
    const uint64_t granule = uint64_t{4096} << (rng() % 10);
    const uint64_t block = 1 + rng() % (granule * 3);
    const auto g = KvGeometry::Choose(block, granule);
    ASSERT_TRUE(g.ok()) << g.status().ToString();
    EXPECT_EQ(g->blocks_per_extent * g->block_stride, g->granules_per_extent * granule);
    EXPECT_GE(g->block_stride, block);
    EXPECT_EQ(g->block_stride % 64, 0U);
    // By brute force: no extent does better by more than 2 %.
    double least = 1.0;
    for (uint64_t n = 1; n <= 32; ++n) {
      for (uint64_t count = n * granule / AlignUp(block, 64); count > 0; --count) {
        const uint64_t extent = n * granule;
        if (extent % count != 0 || extent / count % 64 != 0) continue;
        least =
            std::min(least, 1.0 - static_cast<double>(block) / static_cast<double>(extent / count));
        break;
      }
    }
    EXPECT_LE(g->waste(), least + 0.0200001) << "block " << block << " granule " << granule;
  }
}

class KvArenaTest : public testing::TestWithParam<DriverKind> {
 protected:
  void SetUp() override {
    driver_ = test::MakeDriver(GetParam());
    faulty_ = std::make_unique<test::FaultDriver>(*driver_);
    pool_ = std::move(*GranulePool::Create(
        *faulty_, {.tier = Tier::kHbm, .granule_bytes = test::kGranule, .count = 20}));
    space_ = std::move(*AddressSpace::Create(*faulty_, *pool_, {}));
    const auto geometry = KvGeometry::Choose(20 * kKiB, test::kGranule);
    ASSERT_TRUE(geometry.ok());
    ASSERT_EQ(geometry->granules_per_extent, 5U);
    ASSERT_EQ(geometry->blocks_per_extent, 4U);
    arena_ = std::move(*KvArena::Create(*space_, *geometry, 10));
  }
  void TearDown() override {
    if (arena_) {
      EXPECT_TRUE(space_->CheckIntegrity().ok());
      std::vector<uint32_t> all;
      for (uint32_t e = 0; e < 10; ++e) {
        if (arena_->is_mapped(e)) all.push_back(e);
      }
      EXPECT_TRUE(arena_->Shrink(all, {}).ok());
      EXPECT_EQ(pool_->Available(), 20U);
    }
    arena_.reset();
    space_.reset();
    pool_.reset();
  }
  std::unique_ptr<Driver> driver_;
  std::unique_ptr<test::FaultDriver> faulty_;
  std::unique_ptr<GranulePool> pool_;
  std::unique_ptr<AddressSpace> space_;
  std::unique_ptr<KvArena> arena_;
};
INSTANTIATE_TEST_SUITE_P(Drivers, KvArenaTest, testing::Values(DriverKind::kHost, DriverKind::kSim),
                         [](const auto& param) { return test::KindName(param.param); });

TEST_P(KvArenaTest, GrowingTakesTheLowestExtentsAndNoMoreThanThePoolHas) {
  std::vector<uint32_t> extents;
  ASSERT_TRUE(arena_->Grow(2, &extents).ok());
  EXPECT_EQ(extents, (std::vector<uint32_t>{0, 1}));
  ASSERT_TRUE(arena_->Grow(5, &extents).ok());
  EXPECT_EQ(extents, (std::vector<uint32_t>{0, 1, 2, 3}));
  EXPECT_EQ(arena_->mapped_extents(), 4U);
  EXPECT_EQ(pool_->Available(), 0U);
  ASSERT_TRUE(arena_->Shrink({1}, {}).ok());
  extents.clear();
  ASSERT_TRUE(arena_->Grow(1, &extents).ok());
  EXPECT_EQ(extents, (std::vector<uint32_t>{1}));
}

TEST_P(KvArenaTest, ShrinkingWaitsForTheFence) {
  std::vector<uint32_t> extents;
  ASSERT_TRUE(arena_->Grow(2, &extents).ok());
  const StreamId stream = *driver_->CreateStream("work");
  const VirtAddr counter = *driver_->CreateCounter();
  ASSERT_TRUE(driver_->WaitCounter(stream, counter, 1).ok());
  Fence fence(*driver_->Record(stream));
  EXPECT_EQ(arena_->Shrink({0, 1}, fence).code(), StatusCode::kShouldWait);
  EXPECT_EQ(arena_->mapped_extents(), 2U);
  driver_->StoreCounter(counter, 1);
  ASSERT_TRUE(fence.Wait(*driver_).ok());
  EXPECT_TRUE(arena_->Shrink({1, 0}, fence).ok());
  EXPECT_EQ(arena_->mapped_extents(), 0U);
  ASSERT_TRUE(driver_->DestroyStream(stream).ok());
  ASSERT_TRUE(driver_->DestroyCounter(counter).ok());
}

TEST_P(KvArenaTest, ExtentsThatAreNotThereAreRefusedAndNothingChanges) {
  std::vector<uint32_t> extents;
  ASSERT_TRUE(arena_->Grow(2, &extents).ok());
  EXPECT_EQ(arena_->Shrink({0, 5}, {}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(arena_->Shrink({10}, {}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(arena_->Shrink({0, 0}, {}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(arena_->mapped_extents(), 2U);
}

TEST_P(KvArenaTest, AMapThatFailsKeepsWhatWasMappedBeforeItAndSaysSo) {
  int maps = 0;
  faulty_->map_fails = [&] { return ++maps == 8; };  // in the second extent
  std::vector<uint32_t> extents;
  EXPECT_EQ(arena_->Grow(3, &extents).code(), StatusCode::kDriver);
  EXPECT_EQ(extents, (std::vector<uint32_t>{0}));
  EXPECT_EQ(arena_->mapped_extents(), 1U);
  EXPECT_EQ(pool_->Available(), 15U);
  EXPECT_TRUE(space_->CheckIntegrity().ok());
  ASSERT_TRUE(arena_->Grow(1, &extents).ok());
}

}  // namespace
}  // namespace weir
