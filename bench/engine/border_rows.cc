// The rows of weir_border_bench: steady steps at one border after the other.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>

#include "bench/engine/border_bench.h"
#include "policy/resident.h"

namespace weir::bench {
namespace {

constexpr double kGib = 1 << 30;

// Moves to |policy|'s border and lets the steps end that were under way then. Milliseconds of the
// move, and the longest step meanwhile.
Result<std::pair<double, double>> MoveTo(Engine& engine, SteadyLoad& load, FixedPolicy& policy,
                                         uint32_t granules) {
  EngineCore& core = engine.core();
  const size_t first = core.step_records().size();
  const auto begin = std::chrono::steady_clock::now();
  const auto since = [&] {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
        .count();
  };
  core.SetPolicy(policy);
  const WeightPager& weights = core.memory().weights();
  while (weights.plan().target().granules_per_layer != granules || weights.in_transition()) {
    WEIR_TRY(load.Step());
    if (!core.last_border_error().ok()) break;
    if (since() > 10'000) return BadState("the border did not get there in 10 s");
  }
  const double moved = since();
  for (int i = 0; i < 3; ++i) WEIR_TRY(load.Step());
  double longest = 0;
  for (size_t i = first; i < core.step_records().size(); ++i) {
    longest = std::max(longest, static_cast<double>(core.step_records()[i].step_ns) * 1e-6);
  }
  return std::pair(moved, longest);
}

}  // namespace

Status RunRows(Engine& engine, const BorderArgs& args, SteadyLoad& load) {
  EngineCore& core = engine.core();
  const WeightPager& weights = core.memory().weights();
  const auto granule_bytes = static_cast<double>(engine.info().granule_bytes);
  const uint32_t tokens = args.prefill > 0 ? args.prefill : args.batch;
  std::printf("%9s %9s %9s %9s %9s %9s %9s %9s %9s %8s %9s\n", "granules", "GiB/step", "p50 ms",
              "p99 ms", "predicted", "stall ms", "faults", "GB/s", "move ms", "freed G", "longest");
  std::vector<std::unique_ptr<FixedPolicy>> policies;
  double first_row_ms = 0;
  for (const uint32_t granules : args.granules) {
    policies.push_back(std::make_unique<FixedPolicy>(
        FixedConfig{.granules_per_layer = granules, .placement = args.placement}));
    const auto [moved_ms, longest_ms] = WEIR_TRY(MoveTo(engine, load, *policies.back(), granules));
    const WeightPagerStats before = weights.stats();
    const size_t begin = core.step_records().size();
    for (uint32_t i = 0; i < args.steps; ++i) WEIR_TRY(load.Step());
    const WeightPagerStats& after = weights.stats();
    std::vector<double> ms;
    double stall = 0;
    for (size_t i = begin; i < core.step_records().size(); ++i) {
      ms.push_back(static_cast<double>(core.step_records()[i].step_ns) * 1e-6);
      stall += static_cast<double>(core.step_records()[i].stall_ns) * 1e-6;
    }
    const auto n = static_cast<double>(ms.size());
    const double bytes = static_cast<double>(after.bytes_copied - before.bytes_copied) / n;
    const double p50 = Percentile(ms, 0.5);
    if (first_row_ms == 0) first_row_ms = p50;
    const EvictionPlan& plan = weights.plan();
    const StepCost cost{.link_bytes_per_ns = core.memory().link_bytes_per_ns(),
                        .copy_interference = core.cost_model().cost().copy_interference};
    const double away = plan.evicted_granules() * granule_bytes;
    const double predicted = args.placement == Placement::kInPlace
                                 ? first_row_ms + cost.InPlaceNs(tokens, away) * 1e-6
                                 : std::max(first_row_ms + cost.copy_interference * away * 1e-6,
                                            away / cost.link_bytes_per_ns * 1e-6);
    std::printf("%9u %9.3f %9.3f %9.3f %9.3f %9.4f %9lu %9.1f %9.1f %8.2f %9.2f\n", granules,
                away / kGib, p50, Percentile(ms, 0.99), predicted, stall / n,
                after.faults - before.faults, bytes / (p50 * 1e6), moved_ms,
                plan.freed_granules() * granule_bytes / kGib, longest_ms);
    if (!core.last_border_error().ok()) {
      std::printf("  the border stayed: %s\n", core.last_border_error().ToString().c_str());
    }
  }
  const CoreStats& s = core.stats();
  if (s.queued_steps > 0) {
    std::printf(
        "device idle between queued steps: %.1f us, %.2f %%\n",
        static_cast<double>(s.idle_ns) / static_cast<double>(s.queued_steps) * 1e-3,
        100 * static_cast<double>(s.idle_ns) / static_cast<double>(s.idle_ns + s.queued_ns));
  }
  return OkStatus();
}

}  // namespace weir::bench
