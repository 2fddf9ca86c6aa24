#include "tools/trace/memory_state.h"

#include <algorithm>

namespace weir::trace_tool {

MemoryState::MemoryState(const TraceMeta& meta) : meta_(meta) {
  layers_.resize(meta.layers.size());
  const auto region = meta.regions.find(static_cast<uint64_t>(meta.weights_region));
  if (meta.weights_region < 0 || region == meta.regions.end()) return;
  const uint64_t slots = std::min(region->second.slots, kMostGranules);
  granule_of_.assign(slots, kNoGranule);
  layer_of_.resize(slots);
  for (uint64_t s = 0; s < slots; ++s) {
    layer_of_[s] = static_cast<int32_t>(meta.LayerOfSlot(s));
    if (layer_of_[s] >= 0) ++layers_[static_cast<size_t>(layer_of_[s])].slots;
  }
}

// A slot is at home while the granule it shows is the weights', and not a place in the ring.
void MemoryState::Home(uint64_t slot, int64_t change) {
  const int32_t layer = layer_of_[slot];
  if (layer < 0) return;
  uint64_t& home = layers_[static_cast<size_t>(layer)].home;
  home = change < 0 && home == 0 ? 0 : home + static_cast<uint64_t>(change);
}

void MemoryState::SetOwner(uint64_t granule, uint64_t owner) {
  if (granule >= kMostGranules) return;
  if (granule >= owner_of_.size()) {
    owned_[kOwnerNone] += granule + 1 - owner_of_.size();
    owner_of_.resize(granule + 1, kOwnerNone);
    home_slots_.resize(granule + 1);
  }
  const auto to = static_cast<uint8_t>(std::min<uint64_t>(owner, kOwners - 1));
  const uint8_t from = owner_of_[granule];
  if (from == to) return;
  --owned_[from];
  ++owned_[to];
  owner_of_[granule] = to;
  const int64_t change = (to == kOwnerWeights ? 1 : 0) - (from == kOwnerWeights ? 1 : 0);
  if (change == 0) return;
  for (const uint32_t slot : home_slots_[granule]) Home(slot, change);
}

void MemoryState::SetSlot(uint64_t slot, uint32_t granule) {
  if (slot >= granule_of_.size()) return;
  const uint32_t old = granule_of_[slot];
  if (old == granule) return;
  if (old != kNoGranule) {
    std::erase(home_slots_[old], static_cast<uint32_t>(slot));
    if (owner_of_[old] == kOwnerWeights) Home(slot, -1);
  }
  granule_of_[slot] = granule;
  if (granule == kNoGranule) return;
  home_slots_[granule].push_back(static_cast<uint32_t>(slot));
  if (owner_of_[granule] == kOwnerWeights) Home(slot, 1);
}

void MemoryState::Add(const TraceRecord& r) {
  const bool device = r.cause == kTierHbm;
  switch (static_cast<TraceType>(r.type)) {
    case TraceType::kCreate:
      if (device && r.args[0] >= owner_of_.size()) SetOwner(r.args[0], kOwnerNone);
      break;
    case TraceType::kGranuleState:
      if (device) SetOwner(r.args[0], r.args[2] == kStateFree ? kOwnerNone : r.args[3]);
      break;
    case TraceType::kOwner:
      if (device) SetOwner(r.args[0], r.args[2]);
      break;
    case TraceType::kMap:
      if (!device || r.args[2] >= kMostGranules) break;
      if (r.args[2] >= owner_of_.size()) SetOwner(r.args[2], r.args[4]);
      if (static_cast<int64_t>(r.args[0]) == meta_.weights_region) {
        SetSlot(r.args[1], static_cast<uint32_t>(r.args[2]));
      }
      break;
    case TraceType::kUnmap:
      if (device && static_cast<int64_t>(r.args[0]) == meta_.weights_region) {
        SetSlot(r.args[1], kNoGranule);
      }
      break;
    case TraceType::kPlacement:
      ring_slots_ = r.args[1];
      evicted_bytes_ = r.args[3];
      break;
    case TraceType::kTransition:
      ring_slots_ = r.args[2];
      evicted_bytes_ = r.args[3];
      break;
    case TraceType::kQueue:
      queue_ = {r.args[0], r.args[1], r.args[2], r.args[3], r.args[4], r.args[5]};
      break;
    default: break;
  }
}

}  // namespace weir::trace_tool
