#include "vmm/granule_pool.h"

#include "tests/vmm/memory_fixture.h"

namespace weir {
namespace {

using GranulePoolTest = MemoryTest;

TEST_F(GranulePoolTest, CreationFailsWholeWhenTheTierIsTooSmall) {
  SimDriver::Options sim;
  sim.hbm_bytes = 3 * kGranule;
  auto driver = SimDriver::Create(sim).value();
  EXPECT_CODE(GranulePool::Create(*driver, {Tier::kHbm, kGranule, 4}), kNoMemory);
  EXPECT_EQ(driver->allocation_count(), 0u);
}

TEST_F(GranulePoolTest, CreationNamesTheAcceptedSizes) {
  SimDriver::Options sim;
  auto driver = SimDriver::Create(sim).value();
  for (const uint64_t bytes : {uint64_t{0}, kGranule / 2, kGranule * 3, kGranule + 1}) {
    EXPECT_CODE(GranulePool::Create(*driver, {Tier::kHbm, bytes, 4}), kInvalidArgument);
  }
  EXPECT_CODE(GranulePool::Create(*driver, {Tier::kHbm, kGranule, 0}), kInvalidArgument);
}

TEST_F(GranulePoolTest, AllocationsMoveCountsBetweenStatesAndOwners) {
  Make(4);
  const GranuleId a = pool_->Allocate(Owner::kKv).value();
  const GranuleId b = pool_->Allocate(Owner::kRing).value();
  EXPECT_NE(a, b);
  EXPECT_EQ(pool_->counts().pinned, 2u);
  EXPECT_EQ(pool_->counts().by_owner[static_cast<size_t>(Owner::kKv)], 1u);
  EXPECT_EQ(pool_->Available(), 2u);
  pool_->ChangeOwner(b, Owner::kKv);
  EXPECT_EQ(pool_->counts().by_owner[static_cast<size_t>(Owner::kKv)], 2u);
  EXPECT_OK(pool_->CheckIntegrity());
  pool_->Free(a);
  pool_->Free(b);
  EXPECT_EQ(pool_->Available(), 4u);
}

TEST_F(GranulePoolTest, AnEmptyPoolSaysNoMemory) {
  Make(1);
  const GranuleId a = pool_->Allocate(Owner::kKv).value();
  EXPECT_CODE(pool_->Allocate(Owner::kKv), kNoMemory);
  EXPECT_CODE(pool_->Allocate(Owner::kNone), kInvalidArgument);
  pool_->Free(a);
}

TEST_F(GranulePoolTest, WhatIsCommittedCannotBeTakenByOthers) {
  Make(4);
  Commitment c = pool_->Commit(3).value();
  EXPECT_EQ(pool_->Available(), 1u);
  EXPECT_CODE(pool_->Commit(2), kNoMemory);
  const GranuleId a = pool_->Allocate(Owner::kKv).value();
  EXPECT_CODE(pool_->Allocate(Owner::kKv), kNoMemory);
  const GranuleId b = pool_->AllocateCommitted(c, Owner::kKv);
  EXPECT_EQ(c.count(), 2u);
  EXPECT_OK(pool_->CheckIntegrity());
  c.Refund(1);
  EXPECT_EQ(pool_->Available(), 1u);
  pool_->Free(a);
  pool_->Free(b);
}

TEST_F(GranulePoolTest, CommitmentsMoveAndRefundThemselves) {
  Make(4);
  {
    Commitment a = pool_->Commit(2).value();
    Commitment b = std::move(a);
    EXPECT_EQ(a.count(), 0u);  // NOLINT(bugprone-use-after-move)
    EXPECT_EQ(b.count(), 2u);
    Commitment c = pool_->Commit(2).value();
    c = std::move(b);
    EXPECT_EQ(pool_->Available(), 2u);
  }
  EXPECT_EQ(pool_->Available(), 4u);
}

TEST_F(GranulePoolTest, APendingFenceKeepsAGranuleBack) {
  Make(1);
  const StreamId stream = driver_->CreateStream("s").value();
  const VirtAddr counter = driver_->CreateCounter().value();
  ASSERT_OK(driver_->WaitCounter(stream, counter, 1));
  const GranuleId a = pool_->Allocate(Owner::kKv).value();
  pool_->Free(a, Fence(driver_->Record(stream).value()));
  EXPECT_EQ(pool_->granule(a).state, GranuleState::kRetiring);
  EXPECT_EQ(pool_->Available(), 0u);
  EXPECT_CODE(pool_->Allocate(Owner::kKv), kNoMemory);
  driver_->StoreCounter(counter, 1);
  driver_->AdvanceBy(1);
  EXPECT_EQ(pool_->Available(), 1u);
  EXPECT_EQ(pool_->granule(a).state, GranuleState::kFree);
}

TEST_F(GranulePoolTest, AFailedFenceRetiresAGranuleForGoodAndIsReportedOnce) {
  Make(2);
  const StreamId stream = driver_->CreateStream("s").value();
  ASSERT_OK(driver_->HostFunction(stream, [] { return DataLoss("torn"); }));
  const GranuleId a = pool_->Allocate(Owner::kKv).value();
  pool_->Free(a, Fence(driver_->Record(stream).value()));
  driver_->AdvanceBy(1);
  EXPECT_EQ(pool_->Available(), 1u);  // polls; the error is kept for who asks
  EXPECT_CODE(pool_->PollFences(), kDataLoss);
  EXPECT_OK(pool_->PollFences());
  EXPECT_EQ(pool_->granule(a).state, GranuleState::kRetiring);
}

TEST_F(GranulePoolTest, ALoanIsActiveThenCalledThenEnded) {
  Make(4);
  std::vector<GranuleId> lent;
  const LoanId loan = pool_->BeginLoan(Owner::kWeights, Owner::kKv, &lent, 3).value();
  ASSERT_EQ(lent.size(), 3u);
  EXPECT_EQ(pool_->granule(lent[0]).owner, Owner::kKv);
  EXPECT_EQ(pool_->granule(lent[0]).lender, Owner::kWeights);
  EXPECT_CODE(pool_->EndLoan(loan), kBadState);
  EXPECT_OK(pool_->CancelLoan(loan));
  EXPECT_CODE(pool_->CancelLoan(loan), kBadState);
  EXPECT_CODE(pool_->EndLoan(loan), kShouldWait);
  for (const GranuleId g : lent) {
    EXPECT_OK(pool_->CheckIntegrity());
    pool_->Free(g);
  }
  EXPECT_OK(pool_->EndLoan(loan));
  EXPECT_EQ(pool_->loan_state(loan).value(), LoanState::kEnded);
  EXPECT_CODE(pool_->EndLoan(loan), kBadState);
  EXPECT_CODE(pool_->CancelLoan(LoanId(9)), kInvalidArgument);
}

TEST_F(GranulePoolTest, ALoanNeedsGranulesAndTwoOwners) {
  Make(2);
  std::vector<GranuleId> lent;
  EXPECT_CODE(pool_->BeginLoan(Owner::kWeights, Owner::kKv, &lent, 3), kNoMemory);
  EXPECT_CODE(pool_->BeginLoan(Owner::kKv, Owner::kKv, &lent, 1), kInvalidArgument);
  EXPECT_TRUE(lent.empty());
}

using GranulePoolDeathTest = MemoryTest;

TEST_F(GranulePoolDeathTest, MisuseStopsTheProcess) {
  Make(2);
  EXPECT_DEATH(pool_->Free(GranuleId(0)), "only a pinned granule");
  EXPECT_DEATH(pool_->ChangeOwner(GranuleId(0), Owner::kKv), "only a granule in use");
  Commitment none;
  EXPECT_DEATH(pool_->AllocateCommitted(none, Owner::kKv), "nothing is committed");
  Commitment c = pool_->Commit(1).value();
  EXPECT_DEATH(c.Refund(2), "more than was committed");
  EXPECT_DEATH(pool_.reset(), "outlives its commitments");
}

}  // namespace
}  // namespace weir
