// RemapCost: what moving weights takes the host, learnt from the moves it has made.
//
// Driver calls take about twice as long beside running kernels and copies as at rest, or more
// (Qwen3-32B's shape on 2xH200: 57-80 us a granule at rest, 118-150 us behind closed gates, once
// 230), so the two are kept apart. All of it is of recent moves: the cost drifts with what runs
// beside them.
#pragma once

#include <cstdint>

namespace weir {

class RemapCost {
 public:
  // What mapping a granule took at load: all that is known until the first move.
  void SetMapping(double ns_per_granule) { map_ns_ = ns_per_granule; }
  // |granules| were remapped in |ns|, with no step under way.
  void ObserveAtRest(uint32_t granules, uint64_t ns);
  // Behind one closed gate |granules| were remapped in |remap_ns|, and planning that and queueing
  // the gate's copy took |other_ns|.
  void ObserveBehindGate(uint32_t granules, uint64_t remap_ns, uint64_t other_ns);

  // Of one granule. Never measured: two mappings' time, since a remap also unmaps, which takes
  // about as long (docs/drivers.md).
  double at_rest_ns() const;
  // Never measured: twice as much as at rest.
  double behind_gates_ns() const;
  // Of one gate beside its remaps. Never measured: a tenth of a remap behind gates, so that it
  // counts at all (simulated 15 of 130 us, on 2xH200 55 of 122).
  double gate_ns() const;

 private:
  // A mean in which what was seen falls to 1/e of its weight over the next kMemory granules
  // (gates).
  class RecentMean {
   public:
    void Add(double count, double sum);
    double Mean() const { return count_ > 0 ? sum_ / count_ : 0; }

   private:
    double count_ = 0;
    double sum_ = 0;
  };

  double map_ns_ = 0;
  RecentMean at_rest_, behind_gates_, gates_;
};

}  // namespace weir
