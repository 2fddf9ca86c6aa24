// KV blocks between tenants, with the real bytes of the CPU back-end.
#include <cstdio>

#include <gtest/gtest.h>

#include "tests/support/tenant_world.h"

namespace weir {
namespace {

using testing::TenantWorld;

class Scrub : public ::testing::Test {
 protected:
  // Tenant 1 fills the KV cache, leaves the canary in all of it, and |second| comes.
  void Run(bool scrub, uint64_t second) {
    EngineOptions engine;
    engine.model = "tests/fixtures/models/smollm2_gqa3";
    engine.device = DeviceKind::kCpu;
    engine.threads = 1;
    engine.max_num_seqs = 4;
    engine.max_num_batched_tokens = 48;  // a prompt takes several steps
    engine.max_model_len = 256;
    world_ = std::make_unique<TenantWorld>(TenantWorld::Options{.engine = engine, .scrub = scrub});
    Must(world_->Build());
    Must(world_->FillKv(1));
    EXPECT_EQ(world_->core().stats().scrubbed_blocks, 0U) << "there has been one tenant";
    EXPECT_GT(world_->bytes_not_zero(), 0U) << "calibration has left bytes, which are nobody's";
    blocks_ = world_->blocks_looked_at();
    not_zero_ = world_->bytes_not_zero();
    like_canary_ = world_->canary_bytes();
    Must(world_->StampCanary());
    Must(world_->FillKv(second));
    EXPECT_EQ(world_->blocks_looked_at(), 2 * blocks_) << "of the same blocks";
  }
  static void Must(const Status& status) { ASSERT_TRUE(status.ok()) << status.ToString(); }
  // That the second tenant found.
  uint64_t bytes_not_zero() const { return world_->bytes_not_zero() - not_zero_; }
  uint64_t canary_bytes() const { return world_->canary_bytes() - like_canary_; }

  std::unique_ptr<TenantWorld> world_;
  uint64_t blocks_ = 0;  // there are
  uint64_t not_zero_ = 0, like_canary_ = 0;
};

TEST_F(Scrub, ATenantFindsEveryByteOfAnothersBlocksZero) {
  Run(true, 2);
  EXPECT_EQ(canary_bytes(), 0U);
  EXPECT_EQ(bytes_not_zero(), 0U);
  const uint64_t blocks = world_->core().stats().scrubbed_blocks;
  EXPECT_EQ(blocks, blocks_);
  std::printf("%lu blocks of %lu bytes zeroed in %.1f us\n", blocks, world_->block_bytes(),
              world_->scrub_seconds() * 1e6);
}

TEST_F(Scrub, ATenantMayFindItsOwnBytes) {
  Run(true, 1);
  EXPECT_EQ(world_->core().stats().scrubbed_blocks, 0U);
  EXPECT_EQ(canary_bytes(), blocks_ * world_->block_bytes());
}

TEST_F(Scrub, WithoutScrubbingTheCanaryIsSeen) {
  Run(false, 2);
  EXPECT_EQ(world_->core().stats().scrubbed_blocks, 0U);
  EXPECT_EQ(canary_bytes(), blocks_ * world_->block_bytes());
}

}  // namespace
}  // namespace weir
