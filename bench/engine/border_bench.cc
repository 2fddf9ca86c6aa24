// What a border costs: decode steps of one batch with more and more of the weights away, in one
// engine, and the moves between the borders.
//
//   weir_border_bench MODEL [--dummy] [--device cuda] [--backing peer] [--budget BYTES]
//                     [--batch N] [--context N] [--steps N] [--granules 0,2,4,...] [--tokens N]
//                     [--ring N] [--transition K] [--placement stripe|in_place]
//
// Each row: granules away from each layer, bytes streamed a step, the step's time (median, p99),
// the time it waited in gates, what the link delivered, and how long the move to this border took.
// The prediction beside it: the step with nothing away, longer by the bytes written into the ring
// over the memory's write rate, but no shorter than the link needs (docs/policies.md).
//
// With --placement in_place the granules are read where their backing copy is: nothing is streamed,
// and beside each row stands the step that StepCost::InPlaceNs makes of the first one, which should
// be of 0 granules.
//
// With --transition K, instead: all at home, then K granules a layer away, then home again, each
// kept for --steps steps; what every step of the move took, on the device and as the caller sees
// it, beside the steady steps on either side, and how many steps and milliseconds the move took.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "policy/resident.h"

namespace weir {
namespace {

struct Args {
  EngineOptions engine;
  uint32_t batch = 64;
  uint32_t context = 1024;
  uint32_t steps = 40;
  uint32_t transition = 0;  // granules a layer; 0: rows of steady borders
  std::vector<uint32_t> granules{0, 1, 2, 4};
  Placement placement = Placement::kStripe;
};

std::vector<uint32_t> Numbers(const char* text) {
  std::vector<uint32_t> numbers;
  for (char* end = nullptr; *text != 0; text = *end == ',' ? end + 1 : end) {
    numbers.push_back(static_cast<uint32_t>(std::strtoul(text, &end, 10)));
    if (end == text) return {};
  }
  return numbers;
}

bool Parse(int argc, char** argv, Args* args) {
  EngineOptions& e = args->engine;
  e.max_num_batched_tokens = 2048;
  e.policy = "resident";
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag[0] != '-') {
      e.model = flag;
      continue;
    }
    if (flag == "--dummy") {
      e.dummy_weights = true;
      continue;
    }
    if (i + 1 >= argc) return false;
    const char* value = argv[++i];
    const uint64_t number = std::strtoull(value, nullptr, 10);
    const auto small = static_cast<uint32_t>(number);
    if (flag == "--device") {
      e.device = std::strcmp(value, "cuda") == 0 ? DeviceKind::kCuda : DeviceKind::kCpu;
    } else if (flag == "--backing") {
      e.backing = std::strcmp(value, "peer") == 0 ? BackingChoice::kPeer : BackingChoice::kHost;
    } else if (flag == "--budget") {
      e.hbm_budget = number;
    } else if (flag == "--batch") {
      args->batch = small;
    } else if (flag == "--context") {
      args->context = small;
    } else if (flag == "--steps") {
      args->steps = small;
    } else if (flag == "--ring") {
      e.ring_slots = small;
    } else if (flag == "--placement") {
      if (std::strcmp(value, "in_place") == 0) {
        args->placement = Placement::kInPlace;
      } else if (std::strcmp(value, "stripe") != 0) {
        return false;
      }
    } else if (flag == "--transition") {
      args->transition = small;
    } else if (flag == "--tokens") {
      e.max_num_batched_tokens = small;
    } else if (flag == "--granules") {
      args->granules = Numbers(value);
    } else {
      return false;
    }
  }
  if (args->transition > 0) args->granules = {0, args->transition, 0};
  e.max_num_seqs = args->batch;
  e.max_model_len = args->context + args->steps * static_cast<uint32_t>(args->granules.size()) + 64;
  return !e.model.empty() && args->batch > 0 && args->steps > 4 && !args->granules.empty();
}

double Percentile(std::vector<double> v, double p) {
  std::sort(v.begin(), v.end());
  return v.empty()
             ? 0
             : v[std::min(v.size() - 1, static_cast<size_t>(p * static_cast<double>(v.size())))];
}

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
Status Transition(Engine& engine, const Args& args, FixedPolicy& policy, uint32_t granules,
                  StepTimes* steady) {
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
    WEIR_TRY(engine.Step());
    (void)engine.TakeOutputs();
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

Status RunTransitions(Engine& engine, const Args& args) {
  EngineCore& core = engine.core();
  FixedPolicy home(FixedConfig{.granules_per_layer = 0});
  FixedPolicy away(FixedConfig{.granules_per_layer = args.transition, .placement = args.placement});
  core.SetPolicy(home);
  StepTimes steady;
  for (uint32_t i = 0; i < args.steps; ++i) {
    const size_t before = core.step_records().size();
    const TimeNs idle_before = core.stats().idle_ns;
    const auto begin = std::chrono::steady_clock::now();
    WEIR_TRY(engine.Step());
    (void)engine.TakeOutputs();
    if (core.step_records().size() == before || i < 3) continue;
    steady.device_ms.push_back(static_cast<double>(core.step_records().back().step_ns +
                                                   core.stats().idle_ns - idle_before) *
                               1e-6);
    steady.apart_ms.push_back(
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
            .count());
  }
  for (const uint32_t granules : {args.transition, 0U}) {
    const Status moved = Transition(engine, args, granules == 0 ? home : away, granules, &steady);
    if (!core.last_border_error().ok()) {
      std::printf("  last refusal: %s\n", core.last_border_error().ToString().c_str());
    }
    WEIR_TRY(moved);
  }
  return OkStatus();
}

Status Run(const Args& args) {
  std::unique_ptr<Engine> engine = WEIR_TRY(Engine::Open(args.engine));
  EngineCore& core = engine->core();
  const StartupTimes& t = engine->info().startup;
  std::printf(
      "%s, granule %.0f MiB, link %.1f GB/s, ready in %.1f s (%.1f memory, %.1f weights, "
      "%.1f kernels, %.1f calibration)\n",
      engine->info().device.c_str(), static_cast<double>(engine->info().granule_bytes) / (1 << 20),
      core.memory().link_bytes_per_ns(), t.memory + t.weights + t.kernels + t.calibration, t.memory,
      t.weights, t.kernels, t.calibration);
  std::mt19937 random(1);
  for (uint32_t i = 0; i < args.batch; ++i) {
    GenerationRequest request;
    request.prompt_tokens.resize(args.context);
    for (int32_t& token : request.prompt_tokens) {
      token = static_cast<int32_t>(random() % engine->model().vocab_size);
    }
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    WEIR_TRY(engine->Submit(std::move(request)));
  }
  // Prefill, until every step decodes the whole batch.
  core.set_keep_step_records(true);
  while (core.step_records().empty() || core.step_records().back().rows != args.batch ||
         core.step_records().back().running != args.batch) {
    if (!WEIR_TRY(engine->Step())) return BadState("the batch ended before it decoded together");
    (void)engine->TakeOutputs();
  }
  std::printf("batch %u, context %u\n", args.batch, args.context);
  if (args.transition > 0) return RunTransitions(*engine, args);
  std::printf("%9s %9s %9s %9s %9s %9s %9s %8s %8s %9s\n", "granules", "GiB/step", "p50 ms",
              "p99 ms", "stall ms", "faults", "GB/s", "move ms", "freed G", "first ms");
  std::vector<std::unique_ptr<FixedPolicy>> policies;
  double first_row_ms = 0;
  for (const uint32_t granules : args.granules) {
    policies.push_back(std::make_unique<FixedPolicy>(
        FixedConfig{.granules_per_layer = granules, .placement = args.placement}));
    core.SetPolicy(*policies.back());
    const TimeNs border_before = core.stats().border_ns;
    const size_t first = core.step_records().size();
    for (int i = 0; i < 3; ++i) {  // the move, and the steps that were under way
      WEIR_TRY(engine->Step());
    }
    const WeightPagerStats before = core.memory().weights().stats();
    const size_t begin = core.step_records().size();
    for (uint32_t i = 0; i + 3 < args.steps; ++i) {
      WEIR_TRY(engine->Step());
      (void)engine->TakeOutputs();
    }
    const WeightPagerStats& after = core.memory().weights().stats();
    std::vector<double> ms;
    double stall = 0;
    for (size_t i = begin; i < core.step_records().size(); ++i) {
      ms.push_back(static_cast<double>(core.step_records()[i].step_ns) * 1e-6);
      stall += static_cast<double>(core.step_records()[i].stall_ns) * 1e-6;
    }
    double worst_first = 0;
    for (size_t i = first; i < begin; ++i) {
      worst_first =
          std::max(worst_first, static_cast<double>(core.step_records()[i].step_ns) * 1e-6);
    }
    const double n = static_cast<double>(ms.size());
    const double bytes = static_cast<double>(after.bytes_copied - before.bytes_copied) / n;
    const double p50 = Percentile(ms, 0.5);
    std::printf("%9u %9.3f %9.3f %9.3f %9.4f %9lu %9.1f %8.1f %8.2f %9.2f\n", granules,
                bytes / (1 << 30), p50, Percentile(ms, 0.99), stall / n,
                after.faults - before.faults, bytes / (p50 * 1e6),
                static_cast<double>(core.stats().border_ns - border_before) * 1e-6,
                static_cast<double>(core.memory().weights().plan().freed_granules()) *
                    static_cast<double>(engine->info().granule_bytes) / (1 << 30),
                worst_first);
    if (first_row_ms == 0) first_row_ms = p50;
    if (args.placement == Placement::kInPlace) {
      const EvictionPlan& plan = core.memory().weights().plan();
      const double read = static_cast<double>(plan.evicted_granules()) *
                          static_cast<double>(engine->info().granule_bytes);
      const StepCost link{.link_bytes_per_ns = core.memory().link_bytes_per_ns()};
      std::printf("  %s; %.3f GiB a step, predicted p50 %.3f ms\n", plan.ToString().c_str(),
                  read / (1 << 30), first_row_ms + link.InPlaceNs(args.batch, read) * 1e-6);
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

}  // namespace
}  // namespace weir

int main(int argc, char** argv) {
  weir::Args args;
  if (!weir::Parse(argc, argv, &args)) {
    std::fprintf(
        stderr,
        "usage: weir_border_bench MODEL [--dummy] [--device cuda|cpu] [--backing peer|host] "
        "[--budget BYTES] [--batch N] [--context N] [--steps N] [--tokens N] "
        "[--granules 0,2,4] [--ring N] [--transition K] [--placement stripe|in_place]\n");
    return 2;
  }
  const weir::Status status = weir::Run(args);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
