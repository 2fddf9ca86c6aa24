// The rows of weir_border_bench: steady steps at one border after the other.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <utility>

#include "bench/engine/border_bench.h"

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
  for (uint32_t i = 0;
       weights.plan().target().granules_per_layer != granules || weights.in_transition(); ++i) {
    if (i == kMoveSteps) {
      return BadState("the border did not get there in " + std::to_string(i) + " steps");
    }
    WEIR_TRY(load.Step());
    if (!core.last_border_error().ok()) break;
  }
  const double moved = since();
  double longest = 0;
  for (size_t i = first; i < core.step_records().size(); ++i) {
    longest = std::max(longest, static_cast<double>(core.step_records()[i].step_ns) * 1e-6);
  }
  return std::pair(moved, longest);
}

// What the steps of one row took.
struct Row {
  std::vector<double> ms;
  double context = 0;  // of a sequence, mean over the steps
  double stall_ms = 0;
  double copied = 0;  // bytes a step
  uint64_t faults = 0;
};

Result<Row> Measure(Engine& engine, uint32_t steps, SteadyLoad& load) {
  EngineCore& core = engine.core();
  for (uint32_t i = 0; i < kSettlingSteps; ++i) WEIR_TRY(load.Step());
  const WeightPagerStats before = core.memory().weights().stats();
  const size_t begin = core.step_records().size();
  Row row;
  for (uint32_t i = 0; i < steps; ++i) {
    WEIR_TRY(load.Step());
    row.context += load.context() / steps;
  }
  for (size_t i = begin; i < core.step_records().size(); ++i) {
    row.ms.push_back(static_cast<double>(core.step_records()[i].step_ns) * 1e-6);
    row.stall_ms += static_cast<double>(core.step_records()[i].stall_ns) * 1e-6;
  }
  const auto n = static_cast<double>(row.ms.size());
  const WeightPagerStats& after = core.memory().weights().stats();
  row.stall_ms /= n;
  row.copied = static_cast<double>(after.bytes_copied - before.bytes_copied) / n;
  row.faults = after.faults - before.faults;
  return row;
}

// What a row is predicted to take from the first one, and says what that rests on.
class Prediction {
 public:
  Prediction(Engine& engine, const BorderArgs& args)
      : engine_(engine), args_(args), cost_(engine.core().cost_model().cost()) {
    cost_.link_bytes_per_ns = engine.core().memory().link_bytes_per_ns();
  }
  // |row|: the first, with all at home.
  void Begin(const Row& row) {
    resident_ms_ = Percentile(row.ms, 0.5);
    if (args_.placement == Placement::kInPlace) return;
    // What a decode step reads: weights, and the KV of its sequences.
    const auto weights =
        static_cast<double>(engine_.core().memory().weights().layout().region_bytes);
    const double kv = row.context * args_.load.batch / kBlockTokens *
                      static_cast<double>(engine_.info().kv_block_bytes);
    // Not what calibration learnt: its few steps with copies say too little (60 TB/s, once).
    write_ns_per_byte_ = resident_ms_ * 1e6 / (weights + kv);
    std::printf(
        "predicted: copies write at %.2f TB/s, as the first row reads; the link gives %.1f GB/s\n",
        1e-3 / write_ns_per_byte_, cost_.link_bytes_per_ns);
  }
  double Ms(double away) const {
    if (args_.placement == Placement::kInPlace) {
      const uint32_t tokens = args_.load.prefill > 0 ? args_.load.prefill : args_.load.batch;
      return resident_ms_ + cost_.InPlaceNs(tokens, away) * 1e-6;
    }
    return std::max(resident_ms_ + write_ns_per_byte_ * away * 1e-6,
                    away / cost_.link_bytes_per_ns * 1e-6);
  }

 private:
  Engine& engine_;
  const BorderArgs& args_;
  StepCost cost_;
  double write_ns_per_byte_ = 0;
  double resident_ms_ = 0;
};

}  // namespace

Status RunRows(Engine& engine, const BorderArgs& args, SteadyLoad& load) {
  EngineCore& core = engine.core();
  const EvictionPlan& plan = core.memory().weights().plan();
  const auto granule_bytes = static_cast<double>(engine.info().granule_bytes);
  Prediction prediction(engine, args);
  std::vector<std::unique_ptr<FixedPolicy>> policies;
  for (const uint32_t granules : args.granules) {
    policies.push_back(std::make_unique<FixedPolicy>(
        FixedConfig{.granules_per_layer = granules, .placement = args.placement}));
    const auto [moved_ms, longest_ms] = WEIR_TRY(MoveTo(engine, load, *policies.back(), granules));
    WEIR_TRY(load.Begin());
    const Row row = WEIR_TRY(Measure(engine, args.steps, load));
    if (policies.size() == 1) {
      prediction.Begin(row);
      std::printf("%9s %9s %9s %9s %9s %9s %9s %9s %9s %9s %8s %9s\n", "granules", "GiB/step",
                  "context", "p50 ms", "p99 ms", "predicted", "stall ms", "faults", "GB/s",
                  "move ms", "freed G", "longest");
    }
    const double away = plan.evicted_granules() * granule_bytes;
    const double p50 = Percentile(row.ms, 0.5);
    std::printf("%9u %9.3f %9.1f %9.3f %9.3f %9.3f %9.4f %9lu %9.1f %9.1f %8.2f %9.2f\n", granules,
                away / kGib, row.context, p50, Percentile(row.ms, 0.99), prediction.Ms(away),
                row.stall_ms, row.faults, row.copied / (p50 * 1e6), moved_ms,
                plan.freed_granules() * granule_bytes / kGib, longest_ms);
    // Of a prompt the cache can have every whole block but that of its last token.
    const double most = (args.load.context - 1) / kBlockTokens * kBlockTokens /
                        static_cast<double>(args.load.context);
    if (args.load.prefill == 0 && policies.size() > 1 && load.cached_share() < 0.95 * most) {
      std::printf("  the prefix cache had %.0f %% of its prompts\n", 100 * load.cached_share());
    }
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
