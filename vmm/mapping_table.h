// MappingTable: the bookkeeping behind rules D1..D5 and D7 of driver.h.
//
// Represents which allocations exist, what is reserved and what is mapped where. The Check
// functions change nothing; the Apply functions assume that the matching Check passed. A driver
// checks, does the work that can fail, then applies: so a failed call changed nothing (D7). Not
// synchronised: the owner's lock covers it.
#pragma once

#include <map>
#include <unordered_map>

#include "vmm/driver.h"

namespace weir {

class MappingTable {
 public:
  struct Allocation {
    Tier tier = Tier::kHbm;
    uint64_t bytes = 0;
    uint64_t tag = 0;  // the driver's own: an offset, a handle
    uint32_t map_count = 0;
  };
  struct Mapping {
    AllocId alloc;
    uint64_t bytes = 0;
    Access access = Access::kNone;
    uint64_t serial = 0;  // unique per Map: tells a remapped address from the earlier mapping
  };

  explicit MappingTable(uint64_t granularity_bytes) : granularity_(granularity_bytes) {}

  // Sizes: positive multiples of the granularity.
  Status CheckSize(std::string_view what, uint64_t bytes) const;
  AllocId AddAllocation(Tier tier, uint64_t bytes, uint64_t tag);
  // kInvalidArgument: no such allocation; kBadState: still mapped (D5).
  Status CheckRelease(AllocId alloc) const;
  void ApplyRelease(AllocId alloc) { allocations_.erase(alloc); }
  const Allocation* Find(AllocId alloc) const;

  void AddReservation(VirtAddr base, uint64_t bytes) { reservations_.emplace(base, bytes); }
  Status CheckFree(VirtAddr base) const;
  uint64_t ReservationBytes(VirtAddr base) const { return reservations_.at(base); }
  void ApplyFree(VirtAddr base) { reservations_.erase(base); }

  Status CheckMap(VirtAddr at, AllocId alloc) const;
  void ApplyMap(VirtAddr at, AllocId alloc);
  Status CheckSetAccess(VirtAddr at, uint64_t bytes) const;
  void ApplySetAccess(VirtAddr at, uint64_t bytes, Access access);
  Status CheckUnmap(VirtAddr at) const;
  void ApplyUnmap(VirtAddr at);
  const Mapping& mapping(VirtAddr at) const { return mappings_.at(at); }

  // Whether [at, at+bytes) is mapped throughout with at least |access| (D3).
  Status CheckAccess(VirtAddr at, uint64_t bytes, Access access) const;
  // The mapping that covers |at|, and where it begins; nullptr if none does.
  const Mapping* Covering(VirtAddr at, VirtAddr* begin) const;

  size_t allocation_count() const { return allocations_.size(); }
  size_t mapping_count() const { return mappings_.size(); }
  const std::map<VirtAddr, uint64_t>& reservations() const { return reservations_; }
  const std::unordered_map<AllocId, Allocation>& allocations() const { return allocations_; }

 private:
  uint64_t granularity_;
  uint64_t next_alloc_ = 1;
  uint64_t next_serial_ = 1;
  std::unordered_map<AllocId, Allocation> allocations_;
  std::map<VirtAddr, uint64_t> reservations_;  // base -> bytes
  std::map<VirtAddr, Mapping> mappings_;
};

// "0x7f00_1000" style for messages.
std::string HexAddress(VirtAddr at);

}  // namespace weir
