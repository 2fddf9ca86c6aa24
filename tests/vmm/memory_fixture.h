// A simulated device with a pool and an address space, traced and audited: every test ends with
// CheckIntegrity, an empty device and a clean audit.
#pragma once

#include <memory>

#include "tests/vmm/test_util.h"
#include "vmm/address_space.h"
#include "vmm/sim_driver.h"
#include "vmm/trace.h"
#include "vmm/trace_audit.h"

namespace weir {

// Installs a tracer for its life and feeds an audit.
class AuditedTrace {
 public:
  AuditedTrace() : tracer_(Tracer::Options{}) { SetTracer(&tracer_); }
  ~AuditedTrace() { SetTracer(nullptr); }
  // Call often enough that the ring does not overflow.
  Status Poll() {
    tracer_.Drain([this](const TraceRecord& r) { audit_.Add(r); });
    return audit_.Check();
  }
  TraceAudit& audit() { return audit_; }

 private:
  Tracer tracer_;
  TraceAudit audit_;
};

class MemoryTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kGranule = 4096;

  void Make(uint32_t granules, AddressSpace::Options options = {}) {
    SimDriver::Options sim;
    sim.hbm_bytes = granules * kGranule;
    driver_ = SimDriver::Create(sim).value();
    pool_ = GranulePool::Create(*driver_, {Tier::kHbm, kGranule, granules}).value();
    space_ = AddressSpace::Create(*driver_, *pool_, options).value();
  }
  void TearDown() override {
    if (driver_ == nullptr) return;
    driver_->faults().Clear();
    if (space_ != nullptr) {
      EXPECT_OK(space_->CheckIntegrity());
    }
    space_.reset();
    EXPECT_OK(pool_->CheckIntegrity());
    pool_.reset();
    EXPECT_EQ(driver_->allocation_count(), 0u);
    EXPECT_EQ(driver_->mapping_count(), 0u);
    EXPECT_EQ(driver_->reservation_count(), 0u);
    EXPECT_EQ(driver_->violations(), 0u);
    EXPECT_OK(trace_.Poll());
    EXPECT_OK(trace_.audit().CheckAtEnd());
  }
  RegionId NewRegion(const char* name, uint64_t slots) {
    return space_->Reserve(name, slots * kGranule).value();
  }
  VirtAddr At(RegionId region, uint32_t slot) {
    return space_->region(region).SlotAddress(SlotIndex(slot));
  }
  GranuleId GranuleAt(RegionId region, uint32_t slot) { return space_->region(region).slots[slot]; }
  Status MapRange(RegionId region, uint32_t first, uint32_t n, Owner owner = Owner::kWeights) {
    RemapPlan plan;
    for (uint32_t i = 0; i < n; ++i) plan.MapFresh(region, SlotIndex(first + i), owner);
    return space_->Commit(plan);
  }
  Status UnmapRange(RegionId region, uint32_t first, uint32_t n) {
    RemapPlan plan;
    for (uint32_t i = 0; i < n; ++i) plan.Unmap(region, SlotIndex(first + i));
    return space_->Commit(plan);
  }
  void PutPattern(RegionId region, uint32_t slot, uint64_t seed) {
    EXPECT_OK(driver_->Write(At(region, slot), Pattern(seed, kGranule)));
  }
  void ExpectPattern(RegionId region, uint32_t slot, uint64_t seed) {
    EXPECT_EQ(ReadBytes(*driver_, At(region, slot), kGranule), Pattern(seed, kGranule))
        << "slot " << slot;
  }

  AuditedTrace trace_;
  std::unique_ptr<SimDriver> driver_;
  std::unique_ptr<GranulePool> pool_;
  std::unique_ptr<AddressSpace> space_;
};

}  // namespace weir
