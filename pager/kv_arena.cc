#include "pager/kv_arena.h"

#include <algorithm>
#include <bit>

#include "vmm/checked_math.h"

namespace weir {
namespace {

constexpr uint64_t kBlockAlignment = 64;  // a cache line; also what vector loads want

// The most blocks of at least |stride| bytes that divide |granules| * |granule_bytes| into equal
// strides which are multiples of 64. 0 when not even one fits.
uint64_t BlocksPerExtent(uint64_t granules, uint64_t granule_bytes, uint64_t stride) {
  const uint64_t lines = granules * (granule_bytes / kBlockAlignment);
  const uint64_t limit = lines / (stride / kBlockAlignment);
  const int twos = std::countr_zero(lines);
  const uint64_t odd = lines >> twos;
  uint64_t best = 0;
  for (uint64_t d = 1; d <= odd && d <= limit; d += 2) {
    if (odd % d != 0) continue;
    uint64_t n = d;
    for (int i = 0; i < twos && n * 2 <= limit; ++i) n *= 2;
    best = std::max(best, n);
  }
  return best;
}

}  // namespace

Result<KvGeometry> KvGeometry::Choose(uint64_t block_bytes, uint64_t granule_bytes,
                                      uint32_t max_granules) {
  if (block_bytes == 0 || max_granules == 0 || !IsPowerOfTwo(granule_bytes) ||
      granule_bytes < kBlockAlignment) {
    return InvalidArgument("a KV block of " + std::to_string(block_bytes) +
                           " bytes in extents of at most " + std::to_string(max_granules) +
                           " granules of " + std::to_string(granule_bytes) +
                           " bytes: all must be positive, the granule a power of two from 64");
  }
  const auto stride = CheckedAlignUp(block_bytes, kBlockAlignment);
  const auto largest = CheckedMul(granule_bytes, max_granules);
  if (!stride || !largest || *stride > *largest) {
    return InvalidArgument("a KV block of " + std::to_string(block_bytes) +
                           " bytes does not fit into an extent of " + std::to_string(max_granules) +
                           " granules of " + std::to_string(granule_bytes) + " bytes");
  }
  std::vector<KvGeometry> candidates;
  double least_waste = 1.0;
  for (uint32_t granules = 1; granules <= max_granules; ++granules) {
    const uint64_t blocks = BlocksPerExtent(granules, granule_bytes, *stride);
    if (blocks == 0 || blocks > UINT32_MAX) continue;
    KvGeometry g;
    g.block_bytes = block_bytes;
    g.block_stride = granules * granule_bytes / blocks;
    g.blocks_per_extent = static_cast<uint32_t>(blocks);
    g.granules_per_extent = granules;
    least_waste = std::min(least_waste, g.waste());
    candidates.push_back(g);
  }
  for (const KvGeometry& g : candidates) {
    if (g.waste() <= least_waste + 0.02) return g;
  }
  return InvalidArgument("a KV block of " + std::to_string(block_bytes) +
                         " bytes is too small for granules of " + std::to_string(granule_bytes) +
                         " bytes: more than 2^32 blocks per extent");
}

Result<std::unique_ptr<KvArena>> KvArena::Create(AddressSpace& space, const KvGeometry& geometry,
                                                 uint32_t max_extents) {
  const auto extent_bytes = CheckedMul(geometry.granules_per_extent, space.pool().granule_bytes());
  const auto bytes = extent_bytes ? CheckedMul(*extent_bytes, max_extents) : std::nullopt;
  const auto block_total = CheckedMul(geometry.blocks_per_extent, max_extents);
  if (!bytes || *bytes == 0 || !block_total || *block_total > UINT32_MAX ||
      uint64_t{geometry.blocks_per_extent} * geometry.block_stride != *extent_bytes) {
    return InvalidArgument(
        "a KV arena of " + std::to_string(max_extents) + " extents of " +
        std::to_string(geometry.granules_per_extent) + " granules and " +
        std::to_string(geometry.blocks_per_extent) + " blocks of stride " +
        std::to_string(geometry.block_stride) +
        ": blocks must fill an extent exactly and number less than 2^32, extents at least 1");
  }
  std::unique_ptr<KvArena> arena(new KvArena(space, geometry));
  arena->region_ = WEIR_TRY(space.Reserve("kv", *bytes));
  arena->mapped_.assign(max_extents, false);
  return arena;
}

Status KvArena::Grow(uint32_t n, std::vector<uint32_t>* extents) {
  const uint32_t per_extent = geometry_.granules_per_extent;
  uint32_t left =
      std::min({n, max_extents() - mapped_count_, space_.pool().Available() / per_extent});
  for (; left > 0 && first_unmapped_ < max_extents(); ++first_unmapped_) {
    const uint32_t e = first_unmapped_;
    if (mapped_[e]) continue;
    RemapPlan plan;
    plan.cause = RemapCause::kKvGrow;
    for (uint32_t i = 0; i < per_extent; ++i) {
      plan.MapFresh(region_, SlotIndex(e * per_extent + i), Owner::kKv);
    }
    WEIR_TRY(space_.Commit(plan));
    mapped_[e] = true;
    ++mapped_count_;
    extents->push_back(e);
    --left;
  }
  return OkStatus();
}

Status KvArena::Shrink(const std::vector<uint32_t>& extents, const Fence& fence) {
  RemapPlan plan;
  plan.cause = RemapCause::kKvShrink;
  plan.fence = fence;
  std::vector<uint32_t> sorted = extents;
  std::sort(sorted.begin(), sorted.end());
  for (size_t i = 0; i < sorted.size(); ++i) {
    const uint32_t e = sorted[i];
    if (e >= max_extents() || !mapped_[e] || (i > 0 && sorted[i - 1] == e)) {
      return InvalidArgument("extent " + std::to_string(e) +
                             (e >= max_extents()
                                  ? " is outside the arena of " + std::to_string(max_extents())
                              : mapped_[e] ? " is named twice"
                                           : " is not mapped"));
    }
    for (uint32_t g = 0; g < geometry_.granules_per_extent; ++g) {
      plan.Unmap(region_, SlotIndex(e * geometry_.granules_per_extent + g));
    }
  }
  if (plan.empty()) return OkStatus();
  WEIR_TRY(space_.Commit(plan));
  for (const uint32_t e : sorted) mapped_[e] = false;
  first_unmapped_ = std::min(first_unmapped_, sorted.front());
  mapped_count_ -= static_cast<uint32_t>(sorted.size());
  return OkStatus();
}

}  // namespace weir
