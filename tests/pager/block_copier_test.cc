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
  const Status moved = copier_->Move({{12, 0}, {13, 1}, {14, 2}, {9, 5}});
  ASSERT_TRUE(moved.ok()) << moved.ToString();
  EXPECT_TRUE(Holds(0, 12));
  EXPECT_TRUE(Holds(1, 13));
  EXPECT_TRUE(Holds(2, 14));
  EXPECT_TRUE(Holds(3, 3));
  EXPECT_TRUE(Holds(5, 9));
  EXPECT_TRUE(Holds(6, 6));
  EXPECT_EQ(copier_->blocks_moved(), 4U);
}

TEST_P(BlockCopierTest, OneBlockMayGoToSeveralPlaces) {
  ASSERT_TRUE(copier_->Move({{3, 4}, {3, 5}}).ok());
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
  EXPECT_TRUE(copier_->Move({}).ok());
}

// What was queued before a call that failed is not written over those who have the blocks next, and
// the next move works, whether queueing a copy failed or the copy itself.
TEST(BlockCopierFailure, LeavesNoCopyUnderWay) {
  for (const bool while_queueing : {true, false}) {
    SCOPED_TRACE(while_queueing);
    SimDriver::Options options{.hbm_bytes_per_s = 1e9, .copy_latency_ns = 10'000};
    auto driver = SimDriver::Create(options).value();
    auto pool = GranulePool::Create(
                    *driver, {.tier = Tier::kHbm, .granule_bytes = test::kGranule, .count = 20})
                    .value();
    auto space = AddressSpace::Create(*driver, *pool, {}).value();
    auto arena =
        KvArena::Create(*space, *KvGeometry::Choose(20 * kKiB, test::kGranule), 10).value();
    std::vector<uint32_t> extents;
    ASSERT_TRUE(arena->Grow(4, &extents).ok());
    auto copier = BlockCopier::Create(*driver, *arena).value();
    const auto address = [&](uint32_t b) { return arena->base() + b * arena->block_stride(); };
    std::vector<std::byte> old(arena->geometry().block_bytes, std::byte{1});
    std::vector<std::byte> fresh(arena->geometry().block_bytes, std::byte{2});
    ASSERT_TRUE(driver->Write(address(9), old).ok());
    if (while_queueing) {
      driver->faults().FailNth(SimCall::kCopy, 3);
    } else {
      driver->faults().NthCopy(SimCopyFault::kFail, 3);
    }
    EXPECT_FALSE(copier->Move({{9, 0}, {11, 2}, {13, 4}}).ok());
    ASSERT_TRUE(driver->Write(address(0), fresh).ok());
    driver->AdvanceBy(10'000'000);
    std::vector<std::byte> out(fresh.size());
    ASSERT_TRUE(driver->Read(address(0), out).ok());
    EXPECT_EQ(out, fresh);
    EXPECT_TRUE(copier->Move({{9, 0}}).ok());
    ASSERT_TRUE(driver->Read(address(0), out).ok());
    EXPECT_EQ(out, old);
    EXPECT_EQ(driver->violations(), 0U);
  }
}

}  // namespace
}  // namespace weir
