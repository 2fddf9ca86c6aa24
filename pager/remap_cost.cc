#include "pager/remap_cost.h"

#include <cmath>

namespace weir {
namespace {

// About two parts of a large model's move.
constexpr double kMemory = 256;
constexpr double kOfMapping = 2;
constexpr double kBesideSteps = 2;
constexpr double kGateOfRemap = 0.1;

}  // namespace

void RemapCost::RecentMean::Add(double count, double sum) {
  const double kept = std::exp(-count / kMemory);
  count_ = count_ * kept + count;
  sum_ = sum_ * kept + sum;
}

void RemapCost::ObserveAtRest(uint32_t granules, uint64_t ns) {
  at_rest_.Add(granules, static_cast<double>(ns));
}

void RemapCost::ObserveBehindGate(uint32_t granules, uint64_t remap_ns, uint64_t other_ns) {
  if (granules > 0) behind_gates_.Add(granules, static_cast<double>(remap_ns));
  gates_.Add(1, static_cast<double>(other_ns));
}

double RemapCost::at_rest_ns() const {
  const double measured = at_rest_.Mean();
  return measured > 0 ? measured : kOfMapping * map_ns_;
}

double RemapCost::behind_gates_ns() const {
  const double measured = behind_gates_.Mean();
  return measured > 0 ? measured : kBesideSteps * at_rest_ns();
}

double RemapCost::gate_ns() const {
  const double measured = gates_.Mean();
  return measured > 0 ? measured : kGateOfRemap * behind_gates_ns();
}

}  // namespace weir
