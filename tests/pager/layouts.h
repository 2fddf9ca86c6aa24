// Weight layouts for tests: regular ones and random ones.
#pragma once

#include <random>

#include "pager/eviction_plan.h"

namespace weir::test {

// |layers| layers of segments of the given sizes, back to back behind |lead| bytes, with |gap|
// bytes that are never evicted between layers.
inline WeightLayout RegularLayout(uint32_t layers, const std::vector<uint64_t>& segment_bytes,
                                  uint64_t lead = 0, uint64_t gap = 0) {
  WeightLayout layout;
  uint64_t at = lead;
  for (uint32_t l = 0; l < layers; ++l) {
    std::vector<WeightSegment> segments;
    for (const uint64_t bytes : segment_bytes) {
      segments.push_back({at, bytes});
      at += bytes;
    }
    layout.layers.push_back(std::move(segments));
    at += gap;
  }
  layout.region_bytes = at;
  return layout;
}

// Sizes, gaps, alignment and the number of layers and segments at random; sizes are of the order of
// a few granules, some much less than one.
inline WeightLayout RandomLayout(std::mt19937_64& rng, uint64_t granule_bytes) {
  const auto pick = [&rng](uint64_t lo, uint64_t hi) {
    return std::uniform_int_distribution<uint64_t>(lo, hi)(rng);
  };
  WeightLayout layout;
  const uint64_t layers = pick(1, 14);
  const uint64_t segments = pick(1, 4);
  std::vector<uint64_t> typical;
  for (uint64_t s = 0; s < segments; ++s) {
    typical.push_back(pick(0, 3) == 0 ? pick(0, granule_bytes) : pick(1, 6 * granule_bytes));
  }
  uint64_t at = pick(0, 2) * pick(0, granule_bytes);
  for (uint64_t l = 0; l < layers; ++l) {
    std::vector<WeightSegment> row;
    for (uint64_t s = 0; s < segments; ++s) {
      const uint64_t bytes = typical[s] + (pick(0, 4) == 0 ? pick(0, granule_bytes) : 0);
      row.push_back({at, bytes});
      at += bytes;
      if (pick(0, 5) == 0) at += pick(0, granule_bytes);
    }
    layout.layers.push_back(std::move(row));
    if (pick(0, 2) == 0) at += pick(0, granule_bytes / 2);
  }
  layout.region_bytes = at + pick(0, granule_bytes) + 1;
  return layout;
}

// |layout| with a lookup table of |bytes| behind everything else.
inline WeightLayout WithLookup(WeightLayout layout, uint64_t bytes) {
  layout.lookup = {layout.region_bytes, bytes};
  layout.region_bytes += bytes;
  return layout;
}

// The same for every other |rng|, of up to five granules.
inline WeightLayout WithSomeLookup(WeightLayout layout, std::mt19937_64& rng,
                                   uint64_t granule_bytes) {
  const bool none = rng() % 2 == 0;
  return none ? layout : WithLookup(std::move(layout), 1 + rng() % (5 * granule_bytes));
}

}  // namespace weir::test
