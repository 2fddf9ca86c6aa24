#include "vmm/fence.h"

#include "tests/vmm/test_util.h"
#include "vmm/sim_driver.h"

namespace weir {
namespace {

class FenceTest : public ::testing::Test {
 protected:
  // An event that completes when |counter| reaches 1.
  EventId Pending(VirtAddr counter) {
    const StreamId stream = driver_->CreateStream("s").value();
    EXPECT_OK(driver_->WaitCounter(stream, counter, 1));
    return driver_->Record(stream).value();
  }
  std::unique_ptr<SimDriver> driver_ = SimDriver::Create({}).value();
};

TEST_F(FenceTest, AnEmptyFenceIsComplete) {
  Fence fence;
  EXPECT_TRUE(fence.empty());
  EXPECT_TRUE(fence.IsComplete(*driver_).value());
  EXPECT_OK(fence.Wait(*driver_));
}

TEST_F(FenceTest, AFenceCompletesWithItsLastEventAndStaysComplete) {
  const VirtAddr a = driver_->CreateCounter().value();
  const VirtAddr b = driver_->CreateCounter().value();
  Fence fence(Pending(a));
  fence.Merge(Fence(Pending(b)));
  EXPECT_FALSE(fence.IsComplete(*driver_).value());
  driver_->StoreCounter(b, 1);
  driver_->AdvanceBy(1);
  EXPECT_FALSE(fence.IsComplete(*driver_).value());
  driver_->StoreCounter(a, 1);
  driver_->AdvanceBy(1);
  EXPECT_TRUE(fence.IsComplete(*driver_).value());
  EXPECT_TRUE(fence.empty());
  EXPECT_TRUE(fence.IsComplete(*driver_).value());
}

TEST_F(FenceTest, WaitWaitsForAllAndReportsTheFirstError) {
  const StreamId bad = driver_->CreateStream("bad").value();
  ASSERT_OK(driver_->HostFunction(bad, [] { return DataLoss("torn"); }));
  Fence fence(driver_->Record(bad).value());
  const StreamId good = driver_->CreateStream("good").value();
  bool ran = false;
  ASSERT_OK(driver_->HostFunction(good, [&] {
    ran = true;
    return OkStatus();
  }));
  fence.Add(driver_->Record(good).value());
  EXPECT_CODE(fence.Wait(*driver_), kDataLoss);
  EXPECT_TRUE(ran);
  EXPECT_CODE(fence.IsComplete(*driver_), kDataLoss);  // an error does not go away
}

}  // namespace
}  // namespace weir
