// KvArena: the region of KV blocks, whose capacity is what is mapped.
//
// Represents one reservation for the largest KV there could ever be. It grows and shrinks by
// extents: the smallest run of granules that holds whole blocks (one granule holds several blocks
// of a small model; a block of a large model takes several granules). Blocks are addressed
// linearly, base() + id * block_stride(), for life: no captured pointer ever changes. Which blocks
// live, and moving them before an extent goes, is the block manager's business. Engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "vmm/address_space.h"

namespace weir {

struct KvGeometry {
  uint64_t block_bytes = 0;   // payload of a block: 16 tokens, all layers
  uint64_t block_stride = 0;  // >= block_bytes, a multiple of 64
  uint32_t blocks_per_extent = 0;
  uint32_t granules_per_extent = 0;  // blocks_per_extent * block_stride == granules * granule size
  double waste() const {
    return 1.0 - static_cast<double>(block_bytes) / static_cast<double>(block_stride);
  }
  // The geometry with the least waste among extents of at most |max_granules| granules, preferring
  // small extents (waste within 2 % of the best).
  static Result<KvGeometry> Choose(uint64_t block_bytes, uint64_t granule_bytes,
                                   uint32_t max_granules = 32);
};

class KvArena {
 public:
  // Reserves address space for |max_extents|; maps nothing.
  static Result<std::unique_ptr<KvArena>> Create(AddressSpace& space, const KvGeometry& geometry,
                                                 uint32_t max_extents);
  const KvGeometry& geometry() const { return geometry_; }
  VirtAddr base() const { return space_.region(region_).base; }
  uint64_t block_stride() const { return geometry_.block_stride; }
  uint32_t max_extents() const { return static_cast<uint32_t>(mapped_.size()); }
  uint32_t mapped_extents() const { return mapped_count_; }
  bool is_mapped(uint32_t extent) const { return mapped_[extent]; }
  RegionId region() const { return region_; }

  // Maps the lowest unmapped extents, at most |n|, as many as the pool has granules for; appends
  // their indices. Nobody waits: going from unmapped to mapped needs no fence. An error only when
  // the driver failed (what was mapped before it stays and is reported).
  Status Grow(uint32_t n, std::vector<uint32_t>* extents);
  // Unmaps |extents| (each mapped, holding no live block) in one plan once |fence| is complete;
  // kShouldWait before that.
  Status Shrink(const std::vector<uint32_t>& extents, const Fence& fence);

 private:
  KvArena(AddressSpace& space, const KvGeometry& geometry) : space_(space), geometry_(geometry) {}
  AddressSpace& space_;
  KvGeometry geometry_;
  RegionId region_;
  std::vector<bool> mapped_;
  uint32_t mapped_count_ = 0;
  uint32_t first_unmapped_ = 0;  // every extent below is mapped
};

}  // namespace weir
