// The moves of weir_border_bench, step by step.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "bench/engine/border_bench.h"

namespace weir::bench {
namespace {

// Steps of one kind: as the device timed them, with its idling before each, and from the end of one
// to the end of the next, as seen by whoever waits for tokens.
struct StepTimes {
  std::vector<double> device_ms;
  std::vector<double> apart_ms;
  double context = 0;  // of a sequence, mean over the steps
};

double NowMs() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Steps of |load|, timed.
class Clock {
 public:
  Clock(EngineCore& core, SteadyLoad& load) : core_(core), load_(load) {}
  Status Begin() {
    WEIR_TRY(load_.Begin());
    StepTimes settling;
    for (uint32_t i = 0; i < kSettlingSteps; ++i) WEIR_TRY(Step(&settling));
    return OkStatus();
  }
  Status Step(StepTimes* times) {
    const size_t before = core_.step_records().size();
    const TimeNs idle_before = core_.stats().idle_ns;
    WEIR_TRY(load_.Step());
    const double now = NowMs();
    if (core_.step_records().size() > before) {
      const TimeNs idle = core_.stats().idle_ns - idle_before;
      times->device_ms.push_back(static_cast<double>(core_.step_records().back().step_ns + idle) *
                                 1e-6);
      times->apart_ms.push_back(now - last_ms_);
      times->context += load_.context();
    }
    last_ms_ = now;
    return OkStatus();
  }
  // The same contexts each time.
  Result<StepTimes> Steady(uint32_t steps) {
    WEIR_TRY(Begin());
    StepTimes times;
    for (uint32_t i = 0; i < steps; ++i) WEIR_TRY(Step(&times));
    times.context /= static_cast<double>(std::max<size_t>(1, times.device_ms.size()));
    return times;
  }

 private:
  EngineCore& core_;
  SteadyLoad& load_;
  double last_ms_ = 0;
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

// As the engine paces moves (engine/border.cc): behind the gates of a step as much is remapped as
// there is room for beside its copies, if it takes a little longer than the longer steady one.
void Predict(Engine& engine, double steady_ms, uint32_t from, uint32_t to) {
  constexpr double kLate = EngineCore::kLateMove;
  Memory& memory = engine.core().memory();
  const auto layers = static_cast<double>(memory.weights().layout().layers.size());
  const double remap_ms = layers * memory.weights().remap_cost().at_rest_ns() * 1e-6;
  const double copy_ms =
      layers * static_cast<double>(engine.info().granule_bytes) / memory.link_bytes_per_ns() * 1e-6;
  const double longer_ms = std::max(steady_ms, copy_ms * std::max(from, to));
  double at = from, ms = steady_ms;  // the step under way when the move begins
  uint32_t steps = 0;
  for (; std::abs(at - to) > 1e-6 && steps < kMoveSteps; ++steps) {
    const double room_ms = (1 + kLate) * longer_ms - copy_ms * at;
    const double moved =
        std::min(std::abs(at - to), room_ms / (remap_ms + (to > from ? copy_ms : 0)));
    const double away = std::max(at, to > from ? at + moved : at);
    ms += std::max(std::min(steady_ms, longer_ms), copy_ms * away + remap_ms * moved);
    at += to > from ? moved : -moved;
  }
  std::printf(
      "  predicted, with remaps of %.1f us, as at rest: %u steps, %.0f ms, none longer than %.2f "
      "of %.1f ms\n",
      remap_ms / layers * 1e3, steps, ms, 1 + kLate, longer_ms);
}

// Moves to |granules| a layer; |steady| are steps before it, and then after it.
Status Transition(Engine& engine, const BorderArgs& args, Clock& clock, FixedPolicy& policy,
                  uint32_t granules, StepTimes* steady) {
  EngineCore& core = engine.core();
  const WeightPager& weights = core.memory().weights();
  const double granule_gib =
      static_cast<double>(engine.info().granule_bytes) / static_cast<double>(kGiB);
  const double from = weights.plan().evicted_granules();
  const uint32_t from_granules = weights.plan().target().granules_per_layer;
  const double before_ms = Percentile(steady->device_ms, 0.5);
  std::printf("%u -> %u granules a layer\n", from_granules, granules);
  Predict(engine, before_ms, from_granules, granules);
  WEIR_TRY(clock.Begin());
  const WeightPagerStats stats = weights.stats();
  const CoreStats then = core.stats();
  core.SetPolicy(policy);
  const double begin = NowMs();
  StepTimes moving;
  while (weights.plan().target().granules_per_layer != granules) {
    if (moving.device_ms.size() == kMoveSteps) {
      return BadState("the border did not get there in " + std::to_string(kMoveSteps) + " steps");
    }
    WEIR_TRY(clock.Step(&moving));
  }
  const double done = NowMs() - begin;
  const WeightPagerStats& after = weights.stats();
  const auto remaps = static_cast<double>(after.granules_remapped - stats.granules_remapped);
  std::printf(
      "  %.2f GiB in %.1f ms, %lu parts, %lu steps had no room for all of one, %.0f remaps of %.1f "
      "us, host busy %.1f ms, refusals %lu\n",
      std::abs(weights.plan().evicted_granules() - from) * granule_gib, done,
      after.transitions - stats.transitions, after.split_transitions - stats.split_transitions,
      remaps, static_cast<double>(after.remap_ns - stats.remap_ns) * 1e-3 / std::max(1.0, remaps),
      static_cast<double>(core.stats().border_ns - then.border_ns) * 1e-6,
      core.stats().border_refusals - then.border_refusals);
  const StepTimes before = std::move(*steady);
  *steady = WEIR_TRY(clock.Steady(args.steps));
  const double steady_ms = std::max(before_ms, Percentile(steady->device_ms, 0.5));
  std::printf("  contexts before %.1f, after %.1f; steady: %.3f ms, the longer of the two\n",
              before.context, steady->context, steady_ms);
  Print("before", before, steady_ms);
  Print("while it moves", moving, steady_ms);
  for (size_t i = 0; i < moving.device_ms.size(); ++i) {
    std::printf("    step %2zu: device %8.3f ms, tokens after %8.3f ms\n", i, moving.device_ms[i],
                moving.apart_ms[i]);
  }
  Print("after", *steady, steady_ms);
  return OkStatus();
}

}  // namespace

Status RunTransitions(Engine& engine, const BorderArgs& args, SteadyLoad& load) {
  EngineCore& core = engine.core();
  FixedPolicy home(FixedConfig{.granules_per_layer = 0});
  FixedPolicy away(FixedConfig{.granules_per_layer = args.transition, .placement = args.placement});
  core.SetPolicy(home);
  Clock clock(core, load);
  StepTimes steady = WEIR_TRY(clock.Steady(args.steps));
  for (const uint32_t granules : {args.transition, 0U}) {
    const Status moved =
        Transition(engine, args, clock, granules == 0 ? home : away, granules, &steady);
    if (!core.last_border_error().ok()) {
      std::printf("  last refusal: %s\n", core.last_border_error().ToString().c_str());
    }
    WEIR_TRY(moved);
  }
  return OkStatus();
}

}  // namespace weir::bench
