// Granule: one physical allocation of the driver, the unit that is mapped, moved and lent.
#pragma once

#include <cstdint>
#include <string_view>

#include <boost/intrusive/list_hook.hpp>

#include "vmm/fence.h"
#include "vmm/types.h"

namespace weir {

// States and transitions (G1: exactly one state, on exactly one list):
//
//            Allocate            first Map
//   kFree ------------> kPinned -----------> kMapped
//     ^                   |  ^                  |
//     |       Free        |  |   last Unmap     |
//     +---- (fence done) <+  +------------------+
//     |
//   kRetiring: freed while its fence was pending; becomes kFree when the fence completes
enum class GranuleState : uint8_t { kFree, kPinned, kMapped, kRetiring };
constexpr std::string_view GranuleStateName(GranuleState state) {
  switch (state) {
    case GranuleState::kFree: return "free";
    case GranuleState::kPinned: return "pinned";
    case GranuleState::kMapped: return "mapped";
    case GranuleState::kRetiring: return "retiring";
  }
  return "?";
}

// Represents one granule. Owned by its GranulePool for the pool's life; engine thread only.
struct Granule {
  using ListHook =
      boost::intrusive::list_member_hook<boost::intrusive::link_mode<boost::intrusive::safe_link>>;

  GranuleId id;
  AllocId alloc;
  GranuleState state = GranuleState::kFree;
  Owner owner = Owner::kNone;   // kNone iff kFree or kRetiring
  Owner lender = Owner::kNone;  // set while on loan: who gets it back
  uint32_t map_count = 0;       // >= 1 iff kMapped; > 1 only where aliasing was declared
  bool dirty = false;           // holds bytes of |last_owner|; scrubbed before another gets it
  Owner last_owner = Owner::kNone;
  Fence pending;       // work that may still touch it (kRetiring only)
  ListHook list_hook;  // the pool's list of its state
};

}  // namespace weir
