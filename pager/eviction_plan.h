// EvictionPlan: which granules of the weights are away, and which ring granules stand in for them.
//
// Pure arithmetic over a weight layout; touches no driver. Three placements (docs/paging.md):
//   stripe    the last granules of every layer's segments (the sluice, design.md): freeing E bytes
//             costs E*(1 + R/(L-R)) bytes of streaming per step, spread evenly over the step;
//   layer     whole layers, evenly spaced, as the published systems do it (Oneiros): bursts;
//   in place  the same granules as a stripe, but kernels read them where the backing copy is: no
//             ring, so freeing E bytes costs the link E, and nothing hides that.
// Whatever the target, a lookup table is read in place where the layout has one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "policy/policy.h"
#include "vmm/status.h"
#include "vmm/types.h"

namespace weir {

// A run of one layer's weights between two gates: [offset, offset + bytes) in the weight region.
struct WeightSegment {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// Where the weights lie. Layers lie back to back; every layer has the same number of segments, in
// the order in which a step reads them. What is outside every segment (norms, biases, lm_head) is
// never evicted.
struct WeightLayout {
  uint64_t region_bytes = 0;
  std::vector<std::vector<WeightSegment>> layers;
  // A table of which a step reads a row for each of its tokens: whole granules of it are never at
  // home, and read in place from load on. No bytes: there is none, or it is like any small tensor.
  WeightSegment lookup;
  uint32_t segments_per_layer() const {
    return layers.empty() ? 0 : static_cast<uint32_t>(layers[0].size());
  }
  uint32_t gates() const { return static_cast<uint32_t>(layers.size()) * segments_per_layer(); }
};

// How much should be away. Nothing: layers == 0 (layer) or granules_per_layer == 0 (the others).
struct EvictionTarget {
  Placement placement = Placement::kStripe;
  uint32_t granules_per_layer = 0;  // taken from the ends of every layer's segments
  uint32_t layers = 0;              // kLayer: how many whole layers
  // R >= 2 so that copy and compute overlap; kLayer allows 1, where each copy waits until the
  // layer before has been computed. kInPlace has no ring, whatever this says.
  uint32_t ring_slots = 2;
  bool empty() const { return amount() == 0; }
  uint32_t amount() const { return placement == Placement::kLayer ? layers : granules_per_layer; }
  bool operator==(const EvictionTarget&) const = default;
};

// Where the bytes of a weight slot are: at home, in the backing copy, or, from 0 on, in the ring
// granule of that number.
using SlotPlace = int32_t;
inline constexpr SlotPlace kAtHome = -1;
inline constexpr SlotPlace kInBackingCopy = -2;  // read in place
constexpr bool InRing(SlotPlace place) {
  return place >= 0;
}

// One stripe: contiguous slots of one segment, copied in one piece ahead of its gate.
struct StripeChunk {
  uint32_t gate = 0;  // layer * segments_per_layer + segment
  SlotIndex first;    // slots of the weight region
  uint32_t count = 0;
  uint32_t ring_slot = 0;  // which of the R ring slots
  // Ring granules lie in turns, |ring_step| apart: stripes count down from the end of a segment, so
  // that a slot keeps its ring granule however many others leave or come home.
  uint32_t ring_first = 0;  // of slot |first|, from the ring's start
  int32_t ring_step = 1;
  uint32_t RingGranule(uint32_t i) const {  // of slot |first| + i
    return static_cast<uint32_t>(static_cast<int64_t>(ring_first) + int64_t{i} * ring_step);
  }
  // The chunk that used the same ring granules before this one in the endless round: index, and
  // whether it belongs to the previous pass. The copy of this chunk waits until that one is
  // consumed.
  uint32_t previous_user = 0;
  bool previous_pass = false;
};

// What a segment gives of the granules taken from a layer, and how many of them others give before.
struct StripeShare {
  uint32_t before = 0;
  uint32_t count = 0;
};

class EvictionPlan {
 public:
  EvictionPlan() = default;
  // kInvalidArgument when the target exceeds what the layout can give (the message says the most),
  // or when the ring would not leave anything free.
  static Result<EvictionPlan> Make(const WeightLayout& layout, uint64_t granule_bytes,
                                   const EvictionTarget& target);
  // On the way from one border of stripes to another: of each of |most|'s stripes the last
  // |granules_of_gate| granules are away. kInvalidArgument names a stripe that has fewer.
  static Result<EvictionPlan> Between(const WeightLayout& layout, uint64_t granule_bytes,
                                      const EvictionTarget& most,
                                      const std::vector<uint32_t>& granules_of_gate);
  // The largest granules_per_layer that a stripe, or what is read in place, may ask for.
  static uint32_t MaxGranulesPerLayer(const WeightLayout& layout, uint64_t granule_bytes);
  // The largest n such that with a ring of |ring_slots| every number of whole layers in
  // (ring_slots, n] can be away; 0 when none can.
  static uint32_t MaxLayers(const WeightLayout& layout, uint64_t granule_bytes,
                            uint32_t ring_slots);
  // What weights take of the device while nothing is away: the whole region but for the lookup
  // table's granules, which are neither evicted nor freed by any target.
  static uint32_t GranulesAtHome(const WeightLayout& layout, uint64_t granule_bytes);
  // What the layer that can give least gives as a whole.
  static uint32_t LeastLayerGranules(const WeightLayout& layout, uint64_t granule_bytes);

  const EvictionTarget& target() const { return target_; }
  bool even() const { return even_; }  // false: only a part of the target is away (Between)
  const std::vector<StripeChunk>& chunks() const { return chunks_; }  // in execution order
  const std::vector<int32_t>& chunk_of_gate() const { return chunk_of_gate_; }  // -1: open gate
  uint32_t ring_granules() const { return ring_granules_; }
  uint32_t evicted_granules() const { return evicted_granules_; }
  uint32_t freed_granules() const { return evicted_granules_ - ring_granules_; }
  // What weights and ring take of the device.
  uint32_t held_granules() const { return granules_at_home_ - freed_granules(); }
  // Chunks of a pass that can be copied before the pass begins: every earlier user of their ring
  // slots is in the previous pass.
  uint32_t prefix_chunks() const { return prefix_chunks_; }
  uint32_t prefix_granules() const;
  std::vector<SlotPlace> PlaceOfSlots(size_t slots) const;  // by weight slot, of |slots|
  std::vector<bool> RingGranules(size_t slots) const;       // by ring granule: whether there is one
  std::vector<uint32_t> GranulesOfGate() const;             // that its chunk has
  std::string ToString() const;

 private:
  Status PlaceStripes(const WeightLayout& layout, uint64_t granule_bytes);
  // |most|: what each segment gives of the target.
  void PlaceStripesOf(const WeightLayout& layout, uint64_t granule_bytes,
                      const std::vector<StripeShare>& most,
                      const std::vector<uint32_t>& granules_of_gate);
  void CountPrefix();
  Status PlaceLayers(const WeightLayout& layout, uint64_t granule_bytes);
  void PlaceLookup(const WeightLayout& layout, uint64_t granule_bytes);
  Status PlaceInBackingCopy(const WeightLayout& layout, uint64_t granule_bytes);

  struct SlotRun {
    uint32_t first = 0;
    uint32_t count = 0;
  };
  EvictionTarget target_;
  bool even_ = true;
  std::vector<StripeChunk> chunks_;
  std::vector<int32_t> chunk_of_gate_;
  std::vector<SlotRun> in_place_;
  uint32_t ring_granules_ = 0;
  uint32_t granules_at_home_ = 0;
  uint32_t evicted_granules_ = 0;
  uint32_t prefix_chunks_ = 0;
};

}  // namespace weir
