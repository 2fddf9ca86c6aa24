// AddressSpace, Region: reservations of virtual addresses and what is bound in them.
//
// Represents all reservations of one device. R1 a region's base and size never change while it
// lives (captured steps hold addresses). R2 regions do not overlap. M1 every unmap names exactly
// one earlier map. M2 no unmap before the fence completes (the plan carries it, see remap_plan.h).
// Regions change only through Commit(RemapPlan): the one place that maps after start-up.
// Engine thread only.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "vmm/driver.h"
#include "vmm/granule_pool.h"
#include "vmm/remap_plan.h"

namespace weir {

// One reservation: |slots| granule-sized places from |base|.
struct Region {
  RegionId id;
  std::string name;  // "weights", "kv", "ring", ... for traces and errors
  VirtAddr base = 0;
  uint64_t slot_bytes = 0;
  std::vector<GranuleId> slots;  // invalid id: unmapped; see AddressSpace::IsForeign
  uint32_t mapped = 0;

  VirtAddr SlotAddress(SlotIndex slot) const { return base + slot.value * slot_bytes; }
  uint64_t bytes() const { return slots.size() * slot_bytes; }
};

class AddressSpace {
 public:
  struct Options {
    // Fill a granule with 0xFF bytes (NaN in every float format) when it goes back to the pool.
    bool poison_freed = false;
    // Zero a dirty granule before another owner gets it ("tenant switch").
    bool scrub_on_owner_change = false;
  };
  // All regions draw on |pool|, whose granule size is the slot size.
  static Result<std::unique_ptr<AddressSpace>> Create(Driver& driver, GranulePool& pool,
                                                      const Options& options);
  // Unmaps what is left and frees the reservations. No work may be pending.
  ~AddressSpace();
  AddressSpace(const AddressSpace&) = delete;
  AddressSpace& operator=(const AddressSpace&) = delete;

  // Reserves ceil(bytes / granule) slots, unmapped.
  Result<RegionId> Reserve(std::string name, uint64_t bytes);
  const Region& region(RegionId id) const { return regions_[id.value]; }
  // Whether the id in a slot names a granule that is not the pool's (MapForeignOp), and which.
  static bool IsForeign(GranuleId id) { return id.valid() && (id.value & kForeignBit) != 0; }
  const ForeignGranule& foreign(GranuleId id) const { return foreign_.at(id).granule; }
  GranulePool& pool() { return pool_; }
  Driver& driver() { return driver_; }

  // T1: changes nothing. kInvalidArgument names the first operation that breaks a rule; kNoMemory
  // says how many granules are missing; kShouldWait when the plan's fence is pending.
  Status Validate(RemapPlan& plan);
  // T2: commits wholly or leaves mappings, owners and counts as they were. A driver failure in the
  // middle is undone in reverse order and returned. kBadState if undoing failed too: the region is
  // then unusable and every later plan naming it is refused.
  // On success the plan's results are filled in. Poisoning happens after the plan is certain, so
  // that a rolled-back plan has lost no bytes.
  Status Commit(RemapPlan& plan);

  uint64_t commits() const { return commits_; }
  uint64_t rollbacks() const { return rollbacks_; }
  // Slot tables against granule states and map counts (O(slots)).
  Status CheckIntegrity() const;
  std::string Dump() const;
  // Tells the trace the pool's granules and what is mapped where, as a plan 0 of cause load.
  void TraceState() const;
  size_t region_count() const { return regions_.size(); }

 private:
  AddressSpace(Driver& driver, GranulePool& pool, const Options& options)
      : driver_(driver), pool_(pool), options_(options) {}
  static constexpr uint32_t kForeignBit = 0x40000000U;
  static GranuleId ForeignId(uint32_t number) { return GranuleId(kForeignBit | number); }
  struct Foreign {
    ForeignGranule granule;
    uint32_t mappings = 0;
  };
  struct Undo;     // one driver call that was made
  struct Scratch;  // slots and map counts as a plan leaves them, over the real ones
  Status CheckOps(const RemapPlan& plan, Scratch* scratch) const;
  Status Apply(const RemapPlan& plan, const std::vector<GranuleId>& fresh, Scratch* now,
               std::vector<Undo>* undo);
  Status GrantAccess(const RemapPlan& plan, const Scratch& now);
  Status Scrub(const std::vector<GranuleId>& fresh, const Scratch& now);
  Status RollBack(std::vector<Undo>& undo, Scratch* now);
  uint32_t Publish(const Scratch& now);
  Status CheckForeign(const ForeignGranule& granule) const;
  Status SetSlotAccess(RegionId region, SlotIndex first, uint64_t slots, bool foreign);
  void TraceMap(RegionId region, SlotIndex slot, GranuleId granule, bool alias) const;
  Tier TierOf(GranuleId granule) const;
  void Poison(const std::vector<GranuleId>& freed);
  Status DriverMap(RegionId region, SlotIndex slot, GranuleId granule, bool alias);
  Status DriverUnmap(RegionId region, SlotIndex slot, GranuleId granule);
  std::string SlotName(RegionId region, SlotIndex slot) const;

  Driver& driver_;
  GranulePool& pool_;
  Options options_;
  std::vector<Region> regions_;
  std::vector<bool> broken_;              // by region: an undo failed
  std::map<GranuleId, Foreign> foreign_;  // mapped now, or by the plan that is being applied
  StreamId service_stream_;               // poison and scrub
  VirtAddr window_ = 0;                   // one slot, where freed granules are poisoned; 0: none
  bool window_used_ = false;              // a mapping is stuck in it
  uint64_t commits_ = 0;
  uint64_t rollbacks_ = 0;
};

}  // namespace weir
