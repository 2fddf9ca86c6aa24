// The moves of weir_border_bench, step by step.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "bench/engine/border_bench.h"
#include "policy/resident.h"

namespace weir::bench {
namespace {

// Steps of one kind: as the device timed them, with its idling before each, and from the end of one
// to the end of the next, as seen by whoever waits for tokens.
struct StepTimes {
  std::vector<double> device_ms;
  std::vector<double> apart_ms;
};

void Print(const char* what, const StepTimes& times, double steady_ms) {
  const auto row = [&](const char* how, const std::vector<double>& ms) {
    if (ms.empty()) return;
    const double p99 = Percentile(ms, 0.99);
    const double worst = *std::max_element(ms.begin(), ms.end());
    std::printf(
        "  %-22s %-7s %4zu steps  p50 %8.3f  p99 %8.3f  worst %8.3f ms  (p99 %.3f, worst "
        "%.3f of steady)\n",
        what, how, ms.size(), Percentile(ms, 0.5), p99, worst, p99 / steady_ms, worst / steady_ms);
  };
  row("device", times.device_ms);
  row("tokens", times.apart_ms);
}

// Moves to |granules| a layer and keeps it there. The steady steps it ends with are the next's.
Status Transition(Engine& engine, const BorderArgs& args, SteadyLoad& load, FixedPolicy& policy,
                  uint32_t granules, StepTimes* steady) {
  EngineCore& core = engine.core();
  WeightPager& weights = core.memory().weights();
  const double granule_gib =
      static_cast<double>(engine.info().granule_bytes) / static_cast<double>(kGiB);
  const auto away = [&] { return static_cast<double>(weights.plan().evicted_granules()); };
  const auto now_ms = [] {
    return std::chrono::duration<double, std::milli>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  // One step; its times go to |times|.
  double last_ms = now_ms();
  const auto step = [&](StepTimes* times) -> Status {
    const size_t before = core.step_records().size();
    const TimeNs idle_before = core.stats().idle_ns;
    WEIR_TRY(load.Step());
    const double now = now_ms();
    if (core.step_records().size() > before) {
      const TimeNs idle = core.stats().idle_ns - idle_before;
      times->device_ms.push_back(static_cast<double>(core.step_records().back().step_ns + idle) *
                                 1e-6);
      times->apart_ms.push_back(now - last_ms);
    }
    last_ms = now;
    return OkStatus();
  };
  const WeightPagerStats stats = weights.stats();
  const TimeNs border_ns = core.stats().border_ns;
  const uint64_t refusals = core.stats().border_refusals;
  const double from = away();
  const uint32_t from_granules = weights.plan().target().granules_per_layer;
  const double remap_us = weights.remap_ns_per_granule() * 1e-3;
  core.SetPolicy(policy);
  const double begin = now_ms();
  StepTimes moving;
  double done = 0;
  while (weights.plan().target().granules_per_layer != granules) {
    WEIR_TRY(step(&moving));
    if (now_ms() - begin > 5'000) return BadState("the border did not get there in 5 s");
  }
  done = now_ms() - begin;
  const WeightPagerStats& after = weights.stats();
  const double steady_ms = Percentile(steady->device_ms, 0.5);
  const auto layers = static_cast<double>(weights.layout().layers.size());
  const double moved = layers * std::abs(static_cast<double>(granules) - from_granules);
  std::printf(
      "%u -> %u granules a layer: %.2f GiB in %.1f ms, %lu parts, %.0f remaps of %.1f us, "
      "host busy %.1f ms, refusals %lu\n",
      from_granules, granules, std::abs(away() - from) * granule_gib, done,
      after.transitions - stats.transitions, moved,
      static_cast<double>(after.remap_ns - stats.remap_ns) * 1e-3 /
          static_cast<double>(after.granules_remapped - stats.granules_remapped),
      static_cast<double>(core.stats().border_ns - border_ns) * 1e-6,
      core.stats().border_refusals - refusals);
  // A part takes half a step's worth of remaps; a step is late by the first gate's remap and copy.
  const double per_part = std::max(1.0, std::floor(0.5 * steady_ms * 1e3 / (remap_us * layers)));
  const double parts = std::ceil(moved / layers / per_part);
  const double link = core.memory().link_bytes_per_ns();
  const double first_ms =
      (per_part * remap_us * 1e3 + std::max(granules, from_granules) *
                                       static_cast<double>(engine.info().granule_bytes) / link) *
      1e-6;
  std::printf(
      "  predicted with gates passed by kernels: %.0f parts in %.0f steps, about %.0f ms, "
      "each step %.3f of the steady one\n",
      parts, parts + 2, (parts + 2) * steady_ms, 1 + first_ms / steady_ms);
  Print("before", *steady, steady_ms);
  Print("while it moves", moving, steady_ms);
  for (size_t i = 0; i < moving.device_ms.size(); ++i) {
    std::printf("    step %2zu: device %8.3f ms, tokens after %8.3f ms\n", i, moving.device_ms[i],
                moving.apart_ms[i]);
  }
  *steady = {};
  StepTimes settling;  // the steps that were under way
  for (int i = 0; i < 3; ++i) WEIR_TRY(step(&settling));
  for (uint32_t i = 0; i + 3 < args.steps; ++i) WEIR_TRY(step(steady));
  Print("after", *steady, steady_ms);
  return OkStatus();
}

}  // namespace

Status RunTransitions(Engine& engine, const BorderArgs& args, SteadyLoad& load) {
  EngineCore& core = engine.core();
  FixedPolicy home(FixedConfig{.granules_per_layer = 0});
  FixedPolicy away(FixedConfig{.granules_per_layer = args.transition, .placement = args.placement});
  core.SetPolicy(home);
  StepTimes steady;
  for (uint32_t i = 0; i < args.steps; ++i) {
    const size_t before = core.step_records().size();
    const TimeNs idle_before = core.stats().idle_ns;
    const auto begin = std::chrono::steady_clock::now();
    WEIR_TRY(load.Step());
    if (core.step_records().size() == before || i < 3) continue;
    steady.device_ms.push_back(static_cast<double>(core.step_records().back().step_ns +
                                                   core.stats().idle_ns - idle_before) *
                               1e-6);
    steady.apart_ms.push_back(
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
            .count());
  }
  for (const uint32_t granules : {args.transition, 0U}) {
    const Status moved =
        Transition(engine, args, load, granules == 0 ? home : away, granules, &steady);
    if (!core.last_border_error().ok()) {
      std::printf("  last refusal: %s\n", core.last_border_error().ToString().c_str());
    }
    WEIR_TRY(moved);
  }
  return OkStatus();
}

}  // namespace weir::bench
