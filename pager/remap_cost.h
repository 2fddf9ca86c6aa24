// RemapCost: what remapping weights takes the host while nothing is copied, learnt from the moves
// it has made at rest. Beside steps an unmap also waits for the copy under way (docs/drivers.md),
// which moves allow for by keeping pace (WeightPager::AdvanceTransition).
#pragma once

#include <cstdint>

namespace weir {

class RemapCost {
 public:
  // What mapping a granule took at load: all that is known until the first move.
  void SetMapping(double ns_per_granule) { map_ns_ = ns_per_granule; }
  // |granules| were remapped in |ns|, with no step under way.
  void ObserveAtRest(uint32_t granules, uint64_t ns);

  // Of one granule. Never measured: two mappings' time, since a remap also unmaps, which takes
  // about as long (docs/drivers.md).
  double at_rest_ns() const;

 private:
  double map_ns_ = 0;
  // A mean in which what was seen falls to 1/e of its weight over the next kMemory granules.
  double count_ = 0;
  double sum_ns_ = 0;
};

}  // namespace weir
