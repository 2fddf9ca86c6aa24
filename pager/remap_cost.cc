#include "pager/remap_cost.h"

#include <cmath>

namespace weir {
namespace {

// About two parts of a large model's move.
constexpr double kMemory = 256;
constexpr double kOfMapping = 2;

}  // namespace

void RemapCost::ObserveAtRest(uint32_t granules, uint64_t ns) {
  const double kept = std::exp(-static_cast<double>(granules) / kMemory);
  count_ = count_ * kept + granules;
  sum_ns_ = sum_ns_ * kept + static_cast<double>(ns);
}

double RemapCost::at_rest_ns() const {
  return count_ > 0 ? sum_ns_ / count_ : kOfMapping * map_ns_;
}

}  // namespace weir
