// RemapScene: the memory of one granule size: granules to remap, where to, and what a load uses.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bench/vmm/remap_load.h"
#include "vmm/driver.h"

namespace weir::bench {

// What else is mapped while granules are remapped.
enum class RemapCrowd : uint8_t {
  kNone,
  kAliases,  // every granule at a second address, as those of a weight pager's ring are
  kMany,     // RemapScene::kCrowd small allocations, as of a large process
};

enum class RemapPlace : uint8_t {
  // In front of what a load reads, in one reservation: one GiB of addresses, on a GPU also one page
  // table's (512 MiB) with the beginning of it.
  kNear,
  kFar,  // in a reservation of its own, at a GiB's border
};

class RemapScene {
 public:
  static constexpr uint32_t kSlots = 8;  // granules remapped in a round; there is one more
  static constexpr uint32_t kCrowd = 1024;

  // Makes and maps everything. Tiers that cannot be made are left out of memory().sources, and
  // lacks() says why. After an error nothing is left.
  static Result<std::unique_ptr<RemapScene>> Create(Driver& driver, uint64_t granule_bytes);
  ~RemapScene();
  RemapScene(const RemapScene&) = delete;
  RemapScene& operator=(const RemapScene&) = delete;

  uint64_t granule_bytes() const { return granule_bytes_; }
  const LoadMemory& memory() const { return memory_; }
  const std::vector<std::string>& lacks() const { return lacks_; }

  // Maps kSlots granules at |place|, and |crowd| elsewhere.
  Status Settle(RemapPlace place, RemapCrowd crowd);
  // Undoes that.
  Status Clear();
  VirtAddr slot(uint32_t i) const { return slots_at_ + i * granule_bytes_; }
  // The granule at slot |i|; kSlots: the one that is at none. The caller who remaps keeps it so.
  AllocId& granule(uint32_t i) { return granules_[i]; }

 private:
  RemapScene(Driver& driver, uint64_t granule_bytes)
      : driver_(driver), granule_bytes_(granule_bytes) {}
  Status Init();
  Status MapMemory(Tier tier, VirtAddr at, uint64_t bytes);
  Status AddSource(Tier tier, uint64_t bytes);
  Result<VirtAddr> Reserve(uint64_t bytes);

  Driver& driver_;
  uint64_t granule_bytes_;
  LoadMemory memory_;
  std::vector<std::string> lacks_;
  std::vector<AllocId> granules_;  // kSlots + 1
  VirtAddr near_ = 0, far_ = 0, elsewhere_ = 0, slots_at_ = 0;
  // What Clear gives back.
  std::vector<VirtAddr> settled_;
  std::vector<AllocId> crowd_;
  // What the destructor gives back.
  std::vector<VirtAddr> mappings_, reservations_;
  std::vector<AllocId> allocations_;
};

}  // namespace weir::bench
