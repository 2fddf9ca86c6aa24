#include "vmm/mapping_table.h"

#include <cinttypes>
#include <cstdio>

#include "vmm/checked_math.h"

namespace weir {

std::string HexAddress(VirtAddr at) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%" PRIx64, at);
  return text;
}

Status MappingTable::CheckSize(std::string_view what, uint64_t bytes) const {
  if (bytes != 0 && bytes % granularity_ == 0) return OkStatus();
  return InvalidArgument(std::string(what) + " of " + std::to_string(bytes) +
                         " bytes; accepted are positive multiples of " +
                         std::to_string(granularity_));
}

AllocId MappingTable::AddAllocation(Tier tier, uint64_t bytes, uint64_t tag) {
  const AllocId id(next_alloc_++);
  allocations_.emplace(id, Allocation{tier, bytes, tag, 0});
  return id;
}

const MappingTable::Allocation* MappingTable::Find(AllocId alloc) const {
  const auto it = allocations_.find(alloc);
  return it == allocations_.end() ? nullptr : &it->second;
}

Status MappingTable::CheckRelease(AllocId alloc) const {
  const Allocation* a = Find(alloc);
  if (a == nullptr) {
    return InvalidArgument("release of allocation " + std::to_string(alloc.value) +
                           ", which does not exist");
  }
  if (a->map_count != 0) {
    return BadState("release of allocation " + std::to_string(alloc.value) + ", still mapped at " +
                    std::to_string(a->map_count) + " addresses");
  }
  return OkStatus();
}

Status MappingTable::CheckFree(VirtAddr base) const {
  const auto it = reservations_.find(base);
  if (it == reservations_.end()) {
    return InvalidArgument("free of " + HexAddress(base) + ", which is no reservation's base");
  }
  const auto first = mappings_.lower_bound(base);
  if (first != mappings_.end() && first->first - base < it->second) {
    return BadState("free of the reservation at " + HexAddress(base) + " with a mapping at " +
                    HexAddress(first->first));
  }
  return OkStatus();
}

Status MappingTable::CheckMap(VirtAddr at, AllocId alloc) const {
  const Allocation* a = Find(alloc);
  if (a == nullptr) {
    return InvalidArgument("map of allocation " + std::to_string(alloc.value) +
                           ", which does not exist");
  }
  if (at % granularity_ != 0) {
    return InvalidArgument("map at " + HexAddress(at) + ", not a multiple of the granularity " +
                           std::to_string(granularity_));
  }
  auto reservation = reservations_.upper_bound(at);
  const bool below = reservation == reservations_.begin();
  if (!below) --reservation;
  if (below || at - reservation->first >= reservation->second ||
      a->bytes > reservation->second - (at - reservation->first)) {
    return InvalidArgument("map at " + HexAddress(at) + " of " + std::to_string(a->bytes) +
                           " bytes lies outside every reservation");
  }
  const auto next = mappings_.lower_bound(at);
  if (next != mappings_.end() && next->first - at < a->bytes) {
    return InvalidArgument("map at " + HexAddress(at) + " overlaps the mapping at " +
                           HexAddress(next->first));
  }
  VirtAddr begin = 0;
  if (Covering(at, &begin) != nullptr) {
    return InvalidArgument("map at " + HexAddress(at) + " overlaps the mapping at " +
                           HexAddress(begin));
  }
  return OkStatus();
}

void MappingTable::ApplyMap(VirtAddr at, AllocId alloc) {
  Allocation& a = allocations_.at(alloc);
  ++a.map_count;
  mappings_.emplace(at, Mapping{alloc, a.bytes, Access::kNone, next_serial_++});
}

Status MappingTable::CheckSetAccess(VirtAddr at, uint64_t bytes) const {
  if (bytes == 0) return InvalidArgument("set access on 0 bytes");
  auto it = mappings_.find(at);
  VirtAddr end = at;
  while (it != mappings_.end() && it->first == end && end - at < bytes) {
    end += it->second.bytes;
    ++it;
  }
  if (end - at == bytes) return OkStatus();
  return InvalidArgument("set access on [" + HexAddress(at) + ", +" + std::to_string(bytes) +
                         "), which is not covered by whole mappings");
}

void MappingTable::ApplySetAccess(VirtAddr at, uint64_t bytes, Access access) {
  for (auto it = mappings_.find(at); it != mappings_.end() && it->first - at < bytes; ++it) {
    it->second.access = access;
  }
}

Status MappingTable::CheckUnmap(VirtAddr at) const {
  if (mappings_.contains(at)) return OkStatus();
  return InvalidArgument("unmap at " + HexAddress(at) + ", where no mapping begins");
}

void MappingTable::ApplyUnmap(VirtAddr at) {
  const auto it = mappings_.find(at);
  WEIR_CHECK(it != mappings_.end(), "unmap was not checked");
  --allocations_.at(it->second.alloc).map_count;
  mappings_.erase(it);
}

const MappingTable::Mapping* MappingTable::Covering(VirtAddr at, VirtAddr* begin) const {
  auto it = mappings_.upper_bound(at);
  if (it == mappings_.begin()) return nullptr;
  --it;
  if (at - it->first >= it->second.bytes) return nullptr;
  *begin = it->first;
  return &it->second;
}

Status MappingTable::CheckAccess(VirtAddr at, uint64_t bytes, Access access) const {
  const auto end = CheckedAdd(at, bytes);
  if (!end) return InvalidArgument("range at " + HexAddress(at) + " wraps around");
  for (VirtAddr p = at; p < *end;) {
    VirtAddr begin = 0;
    const Mapping* m = Covering(p, &begin);
    if (m == nullptr) {
      return InvalidArgument("access to " + HexAddress(p) + ", where nothing is mapped");
    }
    if (m->access < access) {
      return InvalidArgument("access to " + HexAddress(p) + ", mapped without the right to " +
                             (access == Access::kRead ? "read" : "write"));
    }
    p = begin + m->bytes;
  }
  return OkStatus();
}

}  // namespace weir
