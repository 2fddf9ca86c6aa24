// Tokens per second of the engine: prefill, single stream, batches. The counterpart of
// bench/llama_cpp/bench.py: own prompt for every sequence, logits of every decoded row.
//
//   weir_engine_bench MODEL [--threads N] [--prompt P] [--gen G] [--reps R] [--batches 1,4,16,64]
//
// Prints a table and one JSON object; rates are [min, median, max] over the repetitions, beside the
// bound: bytes read a step over the read bandwidth measured in the same run, flops over the FMA
// peak.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "bench/kernels/machine_ceilings.h"
#include "engine/cpu_compute.h"
#include "engine/engine.h"
#include "kernels/cpu/isa.h"

namespace weir {
namespace {

struct Args {
  std::string model;
  uint32_t threads = 2;
  uint32_t prompt = 128;
  uint32_t gen = 32;
  uint32_t reps = 5;
  std::vector<uint32_t> batches{1, 4, 16, 64};
};

bool Parse(int argc, char** argv, Args* args) {
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag[0] != '-') {
      args->model = flag;
      continue;
    }
    if (i + 1 >= argc) return false;
    const char* value = argv[++i];
    const auto number = static_cast<uint32_t>(std::strtoul(value, nullptr, 10));
    if (flag == "--threads")
      args->threads = number;
    else if (flag == "--prompt")
      args->prompt = number;
    else if (flag == "--gen")
      args->gen = number;
    else if (flag == "--reps")
      args->reps = number;
    else if (flag == "--batches") {
      args->batches.clear();
      for (char* at = std::strtok(const_cast<char*>(value), ","); at != nullptr;
           at = std::strtok(nullptr, ",")) {
        args->batches.push_back(static_cast<uint32_t>(std::strtoul(at, nullptr, 10)));
      }
    } else {
      return false;
    }
  }
  return !args->model.empty() && args->threads > 0 && args->reps > 0 && !args->batches.empty();
}

struct Rate {
  double least = 0, median = 0, most = 0;
};

Rate RateOf(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  return {samples.front(), samples[samples.size() / 2], samples.back()};
}

struct Row {
  uint32_t batch = 0;
  Rate prefill, decode;
  double bound = 0;  // decode tokens/s
};

class Bench {
 public:
  Bench(Engine& engine, const Args& args) : engine_(engine), args_(args) {}

  Result<Row> Run(uint32_t batch) {
    std::vector<double> prefill, decode;
    for (uint32_t r = 0; r <= args_.reps; ++r) {  // the first is a warm-up
      WEIR_TRY(Once(batch, r == 0 ? nullptr : &prefill, r == 0 ? nullptr : &decode));
    }
    return Row{batch, RateOf(prefill), RateOf(decode), 0};
  }

 private:
  Status Once(uint32_t batch, std::vector<double>* prefill, std::vector<double>* decode) {
    const auto vocab = static_cast<uint64_t>(engine_.model().vocab_size);
    for (uint32_t b = 0; b < batch; ++b) {
      GenerationRequest request;
      for (uint32_t i = 0; i < args_.prompt; ++i) {
        seed_ = seed_ * 6364136223846793005ULL + 1442695040888963407ULL;
        request.prompt_tokens.push_back(static_cast<int32_t>((seed_ >> 33) % vocab));
      }
      request.sampling.temperature = 0;
      request.sampling.max_tokens = args_.gen + 1;
      request.sampling.ignore_eos = true;
      WEIR_TRY(engine_.Submit(std::move(request)));
    }
    // Prefill ends with the step that gives the last sequence its first token.
    uint32_t started = 0;
    uint64_t tokens = 0;
    const double begin = bench::NowSeconds();
    double all_started = 0;
    uint64_t tokens_at_start = 0;
    for (;;) {
      const bool more = WEIR_TRY(engine_.Step());
      for (const GenerationOutput& out : engine_.TakeOutputs()) {
        if (!out.error.ok()) return out.error;
        tokens += out.tokens.size();
        if (first_seen_.insert(out.id).second) ++started;
      }
      if (started == batch && all_started == 0) {
        all_started = bench::NowSeconds();
        tokens_at_start = tokens;
      }
      if (!more) break;
    }
    const double end = bench::NowSeconds();
    if (prefill == nullptr) return OkStatus();
    // Sequences that finish their prompt early decode meanwhile: those tokens count as prefill
    // work.
    prefill->push_back(static_cast<double>(batch * args_.prompt) / (all_started - begin));
    decode->push_back(static_cast<double>(tokens - tokens_at_start) / (end - all_started));
    return OkStatus();
  }

  Engine& engine_;
  const Args& args_;
  uint64_t seed_ = 1;
  std::set<RequestId> first_seen_;
};

int Main(int argc, char** argv) {
  Args args;
  if (!Parse(argc, argv, &args)) {
    std::fprintf(stderr,
                 "usage: weir_engine_bench MODEL [--threads N] [--prompt P] [--gen G] [--reps R] "
                 "[--batches 1,4,16,64]\n");
    return 2;
  }
  EngineOptions options;
  options.device = DeviceKind::kCpu;
  options.model = args.model;
  options.threads = args.threads;
  options.policy = "resident";
  options.max_num_seqs = *std::max_element(args.batches.begin(), args.batches.end());
  options.max_model_len = args.prompt + args.gen + 1;
  options.enable_prefix_caching = false;
  const auto engine = Engine::Open(options);
  if (!engine.ok()) {
    std::fprintf(stderr, "%s\n", engine.status().ToString().c_str());
    return 1;
  }
  Engine& e = **engine;
  cpu::ThreadPool pool(static_cast<int>(args.threads));
  const double bandwidth = bench::ReadBandwidth(pool);
  const double flops = bench::FmaPeak(pool);
  std::printf("model %s, %s; read bandwidth %.1f GB/s, FMA peak %.0f GFLOP/s\n", args.model.c_str(),
              e.info().device.c_str(), bandwidth / 1e9, flops / 1e9);
  std::printf("prompt %u, generated %u, %u repetitions; tokens/s as median [min, max]\n",
              args.prompt, args.gen, args.reps);
  std::printf("%6s  %28s  %28s  %9s\n", "batch", "prefill", "decode", "of bound");
  std::string json = "{\"model\":\"" + args.model + "\",\"device\":\"" + e.info().device +
                     "\",\"read_gb_s\":" + std::to_string(bandwidth / 1e9) +
                     ",\"fma_gflop_s\":" + std::to_string(flops / 1e9) + ",\"rows\":[";
  // A decoded token multiplies with every weight once; a step reads them once for the whole batch,
  // and each sequence's KV.
  const double weights = static_cast<double>(e.info().weight_bytes);
  const double kv_per_token = static_cast<double>(e.info().kv_block_bytes) / kBlockTokens;
  for (const uint32_t batch : args.batches) {
    Result<Row> row = Bench(e, args).Run(batch);
    if (!row.ok()) {
      std::fprintf(stderr, "%s\n", row.status().ToString().c_str());
      return 1;
    }
    const double context = args.prompt + args.gen / 2.0;
    const double memory_s = (weights + batch * context * kv_per_token) / bandwidth;
    const double compute_s = batch * weights / flops;  // 2 flops a weight, 2 bytes a weight
    row->bound = batch / std::max(memory_s, compute_s);
    std::printf("%6u  %10.1f [%6.1f, %7.1f]  %10.1f [%6.1f, %7.1f]  %8.0f%%\n", batch,
                row->prefill.median, row->prefill.least, row->prefill.most, row->decode.median,
                row->decode.least, row->decode.most, 100 * row->decode.median / row->bound);
    if (batch != args.batches.front()) json += ",";
    json += "{\"batch\":" + std::to_string(batch) + ",\"prefill\":[" +
            std::to_string(row->prefill.least) + "," + std::to_string(row->prefill.median) + "," +
            std::to_string(row->prefill.most) + "],\"decode\":[" +
            std::to_string(row->decode.least) + "," + std::to_string(row->decode.median) + "," +
            std::to_string(row->decode.most) + "],\"bound\":" + std::to_string(row->bound) + "}";
  }
  std::printf("%s]}\n", json.c_str());
  return 0;
}

}  // namespace
}  // namespace weir

int main(int argc, char** argv) {
  return weir::Main(argc, argv);
}
