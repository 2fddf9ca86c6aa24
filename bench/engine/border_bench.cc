// What a border costs: steps of one load with more and more of the weights away, in one engine, and
// the moves between the borders.
//
//   weir_border_bench MODEL [--dummy] [--device cuda] [--backing peer] [--budget BYTES]
//                     [--batch N] [--context N] [--steps N] [--granules 0,2,4,...] [--tokens N]
//                     [--shared N] [--prefill N] [--ring N] [--transition K]
//                     [--placement stripe|in_place] [--granule MIB]
//
// Each row: granules away from each layer, bytes away, the mean context of a sequence while it was
// measured, the step's time (median, p99), the time it waited in gates, what the link delivered,
// and how long the move to this border took. The prediction beside it: the first row's step, which
// should be of 0 granules, longer by what writing the copies into the ring takes of the memory's
// time, but no shorter than the link needs (docs/policies.md). A copied byte is taken to cost what
// a byte costs that the first row's steps read, of weights and KV.
//
// The load: --batch sequences that decode behind --context tokens. For every row the same prompts
// begin anew behind the prefix cache, so that contexts are the same in all. The first --shared
// tokens of all prompts are the same: they are computed once and take KV once, and a large batch is
// soon there; but then a step reads part of its KV from the GPU's L2 cache. With --prefill N,
// prompts of --context tokens, N tokens of them in every step.
//
// With --placement in_place the granules are read where their backing copy is: nothing is streamed,
// and the prediction is the step that StepCost::InPlaceNs makes of the first one.
//
// With --transition K, instead: all at home, then K granules a layer away, then home again; what
// every step of the move took, on the device and as the caller sees it, beside --steps steady steps
// before and after it at the same contexts, and how many parts and milliseconds the move took.
#include "bench/engine/border_bench.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

namespace weir::bench {

double Percentile(std::vector<double> v, double p) {
  std::sort(v.begin(), v.end());
  return v.empty()
             ? 0
             : v[std::min(v.size() - 1, static_cast<size_t>(p * static_cast<double>(v.size())))];
}

namespace {

std::vector<uint32_t> Numbers(const char* text) {
  std::vector<uint32_t> numbers;
  for (char* end = nullptr; *text != 0; text = *end == ',' ? end + 1 : end) {
    numbers.push_back(static_cast<uint32_t>(std::strtoul(text, &end, 10)));
    if (end == text) return {};
  }
  return numbers;
}

bool Parse(int argc, char** argv, BorderArgs* args) {
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
      args->load.batch = small;
    } else if (flag == "--context") {
      args->load.context = small;
    } else if (flag == "--shared") {
      args->load.shared = small;
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
    } else if (flag == "--granule") {
      e.granule = uint64_t{small} << 20;
    } else if (flag == "--prefill") {
      args->load.prefill = small;
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
  SteadyLoadOptions& load = args->load;
  if (load.prefill > 0) {
    e.max_num_batched_tokens = load.prefill;
    load.batch = 4 * (load.prefill / std::max(1U, load.context) + 1);
  }
  e.max_num_seqs = load.batch;
  // Contexts begin anew for every row, which then has a move and its steps.
  e.max_model_len = load.context + kSettlingSteps + args->steps + kMoveSteps;
  return !e.model.empty() && load.batch > 0 && load.context > load.shared && args->steps > 4 &&
         !args->granules.empty();
}

// Whether KV holds the batch that decodes where fewest weights are away.
Status CheckFits(Memory& memory, const BorderArgs& args) {
  if (args.load.prefill > 0) return OkStatus();
  const uint64_t shared = args.load.shared / kBlockTokens;
  const uint64_t tokens = args.load.context - shared * kBlockTokens + kSettlingSteps + args.steps;
  const uint64_t need = shared + args.load.batch * CeilDiv(tokens, kBlockTokens);
  const EvictionTarget least{
      .placement = args.placement,
      .granules_per_layer = *std::min_element(args.granules.begin(), args.granules.end()),
      .ring_slots = args.engine.ring_slots};
  const uint64_t held = memory.KvBlocksAt(least).value_or(0);
  if (need <= held) return OkStatus();
  return InvalidArgument(std::to_string(args.load.batch) + " sequences of " +
                         std::to_string(args.load.context) + " tokens and " +
                         std::to_string(args.steps) + " steps need " + std::to_string(need) +
                         " KV blocks, with fewest weights away there are " + std::to_string(held) +
                         "; accepted are fewer or shorter ones, or more --shared tokens");
}

Status Run(const BorderArgs& args) {
  std::unique_ptr<Engine> engine = WEIR_TRY(Engine::Open(args.engine));
  EngineCore& core = engine->core();
  const StartupTimes& t = engine->info().startup;
  std::printf(
      "%s, granule %.0f MiB, link %.1f GB/s, ready in %.1f s (%.1f memory, %.1f weights, "
      "%.1f kernels, %.1f calibration)\n",
      engine->info().device.c_str(), static_cast<double>(engine->info().granule_bytes) / (1 << 20),
      core.memory().link_bytes_per_ns(), t.memory + t.weights + t.kernels + t.calibration, t.memory,
      t.weights, t.kernels, t.calibration);
  WEIR_TRY(CheckFits(core.memory(), args));
  core.set_keep_step_records(true);
  SteadyLoad load(*engine, args.load);
  WEIR_TRY(load.Begin());
  if (args.load.prefill > 0) {
    std::printf("%u tokens a step of prompts of %u\n", args.load.prefill, args.load.context);
  } else {
    std::printf("batch %u, context %u", args.load.batch, args.load.context);
    if (args.load.shared > 0) std::printf(", of which %u shared", args.load.shared);
    std::printf("\n");
  }
  return args.transition > 0 ? RunTransitions(*engine, args, load) : RunRows(*engine, args, load);
}

}  // namespace
}  // namespace weir::bench

int main(int argc, char** argv) {
  weir::bench::BorderArgs args;
  if (!weir::bench::Parse(argc, argv, &args)) {
    std::fprintf(
        stderr,
        "usage: weir_border_bench MODEL [--dummy] [--device cuda|cpu] [--backing peer|host] "
        "[--budget BYTES] [--batch N] [--context N] [--shared N] [--steps N] [--tokens N] "
        "[--prefill N] [--granules 0,2,4] [--ring N] [--transition K] "
        "[--placement stripe|in_place] [--granule MIB]\n"
        "accepted: a batch and a context of 1 or more, of which fewer tokens are shared; 5 or more "
        "steps; at least one number of granules\n");
    return 2;
  }
  const weir::Status status = weir::bench::Run(args);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
