// What a border costs: decode steps of one batch with more and more of the weights away, in one
// engine, and the moves between the borders.
//
//   weir_border_bench MODEL [--dummy] [--device cuda] [--backing peer] [--budget BYTES]
//                     [--batch N] [--context N] [--steps N] [--granules 0,2,4,...] [--tokens N]
//                     [--ring N]
//
// Each row: granules away from each layer, bytes streamed a step, the step's time (median, p99),
// the time it waited in gates, what the link delivered, and how long the move to this border took.
// The prediction beside it: the step with nothing away, longer by the bytes written into the ring
// over the memory's write rate, but no shorter than the link needs (docs/policies.md).
#include <algorithm>
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
  std::vector<uint32_t> granules{0, 1, 2, 4};
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
    } else if (flag == "--tokens") {
      e.max_num_batched_tokens = small;
    } else if (flag == "--granules") {
      args->granules = Numbers(value);
    } else {
      return false;
    }
  }
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
  std::printf("%9s %9s %9s %9s %9s %9s %9s %8s %8s %9s\n", "granules", "GiB/step", "p50 ms",
              "p99 ms", "stall ms", "faults", "GB/s", "move ms", "freed G", "first ms");
  std::vector<std::unique_ptr<FixedPolicy>> policies;
  for (const uint32_t granules : args.granules) {
    policies.push_back(std::make_unique<FixedPolicy>(FixedConfig{.granules_per_layer = granules}));
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
        "[--granules 0,2,4] [--ring N]\n");
    return 2;
  }
  const weir::Status status = weir::Run(args);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
