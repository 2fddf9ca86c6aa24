// MemoryState: who has the memory at one moment of a trace.
//
// Represents granules of the device and their owners, which slots of the weights are at home, the
// KV blocks and the queue, as of the last record that was added. Feed it in order of time. Used by
// every view that goes along a trace: top, plot, export. What the trace does not tell stays 0.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "tools/trace/meta.h"
#include "tools/trace/schema.h"

namespace weir::trace_tool {

class MemoryState {
 public:
  static constexpr size_t kOwners = 8;  // larger numbers are counted as the last
  // More than any device has; a hostile trace must not make us allocate.
  static constexpr uint64_t kMostGranules = 1U << 22;

  explicit MemoryState(const TraceMeta& meta);
  void Add(const TraceRecord& r);

  // --- Granules of the device ---
  uint64_t granules() const { return owner_of_.size(); }
  uint64_t GranulesOf(uint64_t owner) const {
    return owned_[owner < kOwners ? owner : kOwners - 1];
  }
  std::span<const uint8_t> owners() const { return owner_of_; }  // by granule; kOwnerNone: free

  // --- Weights ---
  struct Residency {
    uint64_t home = 0, slots = 0;
    double share() const {
      return slots == 0 ? 1 : static_cast<double>(home) / static_cast<double>(slots);
    }
  };
  // By layer; empty where the metadata has no layers.
  const std::vector<Residency>& layers() const { return layers_; }
  uint64_t evicted_bytes() const { return evicted_bytes_; }
  uint64_t ring_slots() const { return ring_slots_; }

  // --- KV and queue: as of the last kQueue ---
  struct Queue {
    uint64_t running = 0, waiting = 0, used = 0, cached = 0, free = 0, capacity = 0;
    bool operator==(const Queue&) const = default;
  };
  const Queue& queue() const { return queue_; }

 private:
  void SetOwner(uint64_t granule, uint64_t owner);
  void SetSlot(uint64_t slot, uint32_t granule);
  void Home(uint64_t slot, int64_t change);

  static constexpr uint32_t kNoGranule = UINT32_MAX;
  const TraceMeta& meta_;
  std::vector<uint8_t> owner_of_;
  std::array<uint64_t, kOwners> owned_{};
  std::vector<uint32_t> granule_of_;               // by slot of the weight region
  std::vector<int32_t> layer_of_;                  // by slot; -1: none
  std::vector<std::vector<uint32_t>> home_slots_;  // by granule: slots that show it
  std::vector<Residency> layers_;
  uint64_t evicted_bytes_ = 0, ring_slots_ = 0;
  Queue queue_;
};

}  // namespace weir::trace_tool
