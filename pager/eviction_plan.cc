#include "pager/eviction_plan.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace weir {
namespace {

// A half-open run of slots.
struct InnerRun {
  uint64_t first = 0;
  uint64_t end = 0;
  uint64_t count() const { return end > first ? end - first : 0; }
};

// The slots that lie wholly inside |segment|.
InnerRun InnerSlots(const WeightSegment& segment, uint64_t granule_bytes) {
  InnerRun run;
  run.first = CeilDiv(segment.offset, granule_bytes);
  run.end = (segment.offset + segment.bytes) / granule_bytes;
  if (run.end < run.first) run.end = run.first;
  return run;
}

Status ValidateLayout(const WeightLayout& layout, uint64_t granule_bytes) {
  if (!IsPowerOfTwo(granule_bytes)) {
    return InvalidArgument("granule size " + std::to_string(granule_bytes) +
                           " is not a power of two");
  }
  const size_t segments = layout.segments_per_layer();
  std::vector<WeightSegment> all;
  const auto add = [&](const WeightSegment& s, const std::string& whose) -> Status {
    if (s.offset > layout.region_bytes || s.bytes > layout.region_bytes - s.offset) {
      return InvalidArgument(whose + " at offset " + std::to_string(s.offset) +
                             " ends beyond the region of " + std::to_string(layout.region_bytes) +
                             " bytes");
    }
    if (s.bytes > 0) all.push_back(s);
    return OkStatus();
  };
  WEIR_TRY(add(layout.lookup, "the lookup table"));
  for (size_t l = 0; l < layout.layers.size(); ++l) {
    if (layout.layers[l].size() != segments) {
      return InvalidArgument("layer " + std::to_string(l) + " has " +
                             std::to_string(layout.layers[l].size()) + " segments, layer 0 has " +
                             std::to_string(segments));
    }
    for (const WeightSegment& s : layout.layers[l]) {
      WEIR_TRY(add(s, "a segment of layer " + std::to_string(l)));
    }
  }
  std::sort(all.begin(), all.end(),
            [](const WeightSegment& a, const WeightSegment& b) { return a.offset < b.offset; });
  for (size_t i = 1; i < all.size(); ++i) {
    if (all[i - 1].offset + all[i - 1].bytes > all[i].offset) {
      return InvalidArgument("segments at offsets " + std::to_string(all[i - 1].offset) + " and " +
                             std::to_string(all[i].offset) + " overlap");
    }
  }
  return OkStatus();
}

// What segment s can give in every layer: the smallest layer decides.
std::vector<uint32_t> StripeCapacity(const WeightLayout& layout, uint64_t granule_bytes) {
  std::vector<uint32_t> capacity(layout.segments_per_layer(), UINT32_MAX);
  for (const auto& layer : layout.layers) {
    for (size_t s = 0; s < layer.size(); ++s) {
      const auto n = static_cast<uint32_t>(InnerSlots(layer[s], granule_bytes).count());
      capacity[s] = std::min(capacity[s], n);
    }
  }
  return capacity;
}

// Takes |k| granules from the segments of a layer, from the one that can give most first: few long
// copies run at the link's full speed, and each chunk costs the link some microseconds besides. A
// larger k only adds granules, so that moving the border never moves a granule twice. Ties go to
// the later segment, whose stripe has longer to arrive.
std::vector<StripeShare> Concentrate(const std::vector<uint32_t>& capacity, uint32_t k) {
  std::vector<size_t> order(capacity.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return capacity[a] != capacity[b] ? capacity[a] > capacity[b] : a > b;
  });
  std::vector<StripeShare> shares(capacity.size());
  uint32_t taken = 0;
  for (const size_t s : order) {
    shares[s] = {taken, std::min(k - taken, capacity[s])};
    taken += shares[s].count;
  }
  WEIR_CHECK(taken == k, "taking more than there is");
  return shares;
}

// What each segment gives of |k| granules a layer; kInvalidArgument when there are not so many.
Result<std::vector<StripeShare>> TakeFromLayers(const WeightLayout& layout, uint64_t granule_bytes,
                                                uint32_t k) {
  const std::vector<uint32_t> capacity = StripeCapacity(layout, granule_bytes);
  const uint32_t most = std::accumulate(capacity.begin(), capacity.end(), 0U);
  if (k <= most) return Concentrate(capacity, k);
  return InvalidArgument(std::to_string(k) + " granules per layer asked, at most " +
                         std::to_string(most) + " lie wholly inside a layer's segments");
}

// The slots of one whole layer that may leave, by the segment whose gate lets them in.
//
// A slot may leave when the layer's segments cover all its bytes. It belongs to the segment that is
// read first of those touching it, so its gate is reached before any of its bytes is read. If
// another segment reads it later, that one must have a slot of its own: then a chunk departs after
// the last reader, and "the layer's last chunk is consumed" covers the shared slot too.
std::vector<InnerRun> WholeLayerSlots(const std::vector<WeightSegment>& layer,
                                      uint64_t granule_bytes) {
  std::vector<InnerRun> runs(layer.size());
  struct Touch {
    uint64_t slot;
    size_t segment;
    uint64_t bytes;
  };
  std::vector<Touch> edges;  // slots only partly covered by one segment
  for (size_t s = 0; s < layer.size(); ++s) {
    runs[s] = InnerSlots(layer[s], granule_bytes);
    if (layer[s].bytes == 0) continue;
    const uint64_t begin = layer[s].offset;
    const uint64_t end = begin + layer[s].bytes;
    for (const uint64_t slot : {begin / granule_bytes, (end - 1) / granule_bytes}) {
      const uint64_t lo = std::max(begin, slot * granule_bytes);
      const uint64_t hi = std::min(end, (slot + 1) * granule_bytes);
      if (hi - lo == granule_bytes) continue;
      if (!edges.empty() && edges.back().slot == slot && edges.back().segment == s) continue;
      edges.push_back({slot, s, hi - lo});
    }
  }
  std::sort(edges.begin(), edges.end(), [](const Touch& a, const Touch& b) {
    return std::pair(a.slot, a.segment) < std::pair(b.slot, b.segment);
  });
  const std::vector<InnerRun> inner = runs;
  for (size_t i = 0; i < edges.size();) {
    size_t j = i;
    uint64_t covered = 0;
    for (; j < edges.size() && edges[j].slot == edges[i].slot; ++j) covered += edges[j].bytes;
    const size_t first_reader = edges[i].segment;
    const size_t last_reader = edges[j - 1].segment;
    InnerRun& run = runs[first_reader];
    if (covered == granule_bytes && inner[last_reader].count() > 0 &&
        inner[first_reader].count() > 0) {
      if (edges[i].slot == run.end) {
        ++run.end;
      } else if (edges[i].slot + 1 == run.first) {
        --run.first;
      }
    }
    i = j;
  }
  return runs;
}

// Evenly spaced: the middle of each of |n| equal parts.
uint32_t EvictedLayer(uint32_t j, uint32_t n, uint32_t layers) {
  return static_cast<uint32_t>((2 * uint64_t{j} + 1) * layers / (2 * uint64_t{n}));
}

}  // namespace

uint32_t EvictionPlan::MaxGranulesPerLayer(const WeightLayout& layout, uint64_t granule_bytes) {
  const std::vector<uint32_t> capacity = StripeCapacity(layout, granule_bytes);
  return std::accumulate(capacity.begin(), capacity.end(), 0U);
}

uint32_t EvictionPlan::MaxLayers(const WeightLayout& layout, uint64_t granule_bytes,
                                 uint32_t ring_slots) {
  const auto layers = static_cast<uint32_t>(layout.layers.size());
  uint32_t most = 0;
  for (uint32_t n = ring_slots + 1; n <= layers; ++n) {
    const auto plan = Make(layout, granule_bytes,
                           {.placement = Placement::kLayer, .layers = n, .ring_slots = ring_slots});
    if (!plan.ok()) break;
    most = n;
  }
  return most;
}

uint32_t EvictionPlan::GranulesAtHome(const WeightLayout& layout, uint64_t granule_bytes) {
  return static_cast<uint32_t>(CeilDiv(layout.region_bytes, granule_bytes) -
                               InnerSlots(layout.lookup, granule_bytes).count());
}

uint32_t EvictionPlan::LeastLayerGranules(const WeightLayout& layout, uint64_t granule_bytes) {
  uint64_t least = UINT32_MAX;
  for (const auto& layer : layout.layers) {
    uint64_t granules = 0;
    for (const InnerRun& run : WholeLayerSlots(layer, granule_bytes)) granules += run.count();
    least = std::min(least, granules);
  }
  return layout.layers.empty() ? 0 : static_cast<uint32_t>(least);
}

Result<EvictionPlan> EvictionPlan::Make(const WeightLayout& layout, uint64_t granule_bytes,
                                        const EvictionTarget& target) {
  WEIR_TRY(ValidateLayout(layout, granule_bytes));
  EvictionPlan plan;
  plan.target_ = target;
  plan.chunk_of_gate_.assign(layout.gates(), -1);
  plan.PlaceLookup(layout, granule_bytes);
  if (target.empty()) return plan;
  if (target.placement == Placement::kInPlace) {
    WEIR_TRY(plan.PlaceInBackingCopy(layout, granule_bytes));
    return plan;
  }
  const uint32_t least_slots = target.placement == Placement::kStripe ? 2 : 1;
  if (target.ring_slots < least_slots) {
    return InvalidArgument("ring_slots is " + std::to_string(target.ring_slots) + "; at least " +
                           std::to_string(least_slots) +
                           (least_slots == 2 ? " are needed for copy and compute to overlap"
                                             : " is needed to copy to"));
  }
  WEIR_TRY(target.placement == Placement::kStripe ? plan.PlaceStripes(layout, granule_bytes)
                                                  : plan.PlaceLayers(layout, granule_bytes));
  if (plan.evicted_granules_ <= plan.ring_granules_) {
    return InvalidArgument("a ring of " + std::to_string(target.ring_slots) +
                           " slots would take all " + std::to_string(plan.evicted_granules_) +
                           " evicted granules and free nothing");
  }
  plan.CountPrefix();
  return plan;
}

void EvictionPlan::CountPrefix() {
  while (prefix_chunks_ < chunks_.size() && chunks_[prefix_chunks_].previous_pass) ++prefix_chunks_;
}

uint32_t EvictionPlan::prefix_granules() const {
  uint32_t granules = 0;
  for (uint32_t i = 0; i < prefix_chunks_; ++i) granules += chunks_[i].count;
  return granules;
}

Result<EvictionPlan> EvictionPlan::Between(const WeightLayout& layout, uint64_t granule_bytes,
                                           const EvictionTarget& most,
                                           const std::vector<uint32_t>& granules_of_gate) {
  const EvictionPlan even = WEIR_TRY(Make(layout, granule_bytes, most));
  if (most.placement != Placement::kStripe || granules_of_gate.size() != layout.gates()) {
    return InvalidArgument("a border in between is of stripes, with a number for each of " +
                           std::to_string(layout.gates()) + " gates");
  }
  const std::vector<uint32_t> all = even.GranulesOfGate();
  for (size_t g = 0; g < all.size(); ++g) {
    if (granules_of_gate[g] <= all[g]) continue;
    return InvalidArgument("the stripe of gate " + std::to_string(g) + " has " +
                           std::to_string(all[g]) + " granules, " +
                           std::to_string(granules_of_gate[g]) + " of them asked");
  }
  if (granules_of_gate == all) return even;
  EvictionPlan plan;
  plan.target_ = most;
  plan.even_ = false;
  plan.PlaceLookup(layout, granule_bytes);
  plan.PlaceStripesOf(layout, granule_bytes,
                      WEIR_TRY(TakeFromLayers(layout, granule_bytes, most.granules_per_layer)),
                      granules_of_gate);
  plan.CountPrefix();
  return plan;
}

Status EvictionPlan::PlaceStripes(const WeightLayout& layout, uint64_t granule_bytes) {
  const auto layers = static_cast<uint32_t>(layout.layers.size());
  const uint32_t segments = layout.segments_per_layer();
  const uint32_t k = target_.granules_per_layer;
  const uint32_t ring = target_.ring_slots;
  const std::vector<StripeShare> take = WEIR_TRY(TakeFromLayers(layout, granule_bytes, k));
  if (layers <= ring) {
    return InvalidArgument("a ring of " + std::to_string(ring) + " slots needs more than " +
                           std::to_string(ring) + " layers, the model has " +
                           std::to_string(layers));
  }
  std::vector<uint32_t> granules_of_gate(layout.gates());
  for (uint32_t g = 0; g < layout.gates(); ++g) granules_of_gate[g] = take[g % segments].count;
  PlaceStripesOf(layout, granule_bytes, take, granules_of_gate);
  return OkStatus();
}

void EvictionPlan::PlaceStripesOf(const WeightLayout& layout, uint64_t granule_bytes,
                                  const std::vector<StripeShare>& most,
                                  const std::vector<uint32_t>& granules_of_gate) {
  const uint32_t segments = layout.segments_per_layer();
  const uint32_t ring = target_.ring_slots;
  chunk_of_gate_.assign(layout.gates(), -1);
  // By segment and ring slot, the chunk that used its granules last. No other segment does. One
  // with fewer granules than a chunk before it comes later all the same.
  std::vector<int32_t> last_user(size_t{segments} * ring, -1);
  for (uint32_t g = 0; g < layout.gates(); ++g) {
    const uint32_t count = granules_of_gate[g];
    if (count == 0) continue;
    const uint32_t l = g / segments;
    const uint32_t s = g % segments;
    const InnerRun run = InnerSlots(layout.layers[l][s], granule_bytes);
    StripeChunk chunk;
    chunk.gate = g;
    chunk.first = SlotIndex(static_cast<uint32_t>(run.end - count));
    chunk.count = count;
    chunk.ring_slot = l % ring;
    // The granules of a layer are numbered in the order in which they leave.
    chunk.ring_first = (most[s].before + count - 1) * ring + chunk.ring_slot;
    chunk.ring_step = -static_cast<int32_t>(ring);
    int32_t& last = last_user[size_t{s} * ring + chunk.ring_slot];
    chunk.previous_pass = last < 0;  // which it is is known when all are there
    if (last >= 0) chunk.previous_user = static_cast<uint32_t>(last);
    last = static_cast<int32_t>(chunks_.size());
    chunk_of_gate_[g] = last;
    chunks_.push_back(chunk);
    evicted_granules_ += count;
  }
  for (StripeChunk& c : chunks_) {
    if (!c.previous_pass) continue;
    c.previous_user =
        static_cast<uint32_t>(last_user[size_t{c.gate % segments} * ring + c.ring_slot]);
  }
  const std::vector<bool> used = RingGranules(size_t{ring} * target_.granules_per_layer);
  ring_granules_ = static_cast<uint32_t>(std::count(used.begin(), used.end(), true));
}

Status EvictionPlan::PlaceLayers(const WeightLayout& layout, uint64_t granule_bytes) {
  const auto layers = static_cast<uint32_t>(layout.layers.size());
  const uint32_t segments = layout.segments_per_layer();
  const uint32_t n = target_.layers;
  const uint32_t ring = target_.ring_slots;
  if (n > layers) {
    return InvalidArgument(std::to_string(n) + " layers asked, the model has " +
                           std::to_string(layers));
  }
  if (n <= ring) {
    return InvalidArgument("a ring of " + std::to_string(ring) + " slots frees nothing unless " +
                           "more than " + std::to_string(ring) +
                           " layers are evicted, asked: " + std::to_string(n));
  }
  std::vector<uint32_t> last_chunk(n, 0);  // of the j-th evicted layer
  uint32_t widest = 0;
  for (uint32_t j = 0; j < n; ++j) {
    const uint32_t layer = EvictedLayer(j, n, layers);
    const std::vector<InnerRun> runs = WholeLayerSlots(layout.layers[layer], granule_bytes);
    uint32_t offset = 0;  // inside the ring slot; made absolute below
    for (uint32_t s = 0; s < segments; ++s) {
      if (runs[s].count() == 0) continue;
      StripeChunk chunk;
      chunk.gate = layer * segments + s;
      chunk.first = SlotIndex(static_cast<uint32_t>(runs[s].first));
      chunk.count = static_cast<uint32_t>(runs[s].count());
      chunk.ring_slot = j % ring;
      chunk.ring_first = offset;
      chunk.previous_pass = j < ring;
      chunk.previous_user = j;  // the evicted layer for now; its predecessor's last chunk below
      chunk_of_gate_[chunk.gate] = static_cast<int32_t>(chunks_.size());
      chunks_.push_back(chunk);
      offset += chunk.count;
    }
    if (offset == 0) {
      return InvalidArgument("layer " + std::to_string(layer) +
                             " has no granule wholly inside its segments");
    }
    last_chunk[j] = static_cast<uint32_t>(chunks_.size() - 1);
    widest = std::max(widest, offset);
    evicted_granules_ += offset;
  }
  // Layers may differ by a granule or two, so a chunk may overlap several of its predecessor: it
  // waits for the last of them.
  for (StripeChunk& chunk : chunks_) {
    const uint32_t j = chunk.previous_user;
    chunk.previous_user = last_chunk[j < ring ? (n - 1 - j) / ring * ring + j : j - ring];
    chunk.ring_first += chunk.ring_slot * widest;
  }
  ring_granules_ = ring * widest;
  return OkStatus();
}

void EvictionPlan::PlaceLookup(const WeightLayout& layout, uint64_t granule_bytes) {
  granules_at_home_ = GranulesAtHome(layout, granule_bytes);
  const InnerRun run = InnerSlots(layout.lookup, granule_bytes);
  if (run.count() == 0) return;
  in_place_.push_back({static_cast<uint32_t>(run.first), static_cast<uint32_t>(run.count())});
}

Status EvictionPlan::PlaceInBackingCopy(const WeightLayout& layout, uint64_t granule_bytes) {
  const std::vector<StripeShare> take =
      WEIR_TRY(TakeFromLayers(layout, granule_bytes, target_.granules_per_layer));
  for (const auto& layer : layout.layers) {
    for (size_t s = 0; s < layer.size(); ++s) {
      if (take[s].count == 0) continue;
      const InnerRun run = InnerSlots(layer[s], granule_bytes);
      in_place_.push_back({static_cast<uint32_t>(run.end - take[s].count), take[s].count});
      evicted_granules_ += take[s].count;
    }
  }
  return OkStatus();
}

std::vector<SlotPlace> EvictionPlan::PlaceOfSlots(size_t slots) const {
  std::vector<SlotPlace> place(slots, kAtHome);
  for (const StripeChunk& c : chunks_) {
    for (uint32_t i = 0; i < c.count; ++i) {
      place[c.first.value + i] = static_cast<SlotPlace>(c.RingGranule(i));
    }
  }
  for (const SlotRun& run : in_place_) {
    std::fill_n(place.begin() + run.first, run.count, kInBackingCopy);
  }
  return place;
}

std::vector<bool> EvictionPlan::RingGranules(size_t slots) const {
  std::vector<bool> used(slots, false);
  if (target_.placement == Placement::kLayer) {  // a slot is as wide as the widest layer
    std::fill_n(used.begin(), ring_granules_, true);
    return used;
  }
  for (const StripeChunk& c : chunks_) {
    for (uint32_t i = 0; i < c.count; ++i) used[c.RingGranule(i)] = true;
  }
  return used;
}

std::vector<uint32_t> EvictionPlan::GranulesOfGate() const {
  std::vector<uint32_t> granules(chunk_of_gate_.size(), 0);
  for (const StripeChunk& c : chunks_) granules[c.gate] = c.count;
  return granules;
}

std::string EvictionPlan::ToString() const {
  if (target_.empty()) return "nothing evicted";
  if (target_.placement == Placement::kInPlace) {
    return "in place, " + std::to_string(target_.granules_per_layer) +
           " granules per layer: " + std::to_string(evicted_granules_) + " evicted and freed";
  }
  std::string text = target_.placement == Placement::kStripe
                         ? std::string(even_ ? "stripe, " : "stripe, at most ") +
                               std::to_string(target_.granules_per_layer) + " granules per layer"
                         : "layer, " + std::to_string(target_.layers) + " layers";
  text += ", ring of " + std::to_string(target_.ring_slots) + ": " +
          std::to_string(evicted_granules_) + " evicted, " + std::to_string(ring_granules_) +
          " in the ring, " + std::to_string(freed_granules()) + " freed, " +
          std::to_string(chunks_.size()) + " chunks (" + std::to_string(prefix_chunks_) +
          " before the pass)";
  return text;
}

}  // namespace weir
