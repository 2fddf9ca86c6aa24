// EvictionPlan: which granules of the weights are away, and which ring granules stand in for them.
//
// Pure arithmetic over a weight layout; touches no driver. Two placements (docs/paging.md):
//   stripe  the last granules of every layer's segments (the sluice, design.md): freeing E bytes
//           costs E*(1 + R/(L-R)) bytes of streaming per step, spread evenly over the step;
//   layer   whole layers, evenly spaced, as the published systems do it (Oneiros): bursts.
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
// the order in which a step reads them. What is outside every segment (embeddings, norms, biases)
// is never evicted.
struct WeightLayout {
  uint64_t region_bytes = 0;
  std::vector<std::vector<WeightSegment>> layers;
  uint32_t segments_per_layer() const {
    return layers.empty() ? 0 : static_cast<uint32_t>(layers[0].size());
  }
  uint32_t gates() const { return static_cast<uint32_t>(layers.size()) * segments_per_layer(); }
};

// How much should be away. Nothing: granules_per_layer == 0 (stripe) or layers == 0 (layer).
struct EvictionTarget {
  Placement placement = Placement::kStripe;
  uint32_t granules_per_layer = 0;  // kStripe: taken from the ends of every layer's segments
  uint32_t layers = 0;              // kLayer: how many whole layers
  // R >= 2 so that copy and compute overlap; kLayer allows 1, where each copy waits until the
  // layer before has been computed.
  uint32_t ring_slots = 2;
  bool empty() const { return amount() == 0; }
  uint32_t amount() const { return placement == Placement::kStripe ? granules_per_layer : layers; }
  bool operator==(const EvictionTarget&) const = default;
};

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

class EvictionPlan {
 public:
  EvictionPlan() = default;
  // kInvalidArgument when the target exceeds what the layout can give (the message says the most),
  // or when the ring would not leave anything free.
  static Result<EvictionPlan> Make(const WeightLayout& layout, uint64_t granule_bytes,
                                   const EvictionTarget& target);
  // The largest granules_per_layer a stripe target may ask for.
  static uint32_t MaxGranulesPerLayer(const WeightLayout& layout, uint64_t granule_bytes);
  // The largest n such that with a ring of |ring_slots| every number of whole layers in
  // (ring_slots, n] can be away; 0 when none can.
  static uint32_t MaxLayers(const WeightLayout& layout, uint64_t granule_bytes,
                            uint32_t ring_slots);
  // What the layer that can give least gives as a whole.
  static uint32_t LeastLayerGranules(const WeightLayout& layout, uint64_t granule_bytes);

  const EvictionTarget& target() const { return target_; }
  const std::vector<StripeChunk>& chunks() const { return chunks_; }  // in execution order
  const std::vector<int32_t>& chunk_of_gate() const { return chunk_of_gate_; }  // -1: open gate
  uint32_t ring_granules() const { return ring_granules_; }
  uint32_t evicted_granules() const { return evicted_granules_; }
  uint32_t freed_granules() const { return evicted_granules_ - ring_granules_; }
  // Chunks of a pass that can be copied before the pass begins: every earlier user of their ring
  // slots is in the previous pass.
  uint32_t prefix_chunks() const { return prefix_chunks_; }
  // By weight slot, of |slots|: the ring granule that stands in for it, or -1 where it is home.
  std::vector<int32_t> RingOfSlots(size_t slots) const;
  std::string ToString() const;

 private:
  Status PlaceStripes(const WeightLayout& layout, uint64_t granule_bytes);
  Status PlaceLayers(const WeightLayout& layout, uint64_t granule_bytes);

  EvictionTarget target_;
  std::vector<StripeChunk> chunks_;
  std::vector<int32_t> chunk_of_gate_;
  uint32_t ring_granules_ = 0;
  uint32_t evicted_granules_ = 0;
  uint32_t prefix_chunks_ = 0;
};

}  // namespace weir
