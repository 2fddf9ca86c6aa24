// Tokens per second while requests always wait: policies against each other in the same memory.
//
//   weir_overload_bench MODEL [--dummy] [--device cuda] [--backing peer] [--ratios 0.73,0.8,0.9]
//       [--policies "resident;fixed{granules_per_layer=2};tide"] [--dataset sharegpt_like]
//       [--seqs N] [--tokens N] [--warm S] [--measure S] [--algorithms FILE] [--json FILE]
//
// For each ratio W/C the budget is weights / ratio plus the step buffers. The queue is kept full:
// for each request that ends another one comes, the same ones in the same order for every policy.
// After |warm| seconds the tokens generated in |measure| seconds are counted.
//
// The bound beside the gain (docs/policies.md): a step that reads all of C once takes C/(B - L)
// with E = L T bytes streamed in it, and holds C - W + E of KV; resident it takes C/B and holds
// C - W. B is given with --hbm (GB/s), L is what the engine measured.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include <nlohmann/json.hpp>

#include "engine/backend.h"
#include "engine/bench/workload.h"
#include "engine/engine.h"
#include "engine/open_model.h"
#include "policy/registry.h"

namespace weir {
namespace {

using Json = nlohmann::ordered_json;

struct Args {
  EngineOptions engine;
  std::vector<double> ratios{0.8};
  std::vector<std::string> policies{"resident", "tide"};
  std::string dataset = "sharegpt_like";
  double warm_s = 4, measure_s = 6;
  double hbm_gb_s = 4000;
  std::string json;
};

std::vector<std::string> Split(const std::string& text, char at) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    const bool inside =
        std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(i), '{') !=
        std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(i), '}');
    if (i < text.size() && (text[i] != at || inside)) continue;
    if (i > begin) parts.push_back(text.substr(begin, i - begin));
    begin = i + 1;
  }
  return parts;
}

bool Parse(int argc, char** argv, Args* args) {
  EngineOptions& e = args->engine;
  e.max_num_seqs = 256;
  e.max_num_batched_tokens = 2048;
  e.max_model_len = 4096;
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
    const std::string value = argv[++i];
    if (flag == "--device") {
      e.device = value == "cuda" ? DeviceKind::kCuda : DeviceKind::kCpu;
    } else if (flag == "--backing") {
      e.backing = value == "peer" ? BackingChoice::kPeer : BackingChoice::kHost;
    } else if (flag == "--ratios") {
      args->ratios.clear();
      for (const std::string& r : Split(value, ',')) args->ratios.push_back(std::atof(r.c_str()));
    } else if (flag == "--policies") {
      args->policies = Split(value, ';');
    } else if (flag == "--dataset") {
      args->dataset = value;
    } else if (flag == "--seqs") {
      e.max_num_seqs = static_cast<uint32_t>(std::atoi(value.c_str()));
    } else if (flag == "--tokens") {
      e.max_num_batched_tokens = static_cast<uint32_t>(std::atoi(value.c_str()));
    } else if (flag == "--warm") {
      args->warm_s = std::atof(value.c_str());
    } else if (flag == "--measure") {
      args->measure_s = std::atof(value.c_str());
    } else if (flag == "--hbm") {
      args->hbm_gb_s = std::atof(value.c_str());
    } else if (flag == "--algorithms") {
      e.gemm_algorithm_file = value;
    } else if (flag == "--json") {
      args->json = value;
    } else {
      return false;
    }
  }
  return !e.model.empty() && !args->ratios.empty() && !args->policies.empty();
}

struct Measured {
  double tokens_per_s = 0, prompt_tokens_per_s = 0, running = 0, step_ms = 0, step_p99_ms = 0;
  double stall_share = 0, away_gib = 0, kv_blocks = 0, border_ms = 0, streamed_gb_s = 0;
  uint64_t preemptions = 0, border_moves = 0;
};

// One policy on an idle engine; it is idle again afterwards.
class Runner {
 public:
  Runner(Engine& engine, const bench::Workload& workload, uint64_t salt)
      : engine_(engine), workload_(workload), salt_(salt) {}

  Result<Measured> Run(double warm_s, double measure_s) {
    EngineCore& core = engine_.core();
    core.set_keep_step_records(true);
    WEIR_TRY(StepFor(warm_s));
    const CoreStats core_before = core.stats();
    const WeightPagerStats pager_before = core.memory().weights().stats();
    const uint64_t preemptions = core.scheduler_stats().preemptions;
    const size_t first = core.step_records().size();
    const TimeNs begin = engine_.driver().Now();
    const uint64_t tokens = tokens_;
    WEIR_TRY(StepFor(measure_s));
    const double seconds = static_cast<double>(engine_.driver().Now() - begin) * 1e-9;
    const CoreStats& now = core.stats();
    const WeightPagerStats& pager = core.memory().weights().stats();
    Measured m;
    m.tokens_per_s = static_cast<double>(tokens_ - tokens) / seconds;
    m.prompt_tokens_per_s =
        static_cast<double>(now.prompt_tokens_computed - core_before.prompt_tokens_computed) /
        seconds;
    m.preemptions = core.scheduler_stats().preemptions - preemptions;
    m.border_moves = now.border_moves - core_before.border_moves;
    m.border_ms = static_cast<double>(now.border_ns - core_before.border_ns) * 1e-6;
    m.streamed_gb_s =
        static_cast<double>(pager.bytes_copied - pager_before.bytes_copied) / seconds * 1e-9;
    std::vector<double> ms;
    double time = 0;
    for (size_t i = first; i < core.step_records().size(); ++i) {
      const StepRecord& r = core.step_records()[i];
      ms.push_back(static_cast<double>(r.step_ns) * 1e-6);
      time += ms.back();
      m.running += r.running * ms.back();
      m.away_gib += r.evicted_granules * ms.back();
      m.kv_blocks += r.kv_capacity * ms.back();
    }
    if (ms.empty()) return BadState("no step ended while it was measured");
    m.running /= time;
    m.away_gib *= static_cast<double>(engine_.info().granule_bytes) / (1 << 30) / time;
    m.kv_blocks /= time;
    m.step_ms = time / static_cast<double>(ms.size());
    std::sort(ms.begin(), ms.end());
    m.step_p99_ms = ms[ms.size() * 99 / 100];
    m.stall_share = static_cast<double>(pager.stall_ns - pager_before.stall_ns) * 1e-6 / time;
    for (const RequestId id : live_) (void)engine_.Cancel(id);
    while (WEIR_TRY(engine_.Step())) (void)engine_.TakeOutputs();
    return m;
  }

 private:
  static constexpr uint32_t kQueue = 64;

  Status StepFor(double seconds) {
    const TimeNs end = engine_.driver().Now() + static_cast<TimeNs>(seconds * 1e9);
    while (engine_.driver().Now() < end) {
      while (engine_.core().scheduler().waiting() < kQueue) WEIR_TRY(Submit());
      WEIR_TRY(engine_.Step());
      for (const GenerationOutput& out : engine_.TakeOutputs()) {
        tokens_ += out.tokens.size();
        if (!out.error.ok()) return out.error;
        if (out.finished) std::erase(live_, out.id);
      }
    }
    return OkStatus();
  }

  Status Submit() {
    const bench::WorkloadRequest& wanted = workload_.requests[next_++ % workload_.requests.size()];
    GenerationRequest request;
    request.prompt_tokens = wanted.prompt;
    request.cache_salt = salt_ + next_ / workload_.requests.size();
    request.sampling.max_tokens = wanted.output_len;
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    live_.push_back(WEIR_TRY(engine_.Submit(std::move(request))));
    return OkStatus();
  }

  Engine& engine_;
  const bench::Workload& workload_;
  uint64_t salt_;
  size_t next_ = 0;
  uint64_t tokens_ = 0;
  std::vector<RequestId> live_;
};

double Bound(double capacity, double weights, double hbm, double link) {
  const double step = capacity / (hbm - link);
  const double kv = std::min(capacity - weights + link * step, capacity);
  return (kv / step) / ((capacity - weights) * hbm / capacity);
}

Status RunRatio(const Args& args, double ratio, Json* rows) {
  EngineOptions options = args.engine;
  const Checkpoint checkpoint = WEIR_TRY(OpenCheckpoint(options));
  MemoryOptions sizes;
  {
    const auto backend = WEIR_TRY(MakeBackend(options, checkpoint.config(),
                                              {.max_rows = options.max_num_batched_tokens,
                                               .max_sequences = options.max_num_seqs,
                                               .max_context = options.max_model_len,
                                               .vocab_size = checkpoint.config().vocab_size}));
    backend->Describe(&sizes);
  }
  const auto weights = static_cast<double>(sizes.weights.region_bytes);
  const double capacity = weights / ratio;
  options.hbm_budget = static_cast<uint64_t>(capacity) + sizes.scratch_bytes;
  options.policy = "resident";
  std::unique_ptr<Engine> engine = WEIR_TRY(Engine::Open(options));
  const double link = engine->core().memory().link_bytes_per_ns();
  bench::WorkloadOptions w;
  w.dataset = WEIR_TRY(bench::ParseDataset(args.dataset));
  w.num_prompts = 4000;
  w.vocab_size = engine->model().vocab_size;
  w.max_model_len = options.max_model_len;
  const bench::Workload workload = WEIR_TRY(bench::MakeWorkload(w));
  const double bound = Bound(capacity, weights, args.hbm_gb_s, link);
  std::printf(
      "\nW/C %.2f: %.2f GiB = weights %.2f + KV %.2f (and %.2f of step buffers), link %.0f "
      "GB/s, %s\nbound: %.2fx resident\n",
      ratio, capacity / (1 << 30), weights / (1 << 30), (capacity - weights) / (1 << 30),
      static_cast<double>(sizes.scratch_bytes) / (1 << 30), link, engine->info().device.c_str(),
      bound);
  std::printf("%-30s %9s %6s %8s %8s %8s %7s %8s %8s %7s %7s %6s\n", "policy", "tokens/s", "gain",
              "running", "step ms", "p99 ms", "stall%", "away GiB", "KV blk", "GB/s", "preempt",
              "moves");
  const std::unique_ptr<Policy> home = WEIR_TRY(MakePolicy("resident"));
  double resident = 0;
  uint64_t salt = 1;
  for (const std::string& name : args.policies) {
    const std::unique_ptr<Policy> policy = WEIR_TRY(MakePolicy(name));
    engine->core().SetPolicy(*policy);
    const Measured m = WEIR_TRY(Runner(*engine, workload, salt).Run(args.warm_s, args.measure_s));
    salt += 1000;
    if (name == "resident") resident = m.tokens_per_s;
    std::printf("%-30s %9.0f %6.3f %8.1f %8.3f %8.3f %7.2f %8.2f %8.0f %7.1f %7lu %6lu\n",
                name.c_str(), m.tokens_per_s, resident > 0 ? m.tokens_per_s / resident : 0,
                m.running, m.step_ms, m.step_p99_ms, m.stall_share * 100, m.away_gib, m.kv_blocks,
                m.streamed_gb_s, m.preemptions, m.border_moves);
    std::fflush(stdout);
    rows->push_back({{"ratio", ratio},
                     {"policy", name},
                     {"bound", bound},
                     {"tokens_per_s", m.tokens_per_s},
                     {"prompt_tokens_per_s", m.prompt_tokens_per_s},
                     {"running", m.running},
                     {"step_ms", m.step_ms},
                     {"step_p99_ms", m.step_p99_ms},
                     {"stall_share", m.stall_share},
                     {"away_gib", m.away_gib},
                     {"kv_blocks", m.kv_blocks},
                     {"streamed_gb_s", m.streamed_gb_s},
                     {"preemptions", m.preemptions},
                     {"border_moves", m.border_moves},
                     {"border_ms", m.border_ms}});
    // Weights come home before the next policy begins.
    engine->core().SetPolicy(*home);
    for (int i = 0; i < 3; ++i) WEIR_TRY(engine->Step());
    if (engine->core().memory().view().evicted_granules != 0) {
      return BadState("weights did not come home: " +
                      engine->core().last_border_error().ToString());
    }
  }
  return OkStatus();
}

Status Run(const Args& args) {
  Json rows = Json::array();
  for (const double ratio : args.ratios) WEIR_TRY(RunRatio(args, ratio, &rows));
  if (args.json.empty()) return OkStatus();
  std::ofstream out(args.json);
  out << Json{{"model", args.engine.model}, {"dataset", args.dataset}, {"rows", rows}}.dump(1);
  return out.flush() ? OkStatus() : IoError("cannot write " + args.json);
}

}  // namespace
}  // namespace weir

int main(int argc, char** argv) {
  weir::Args args;
  if (!weir::Parse(argc, argv, &args)) {
    std::fprintf(
        stderr,
        "usage: weir_overload_bench MODEL [--dummy] [--device cuda|cpu] [--backing peer|host] "
        "[--ratios 0.73,0.8] [--policies \"resident;tide\"] [--dataset NAME] [--seqs N] "
        "[--tokens N] [--warm S] [--measure S] [--hbm GB/s] [--algorithms FILE] [--json FILE]\n");
    return 2;
  }
  const weir::Status status = weir::Run(args);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
