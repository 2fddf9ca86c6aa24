#include "pager/block_copier.h"

#include "tests/pager/pager_world.h"

namespace weir {
namespace {

using test::DriverKind;

class BlockCopierTest : public testing::TestWithParam<DriverKind> {
 protected:
  void SetUp() override {
    driver_ = test::MakeDriver(GetParam());
    pool_ = std::move(*GranulePool::Create(
        *driver_, {.tier = Tier::kHbm, .granule_bytes = test::kGranule, .count = 20}));
    space_ = std::move(*AddressSpace::Create(*driver_, *pool_, {}));
    arena_ =
        std::move(*KvArena::Create(*space_, *KvGeometry::Choose(20 * kKiB, test::kGranule), 10));
    std::vector<uint32_t> extents;
    ASSERT_TRUE(arena_->Grow(4, &extents).ok());  // blocks 0 to 15
    copier_ = std::move(*BlockCopier::Create(*driver_, *arena_));
    for (uint32_t b = 0; b < 16; ++b) {
      ASSERT_TRUE(driver_->Write(Address(b), Content(b)).ok());
    }
  }
  VirtAddr Address(uint32_t b) const { return arena_->base() + b * arena_->block_stride(); }
  std::vector<std::byte> Content(uint32_t b) const {
    return std::vector<std::byte>(arena_->geometry().block_bytes, static_cast<std::byte>(b + 1));
  }
  bool Holds(uint32_t at, uint32_t content) {
    std::vector<std::byte> out(arena_->geometry().block_bytes);
    return driver_->Read(Address(at), out).ok() && out == Content(content);
  }
  std::unique_ptr<Driver> driver_;
  std::unique_ptr<GranulePool> pool_;
  std::unique_ptr<AddressSpace> space_;
  std::unique_ptr<KvArena> arena_;
  std::unique_ptr<BlockCopier> copier_;
};
INSTANTIATE_TEST_SUITE_P(Drivers, BlockCopierTest,
                         testing::Values(DriverKind::kHost, DriverKind::kSim),
                         [](const auto& param) { return test::KindName(param.param); });

TEST_P(BlockCopierTest, BlocksMoveSinglyAndInRuns) {
  auto fence = copier_->Move({{12, 0}, {13, 1}, {14, 2}, {9, 5}});
  ASSERT_TRUE(fence.ok()) << fence.status().ToString();
  ASSERT_TRUE(fence->Wait(*driver_).ok());
  EXPECT_TRUE(Holds(0, 12));
  EXPECT_TRUE(Holds(1, 13));
  EXPECT_TRUE(Holds(2, 14));
  EXPECT_TRUE(Holds(3, 3));
  EXPECT_TRUE(Holds(5, 9));
  EXPECT_TRUE(Holds(6, 6));
  EXPECT_EQ(copier_->blocks_moved(), 4U);
}

TEST_P(BlockCopierTest, OneBlockMayGoToSeveralPlaces) {
  auto fence = copier_->Move({{3, 4}, {3, 5}});
  ASSERT_TRUE(fence.ok());
  ASSERT_TRUE(fence->Wait(*driver_).ok());
  EXPECT_TRUE(Holds(4, 3));
  EXPECT_TRUE(Holds(5, 3));
}

TEST_P(BlockCopierTest, OverlapsAndUnmappedBlocksAreRefused) {
  EXPECT_FALSE(copier_->Move({{1, 2}, {2, 3}}).ok());
  EXPECT_FALSE(copier_->Move({{1, 2}, {3, 2}}).ok());
  EXPECT_FALSE(copier_->Move({{1, 1}}).ok());
  EXPECT_FALSE(copier_->Move({{1, 16}}).ok());
  EXPECT_FALSE(copier_->Move({{4000, 1}}).ok());
  EXPECT_EQ(copier_->blocks_moved(), 0U);
  auto none = copier_->Move({});
  ASSERT_TRUE(none.ok());
  EXPECT_TRUE(none->empty());
}

}  // namespace
}  // namespace weir
