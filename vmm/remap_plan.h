// RemapPlan: a list of remap operations, checked on scratch counts, then committed in one place,
// whole or not at all (AddressSpace::Validate, Commit).
#pragma once

#include <string_view>
#include <variant>
#include <vector>

#include "vmm/fence.h"
#include "vmm/types.h"

namespace weir {

// Why a plan exists; goes into the trace.
enum class RemapCause : uint8_t { kLoad, kEvict, kRestore, kKvGrow, kKvShrink, kShutdown, kTest };
constexpr std::string_view RemapCauseName(RemapCause cause) {
  switch (cause) {
    case RemapCause::kLoad: return "load";
    case RemapCause::kEvict: return "evict";
    case RemapCause::kRestore: return "restore";
    case RemapCause::kKvGrow: return "kv-grow";
    case RemapCause::kKvShrink: return "kv-shrink";
    case RemapCause::kShutdown: return "shutdown";
    case RemapCause::kTest: return "test";
  }
  return "?";
}

// Unbinds the granule at |slot|. When no mapping of it is left after the whole plan it goes back to
// the pool, unless a later operation of the plan maps it again.
struct UnmapOp {
  RegionId region;
  SlotIndex slot;
};
// Binds a new granule from the pool, owned by |owner|.
struct MapFreshOp {
  RegionId region;
  SlotIndex slot;
  Owner owner = Owner::kNone;
};
// Binds the granule that is (at this point of the plan) at |source_region|/|source_slot| a second
// time: an alias. M: aliasing is declared by using this operation, never by accident.
struct MapAliasOp {
  RegionId region;
  SlotIndex slot;
  RegionId source_region;
  SlotIndex source_slot;
};
// An allocation of another owner, of any tier and as large as a slot: the pool does not count it.
// Its owner keeps it, and its bytes, as long as it is mapped here.
struct ForeignGranule {
  Tier tier = Tier::kHost;
  AllocId alloc;
  uint32_t number = 0;  // below 2^30: its name in traces (with the tier) and in Region::slots
  Owner owner = Owner::kNone;  // whose bytes they are
  bool operator==(const ForeignGranule&) const = default;
};
// Binds |granule| at the slot, to be read and not written.
struct MapForeignOp {
  RegionId region;
  SlotIndex slot;
  ForeignGranule granule;
};
using RemapOp = std::variant<UnmapOp, MapFreshOp, MapAliasOp, MapForeignOp>;

struct RemapPlan {
  RemapCause cause = RemapCause::kTest;
  std::vector<RemapOp> ops;
  Fence fence;  // work that may still reach the unmapped slots (M2)

  void Unmap(RegionId region, SlotIndex slot) { ops.push_back(UnmapOp{region, slot}); }
  void MapFresh(RegionId region, SlotIndex slot, Owner owner) {
    ops.push_back(MapFreshOp{region, slot, owner});
  }
  void MapAlias(RegionId region, SlotIndex slot, RegionId source_region, SlotIndex source_slot) {
    ops.push_back(MapAliasOp{region, slot, source_region, source_slot});
  }
  void MapForeign(RegionId region, SlotIndex slot, const ForeignGranule& granule) {
    ops.push_back(MapForeignOp{region, slot, granule});
  }
  bool empty() const { return ops.empty(); }

  // Filled in by Commit.
  uint32_t granules_taken = 0;
  uint32_t granules_freed = 0;
};

}  // namespace weir
