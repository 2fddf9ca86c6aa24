// weir_cuda_kernel_bench CONFIG [options]: where the time of a step goes on a GPU.
//
//   ceilings  what the card reads, copies, multiplies and launches, in this run
//   profile   each kernel of a step alone, in a graph that replays it over the layers' weights and
//             KV, so that they come from device memory as in a step
//   step      the whole step in one graph, with and without early launches
//   energy    the same where the GPU runs without a pause: what kernels and step take at the clocks
//             that its power limit leaves, and the energy of each
//   gemm      the chosen algorithm of every bucket of rows
//
// Times are medians over replays. --help lists the options.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "bench/kernels/cuda_ceilings.h"
#include "bench/kernels/cuda_energy.h"
#include "bench/kernels/cuda_kernel_bench_options.h"
#include "bench/kernels/cuda_step.h"
#include "bench/kernels/cuda_timing.h"
#include "engine/cuda_graph.h"
#include "kernels/cuda/fill.h"

namespace weir::bench {
namespace {

using Json = nlohmann::ordered_json;
using cuda::Overlap;

struct DeviceDeleter {
  void operator()(std::byte* memory) const { (void)cudaFree(memory); }
};
using DeviceMemory = std::unique_ptr<std::byte, DeviceDeleter>;

struct Bench {
  KernelBenchOptions options;
  ModelConfig config;
  cudaStream_t stream = nullptr;
  DeviceMemory arena;
  uint64_t arena_bytes = 0;
  CudaCeilings ceilings;
  std::unique_ptr<CudaStep> step;
  std::optional<EnergyCounter> energy;  // none: not to be measured
  Json json;

  // Seconds that the card needs for so many bytes, for so many operations.
  double ReadSeconds(double bytes) const { return bytes / ceilings.read; }
  double FlopSeconds(double flops) const { return flops / ceilings.flops; }
  double Bound(double bytes, double flops) const {
    return std::max(ReadSeconds(bytes), FlopSeconds(flops));
  }
};

Result<ModelConfig> LoadConfig(const std::string& path) {
  for (const std::string& file : {path, path + "/config.json"}) {
    std::ifstream in(file);
    std::stringstream text;
    if (in && text << in.rdbuf()) {
      Result<ModelConfig> config = ParseModelConfig(text.str());
      if (!config.ok()) return config.status().WithContext(file);
      return config;
    }
  }
  return NotFound("neither " + path + " nor " + path + "/config.json can be read");
}

Status Open(Bench* b) {
  cudaDeviceProp properties = {};
  WEIR_TRY(FromCuda(cudaSetDevice(b->options.device), "cudaSetDevice"));
  WEIR_TRY(FromCuda(cudaGetDeviceProperties(&properties, b->options.device), "the device"));
  WEIR_TRY(FromCuda(cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking), "a stream"));
  size_t free = 0, total = 0;
  WEIR_TRY(FromCuda(cudaMemGetInfo(&free, &total), "free memory"));
  constexpr uint64_t kSpare = 2 * kGiB;  // libraries, graphs, inputs
  const auto budget = static_cast<uint64_t>(b->options.budget_gib * double{kGiB});
  b->arena_bytes = AlignDown(std::min(budget, free - std::min<uint64_t>(free, kSpare)), 2 * kMiB);
  void* arena = nullptr;
  WEIR_TRY(FromCuda(cudaMalloc(&arena, b->arena_bytes), "device memory"));
  b->arena.reset(static_cast<std::byte*>(arena));
  WEIR_TRY(ToStatus(cuda::FillNormal({.dst = static_cast<cuda::Bf16*>(arena),
                                      .count = static_cast<int64_t>(b->arena_bytes / 2),
                                      .seed = 1},
                                     {.stream = b->stream})));
  std::printf("%s, %d processors, L2 %.0f MiB; %.1f GiB of %.1f GiB used\n", properties.name,
              properties.multiProcessorCount, properties.l2CacheSize / double{kMiB},
              static_cast<double>(b->arena_bytes) / double{kGiB},
              static_cast<double>(total) / double{kGiB});
  b->json["gpu"] = properties.name;
  b->json["l2_bytes"] = properties.l2CacheSize;
  b->json["model"] = b->options.config;
  b->json["kv_order"] =
      b->options.model.kv_order == cuda::KvOrder::kTokenHead ? "token-head" : "head-token";
  b->json["overlap"] = b->options.overlap == Overlap::kNone ? "none" : "prologue";
  b->json["split_k"] = b->options.model.split_k;
  b->json["decode_attention"] = b->options.model.own_attention ? "auto" : "flashinfer";
  b->json["skinny"] = b->options.model.skinny != cuda::SkinnyUse::kNever;
  return OkStatus();
}

Status RunCeilings(Bench* b) {
  b->ceilings = WEIR_TRY(
      MeasureCudaCeilings(b->arena.get(), b->arena_bytes, b->config, b->options.rounds, b->stream));
  std::printf("\nceilings: median [least, most]\n");
  for (const CudaCeilings::Line& l : b->ceilings.lines) {
    std::printf("  %-46s %9.2f [%.2f, %.2f] %s\n", l.what.c_str(), l.median, l.least, l.most,
                l.unit.c_str());
    b->json["ceilings"].push_back({{"what", l.what},
                                   {"unit", l.unit},
                                   {"median", l.median},
                                   {"least", l.least},
                                   {"most", l.most}});
  }
  std::printf("  taken: read %.0f GB/s, matrix %.0f TFLOP/s\n", b->ceilings.read * 1e-9,
              b->ceilings.flops * 1e-12);
  b->json["read_bytes_per_s"] = b->ceilings.read;
  b->json["flops_per_s"] = b->ceilings.flops;
  b->json["launch_gap_us"] = b->ceilings.launch_gap * 1e6;
  return OkStatus();
}

Status MakeStep(Bench* b) {
  const KernelBenchOptions& o = b->options;
  ComputeLimits limits{
      .max_rows = 512, .max_sequences = 1, .max_context = 512, .vocab_size = b->config.vocab_size};
  for (const StepSpec& s : o.specs) {
    limits.max_sequences = std::max(limits.max_sequences, s.sequences);
    limits.max_rows = std::max(limits.max_rows, s.sequences * s.rows);
    limits.max_context = std::max(limits.max_context, s.longest());
  }
  if (o.gemm) limits.max_sequences = std::max(limits.max_sequences, o.gemm_rows);
  limits.max_rows = std::max(limits.max_rows, limits.max_sequences);
  b->step = WEIR_TRY(CudaStep::Create(b->config, limits, o.specs, o.model, b->arena.get(),
                                      b->arena_bytes, b->stream));
  std::printf("\n%s: %u layers, %u with weights of their own\n", o.config.c_str(),
              b->step->layers(), b->step->weight_layers());
  b->json["layers"] = b->step->layers();
  b->json["weight_layers"] = b->step->weight_layers();
  return OkStatus();
}

// --- A step, kernel by kernel --------------------------------------------------------------------

uint32_t CallsPerStep(const Bench& b, const StepKernel& k) {
  switch (k.part) {
    case StepPart::kLayer: return b.step->layers();
    case StepPart::kAlternative:
    case StepPart::kLayerAlternative: return 0;
    default: return 1;
  }
}

Status EnqueueStep(const Bench& b, const std::vector<StepKernel>& kernels, uint32_t index,
                   Overlap overlap) {
  const uint32_t set = index % b.step->sets();
  const auto run = [&](StepPart part, uint32_t layer) -> Status {
    for (const StepKernel& k : kernels) {
      if (k.part == part) WEIR_TRY(k.enqueue(layer, set, overlap).WithContext(k.name));
    }
    return OkStatus();
  };
  WEIR_TRY(run(StepPart::kBegin, 0));
  for (uint32_t l = 0; l < b.step->layers(); ++l) WEIR_TRY(run(StepPart::kLayer, l));
  return run(StepPart::kEnd, 0);
}

// A kernel alone, call after call.
struct KernelCalls {
  TimingOptions options;
  std::function<Status(uint32_t)> enqueue;
};

KernelCalls CallsOf(const Bench& b, const StepKernel& k) {
  const bool of_layer = k.part == StepPart::kLayer || k.part == StepPart::kLayerAlternative;
  const uint32_t layers = of_layer ? b.step->layers() : 1;
  return {{.rounds = b.options.rounds,
           .rotation = layers * k.copies,
           .least_calls = std::min(layers, 4U)},
          [&k, layers, overlap = b.options.overlap](uint32_t i) {
            return k.enqueue(i % layers, i / layers % k.copies, overlap);
          }};
}

void PrintRow(const Bench& b, const StepKernel& k, uint32_t calls, const Timing& t) {
  const double bound = b.Bound(k.bound_bytes(), k.flops);
  const bool by_flops = b.FlopSeconds(k.flops) > b.ReadSeconds(k.bound_bytes());
  std::printf("%-14s %5u %10.2f %10.1f %9.2f %9.2f %9.2f %9.2f %8.0f %8.1f %6.1f %s\n",
              k.name.c_str(), calls, t.median * 1e6, t.median * 1e6 * calls, k.weight_bytes * 1e-6,
              k.kv_bytes * 1e-6, k.activation_bytes * 1e-6, k.flops * 1e-9,
              k.bytes() / t.median * 1e-9, k.flops / t.median * 1e-12, bound / t.median * 100,
              by_flops ? "matrix" : "read");
}

struct StepTotals {
  double seconds = 0, weight_bytes = 0, kv_bytes = 0, flops = 0;
  double bounds = 0;  // sum over the kernels, each by what binds it
  uint32_t launches = 0;
};

Result<StepTotals> ProfileKernels(Bench* b, const std::vector<StepKernel>& kernels, Json* json) {
  StepTotals total;
  std::printf("%-14s %5s %10s %10s %9s %9s %9s %9s %8s %8s %6s\n", "kernel", "calls", "us/call",
              "us/step", "weight MB", "KV MB", "act. MB", "GFLOP", "GB/s", "TFLOP/s", "%ceil");
  for (const StepKernel& k : kernels) {
    const KernelCalls alone = CallsOf(*b, k);
    Result<Timing> timed = TimeCalls(b->stream, alone.options, alone.enqueue);
    if (!timed.ok()) return timed.status().WithContext(k.name);
    const Timing t = timed.value();
    const uint32_t calls = CallsPerStep(*b, k);
    PrintRow(*b, k, calls, t);
    total.launches += calls;
    total.seconds += t.median * calls;
    total.weight_bytes += k.weight_bytes * calls;
    total.kv_bytes += k.kv_bytes * calls;
    total.flops += k.flops * calls;
    total.bounds += b->Bound(k.bound_bytes(), k.flops) * calls;
    (*json)["kernels"].push_back({{"name", k.name},
                                  {"calls", calls},
                                  {"us", t.median * 1e6},
                                  {"us_least", t.least * 1e6},
                                  {"us_most", t.most * 1e6},
                                  {"graph_calls", t.calls},
                                  {"weight_bytes", k.weight_bytes},
                                  {"kv_bytes", k.kv_bytes},
                                  {"activation_bytes", k.activation_bytes},
                                  {"flops", k.flops},
                                  {"of_ceiling", b->Bound(k.bound_bytes(), k.flops) / t.median}});
  }
  const double bandwidth = b->ReadSeconds(total.weight_bytes + total.kv_bytes);
  std::printf("sum of %u calls %.1f us (as many empty kernels: %.1f us)\n", total.launches,
              total.seconds * 1e6, total.launches * b->ceilings.launch_gap * 1e6);
  std::printf("bandwidth bound %.1f us (weights %.2f GB, KV %.2f GB): %.1f %% of the sum\n",
              bandwidth * 1e6, total.weight_bytes * 1e-9, total.kv_bytes * 1e-9,
              bandwidth / total.seconds * 100);
  std::printf("matrix bound %.1f us (%.1f GFLOP): %.1f %% of the sum\n",
              b->FlopSeconds(total.flops) * 1e6, total.flops * 1e-9,
              b->FlopSeconds(total.flops) / total.seconds * 100);
  std::printf("sum of each kernel's bound %.1f us: %.1f %% of the sum\n", total.bounds * 1e6,
              total.bounds / total.seconds * 100);
  (*json)["sum_us"] = total.seconds * 1e6;
  (*json)["bandwidth_bound_us"] = bandwidth * 1e6;
  (*json)["matrix_bound_us"] = b->FlopSeconds(total.flops) * 1e6;
  (*json)["bounds_us"] = total.bounds * 1e6;
  return total;
}

Status TimeSteps(Bench* b, const StepSpec& spec, const std::vector<StepKernel>& kernels,
                 const StepTotals* parts, Json* json) {
  for (const Overlap overlap : {Overlap::kNone, Overlap::kPrologue}) {
    const TimingOptions options{.rounds = b->options.rounds, .rotation = 4};
    const Timing t = WEIR_TRY(TimeCalls(
        b->stream, options, [&](uint32_t i) { return EnqueueStep(*b, kernels, i, overlap); }));
    const char* name = overlap == Overlap::kNone ? "none" : "prologue";
    const double tokens = static_cast<double>(spec.sequences) * spec.rows;
    std::printf("whole step, overlap %-8s %10.1f us [%.1f, %.1f], %.0f tokens/s", name,
                t.median * 1e6, t.least * 1e6, t.most * 1e6, tokens / t.median);
    if (parts != nullptr) {
      const double gap = t.median - parts->seconds;
      std::printf("; minus the sum %+.1f us, %+.2f us a call; bandwidth bound %.1f %%", gap * 1e6,
                  gap / parts->launches * 1e6,
                  b->ReadSeconds(parts->weight_bytes + parts->kv_bytes) / t.median * 100);
    }
    std::printf("\n");
    (*json)["step"].push_back({{"overlap", name},
                               {"us", t.median * 1e6},
                               {"us_least", t.least * 1e6},
                               {"us_most", t.most * 1e6},
                               {"tokens_per_s", tokens / t.median}});
  }
  return OkStatus();
}

void PrintEnergy(const char* name, uint32_t calls, double bytes, double flops, const Sustained& s) {
  std::printf("%-14s %5u %10.2f %10.1f %8.0f %9.2f %9.1f %8.0f %8.1f\n", name, calls,
              s.seconds * 1e6, s.seconds * 1e6 * calls, s.joules / s.seconds, s.joules * 1e3,
              s.joules * 1e3 * calls, bytes / s.seconds * 1e-9, flops / s.seconds * 1e-12);
}

Status MeasureEnergy(Bench* b, const std::vector<StepKernel>& kernels, Json* json) {
  const EnergyCounter& counter = *b->energy;
  std::printf("%-14s %5s %10s %10s %8s %9s %9s %8s %8s\n", "without pause", "calls", "us/call",
              "us/step", "W", "mJ/call", "mJ/step", "GB/s", "TFLOP/s");
  double sum = 0;
  for (const StepKernel& k : kernels) {
    const KernelCalls alone = CallsOf(*b, k);
    const Result<Sustained> measured =
        SustainCalls(b->stream, alone.options, counter, alone.enqueue);
    if (!measured.ok()) return measured.status().WithContext(k.name);
    const Sustained& s = measured.value();
    const uint32_t calls = CallsPerStep(*b, k);
    PrintEnergy(k.name.c_str(), calls, k.bytes(), k.flops, s);
    sum += s.joules * calls;
    (*json)["energy"].push_back(
        {{"name", k.name}, {"calls", calls}, {"us", s.seconds * 1e6}, {"mj", s.joules * 1e3}});
  }
  const Sustained step =
      WEIR_TRY(SustainCalls(b->stream, {.rotation = 4}, counter, [&](uint32_t i) {
        return EnqueueStep(*b, kernels, i, Overlap::kPrologue);
      }));
  std::printf("whole step %.1f us, %.0f W, %.1f mJ; its kernels alone %.1f mJ\n",
              step.seconds * 1e6, step.joules / step.seconds, step.joules * 1e3, sum * 1e3);
  (*json)["energy_step"] = {{"us", step.seconds * 1e6}, {"mj", step.joules * 1e3}};
  return OkStatus();
}

Status RunSpec(Bench* b, const StepSpec& spec) {
  WEIR_TRY(b->step->Load(spec));
  std::printf("\n%s: %lld rows, KV of %u layers, %u copies; kernels alone with overlap %s\n",
              spec.Name().c_str(), static_cast<long long>(b->step->rows()), b->step->kv_layers(),
              b->step->sets(), b->options.overlap == Overlap::kNone ? "none" : "prologue");
  Json json{{"spec", spec.Name()},
            {"sequences", spec.sequences},
            {"rows", spec.rows},
            {"context", spec.context},
            {"spread", spec.spread},
            {"padded_rows", b->step->rows()},
            {"kv_layers", b->step->kv_layers()}};
  const std::vector<StepKernel> kernels = b->step->Kernels();
  // Once, so that every kernel that is timed alone finds what a step leaves it.
  WEIR_TRY(EnqueueStep(*b, kernels, 0, Overlap::kNone));
  WEIR_TRY(b->step->CheckSamples());
  StepTotals parts;
  if (b->options.profile) parts = WEIR_TRY(ProfileKernels(b, kernels, &json));
  if (b->options.step) {
    WEIR_TRY(TimeSteps(b, spec, kernels, b->options.profile ? &parts : nullptr, &json));
  }
  if (b->energy) WEIR_TRY(MeasureEnergy(b, kernels, &json));
  b->json["steps"].push_back(std::move(json));
  return OkStatus();
}

// --- Products ------------------------------------------------------------------------------------

struct BucketTime {
  uint32_t m = 0;
  double chosen = 0;  // the planner's own figure
  Timing graph;
};

Result<BucketTime> TimeBucket(Bench* b, size_t product, uint32_t m) {
  CudaStep& step = *b->step;
  const uint32_t layers = product == 4 ? 1 : step.weight_layers();
  cuda::GemmParams p = step.Products(0)[product];
  BucketTime time{.m = m, .chosen = step.gemm().SecondsOf(p.kind, m)};
  const TimingOptions options{.rounds = b->options.rounds,
                              .rotation = layers,
                              .least_calls = std::min(layers, 4U),
                              .warm_seconds = 0.01};
  time.graph = WEIR_TRY(TimeCalls(b->stream, options, [&](uint32_t i) {
    cuda::GemmParams params = step.Products(i % layers)[product];
    params.m = m;
    return ToStatus(step.gemm().Run(params, {.stream = b->stream}));
  }));
  return time;
}

Status RunGemm(Bench* b) {
  constexpr const char* kNames[] = {"qkv", "o", "gate_up", "down", "logits"};
  std::vector<uint32_t> buckets;
  for (const uint32_t m : b->step->decode_buckets()) {
    if (m <= b->options.gemm_rows) buckets.push_back(m);
  }
  for (const uint32_t m : buckets) WEIR_TRY(b->step->PrepareProducts(m, m));
  for (size_t i = 0; i < std::size(kNames); ++i) {
    const cuda::GemmKind kind = b->step->Products(0)[i].kind;
    const double weight_bytes = static_cast<double>(kind.WeightBytes());
    std::vector<BucketTime> times;
    for (const uint32_t m : buckets) times.push_back(WEIR_TRY(TimeBucket(b, i, m)));
    std::printf("\nproduct %s: n %lld, k %lld, weights %.1f MB\n", kNames[i],
                static_cast<long long>(kind.n), static_cast<long long>(kind.k),
                weight_bytes * 1e-6);
    std::printf("%5s %11s %11s %12s %9s %6s\n", "m", "chosen us", "in graph us", "weights GB/s",
                "TFLOP/s", "%ceil");
    double later = times.back().graph.median;  // the fastest bucket of as many rows or more
    std::vector<const char*> remarks(times.size(), "");
    for (size_t t = times.size(); t-- > 0;) {
      if (times[t].graph.median > 1.03 * later) remarks[t] = "slower than a larger bucket";
      later = std::min(later, times[t].graph.median);
    }
    for (size_t t = 0; t < times.size(); ++t) {
      const double seconds = times[t].graph.median;
      const double flops = 2 * static_cast<double>(times[t].m * kind.n * kind.k);
      const double share = b->Bound(weight_bytes, flops) / seconds;
      std::printf("%5u %11.2f %11.2f %12.0f %9.1f %6.1f %s\n", times[t].m, times[t].chosen * 1e6,
                  seconds * 1e6, weight_bytes / seconds * 1e-9, flops / seconds * 1e-12,
                  share * 100, remarks[t]);
      b->json["gemm"].push_back({{"product", kNames[i]},
                                 {"n", kind.n},
                                 {"k", kind.k},
                                 {"m", times[t].m},
                                 {"chosen_us", times[t].chosen * 1e6},
                                 {"us", seconds * 1e6},
                                 {"weight_bytes_per_s", weight_bytes / seconds},
                                 {"of_ceiling", share},
                                 {"remark", remarks[t]}});
    }
  }
  return OkStatus();
}

Status Run(Bench* b) {
  b->config = WEIR_TRY(LoadConfig(b->options.config));
  WEIR_TRY(Open(b));
  WEIR_TRY(RunCeilings(b));
  const KernelBenchOptions& o = b->options;
  if (o.energy) {
    Result<EnergyCounter> counter = EnergyCounter::Open(o.device);
    if (counter.ok()) {
      b->energy = *counter;
    } else {
      std::printf("not measured: %s\n", counter.status().ToString().c_str());
    }
  }
  if (!o.profile && !o.step && !b->energy && !o.gemm) return OkStatus();
  WEIR_TRY(MakeStep(b));
  for (const StepSpec& spec : o.specs) {
    if (o.profile || o.step || b->energy) WEIR_TRY(RunSpec(b, spec).WithContext(spec.Name()));
    std::fflush(stdout);
  }
  return o.gemm ? RunGemm(b) : OkStatus();
}

int Main(const std::vector<std::string>& arguments) {
  if (std::find(arguments.begin(), arguments.end(), "--help") != arguments.end()) {
    std::printf("%s", KernelBenchOptions::Usage().c_str());
    return 0;
  }
  Bench bench;
  Result<KernelBenchOptions> options = KernelBenchOptions::Parse(arguments);
  Status status = options.status();
  if (status.ok()) {
    bench.options = std::move(options).value();
    status = Run(&bench);
  }
  // What was measured before an error is written as well.
  if (!bench.options.json.empty() && !bench.json.is_null()) {
    std::ofstream out(bench.options.json);
    out << bench.json.dump(1) << "\n";
    if (!out && status.ok()) status = IoError("cannot write " + bench.options.json);
  }
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace weir::bench

int main(int argc, char** argv) {
  return weir::bench::Main({argv + 1, argv + argc});
}
