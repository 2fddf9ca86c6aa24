// weir bench latency: one fixed batch, again and again; its prefill and its decode steps.
#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include "engine/cli/bench_commands.h"
#include "engine/cli/bench_metrics.h"
#include "engine/cli/bench_report.h"
#include "engine/cli/bench_session.h"
#include "engine/cli/model_sizes.h"
#include "engine/cli/signals.h"
#include "engine/cli/size_text.h"

namespace weir::cli {
namespace {

using Json = nlohmann::ordered_json;
using Prefixes = BenchSession::Prefixes;

// Room beside the batch itself, in KV blocks of a sequence.
constexpr uint64_t kSpareBlocks = 2;

// Represents the measurements of all iterations.
struct Samples {
  std::vector<double> prefill_ms;   // from the start until every sequence has its first token
  std::vector<double> latency_ms;   // from the start to the last token
  std::vector<double> step_ms;      // steps in which every sequence decodes
  std::vector<double> interval_ms;  // from the start of one of them to that of the next
  std::vector<double> host_us;      // of the engine's thread, for each but the first in a row
  BenchSummary last;                // of the last iteration
  uint64_t failed = 0, other_length = 0, preemptions = 0, border_moves = 0;
  uint64_t streamed_bytes = 0, gate_arrivals = 0, gate_faults = 0;
  TimeNs stall_ns = 0, compute_ns = 0, wall_ns = 0;
  uint64_t iterations = 0;
  CoreStats core;    // of device time, summed
  BenchRun trouble;  // the first iteration that failed
};

// A batch that does not fit into the scheduler's limits as they are: they grow, unless the user
// chose them.
Status RaiseLimits(const Config& config, uint32_t batch_size, EngineOptions* engine) {
  struct Limit {
    const char* key;
    uint32_t* value;
  };
  for (const Limit& limit : {Limit{"max_num_seqs", &engine->max_num_seqs},
                             Limit{"max_num_batched_tokens", &engine->max_num_batched_tokens}}) {
    if (*limit.value >= batch_size) continue;
    if (!config.IsDefault(*FindOption("scheduler", limit.key))) {
      return InvalidArgument(std::string("scheduler.") + limit.key + " is " +
                             std::to_string(*limit.value) + ", but --batch-size " +
                             std::to_string(batch_size) +
                             " decodes in one step only if it is at least that");
    }
    *limit.value = batch_size;
  }
  return OkStatus();
}

// Represents the benchmark being done.
class LatencyBench {
 public:
  LatencyBench(const Config& config, const LatencyOptions& options)
      : config_(config),
        o_(options),
        input_len_(options.context != 0 ? options.context : options.input_len),
        iterations_(options.num_iters.value_or(options.context != 0 ? 3 : 30)),
        warmups_(options.num_iters_warmup.value_or(options.context != 0 ? 1 : 10)),
        session_("latency", config, options.output) {}

  Status Prepare() {
    EngineOptions& engine = session_.settings().engine;
    WEIR_TRY(RaiseLimits(config_, o_.batch_size, &engine));
    if (o_.context != 0 && o_.batch_size > 1 && !engine.enable_prefix_caching) {
      return InvalidArgument(
          "--context takes the prompts of a batch from the prefix cache; leave "
          "--enable-prefix-caching on, or use --batch-size 1");
    }
    WEIR_TRY(session_.ReadModel());
    bench::WorkloadOptions workload;
    workload.num_prompts = o_.batch_size;
    workload.input_len = input_len_;
    workload.output_len = o_.output_len;
    workload.seed = o_.seed;
    WEIR_TRY(session_.MakeRequests(workload));
    if (session_.workload().clipped > 0) {
      return InvalidArgument(std::to_string(input_len_) + " prompt tokens and --output-len " +
                             std::to_string(o_.output_len) +
                             " are more than the context takes; see --max-model-len");
    }
    WEIR_TRY(MakeRoom(&engine));
    return session_.OpenEngine();
  }

  Status Run() {
    if (o_.context != 0) WEIR_TRY(FillCache());
    for (uint32_t i = 0; i < warmups_ && !Interrupted(); ++i) WEIR_TRY(Iterate());
    for (uint32_t i = 0; i < iterations_ && !Interrupted(); ++i) Add(WEIR_TRY(Iterate()));
    if (!Interrupted()) WEIR_TRY(session_.CheckIntegrity());
    return session_.Report(Table(), OptionsJson(), ResultsJson());
  }

  bool passed() const { return s_.failed == 0 && s_.other_length == 0; }

 private:
  // KV for the whole batch, unless the user said how much there is.
  Status MakeRoom(EngineOptions* engine) const {
    if (engine->hbm_budget != 0 || engine->kv_cache_bytes != 0) return OkStatus();
    const ModelSizes sizes = WEIR_TRY(MeasureModel(*engine));
    const uint64_t tokens = uint64_t{input_len_} + o_.output_len;
    const uint64_t blocks = (tokens + kBlockTokens - 1) / kBlockTokens + kSpareBlocks;
    const uint64_t least = std::min<uint64_t>(sizes.max_model_len, 512) / kBlockTokens + 1;
    engine->kv_cache_bytes = std::max(o_.batch_size * blocks, least) * sizes.kv_block_bytes;
    return OkStatus();
  }

  // The prompts, computed once and left in the prefix cache.
  Status FillCache() {
    std::vector<bench::WorkloadRequest> requests = session_.workload().requests;
    for (bench::WorkloadRequest& r : requests) r.output_len = 1;
    const BenchRun run = WEIR_TRY(session_.Run(requests, Prefixes::kFresh));
    s_.prefill_ms.push_back(static_cast<double>(run.wall_ns) / 1e6);
    NoteTrouble(run);
    return OkStatus();
  }

  Result<BenchRun> Iterate() {
    return session_.Run(session_.workload().requests,
                        o_.context != 0 ? Prefixes::kOfTheLastRun : Prefixes::kFresh);
  }

  void NoteTrouble(const BenchRun& run) {
    const BenchSummary summary = SummariseBench(run);
    if (summary.Passed() && !run.cancelled) return;
    if (s_.failed + s_.other_length == 0) s_.trouble = run;
    s_.failed += summary.failed;
    s_.other_length += summary.other_length;
  }

  void Add(const BenchRun& run) {
    NoteTrouble(run);
    if (run.cancelled) return;
    const TimeNs first_tokens = run.FirstTokens();
    if (o_.context == 0 && first_tokens > run.start_ns) {
      s_.prefill_ms.push_back(static_cast<double>(first_tokens - run.start_ns) / 1e6);
    }
    s_.latency_ms.push_back(static_cast<double>(run.wall_ns) / 1e6);
    AddDecodeSteps(run, first_tokens);
    s_.preemptions += run.preemptions;
    s_.border_moves += run.core.border_moves;
    s_.streamed_bytes += run.pager.bytes_copied;
    s_.gate_arrivals += run.pager.gate_arrivals;
    s_.gate_faults += run.pager.faults;
    s_.stall_ns += run.pager.stall_ns;
    s_.compute_ns += run.core.compute_ns;
    s_.core.queued_steps += run.core.queued_steps;
    s_.core.queued_ns += run.core.queued_ns;
    s_.core.idle_ns += run.core.idle_ns;
    s_.wall_ns += run.wall_ns;
    ++s_.iterations;
    s_.last = SummariseBench(run);
  }

  // Once every first token was reported, a step of batch_size rows is one token of each sequence.
  void AddDecodeSteps(const BenchRun& run, TimeNs first_tokens) {
    const StepRecord* previous = nullptr;
    for (const StepRecord& r : run.steps) {
      if (r.start_ns < first_tokens || r.rows != o_.batch_size) {
        previous = nullptr;
        continue;
      }
      s_.step_ms.push_back(static_cast<double>(r.step_ns) / 1e6);
      if (previous != nullptr) {
        s_.interval_ms.push_back(static_cast<double>(r.start_ns - previous->start_ns) / 1e6);
        s_.host_us.push_back(static_cast<double>(r.host_ns) / 1e3);
      }
      previous = &r;
    }
  }

  double DecodeTokensPerSecond() const {
    const Distribution d = DistributionOf(s_.interval_ms.empty() ? s_.step_ms : s_.interval_ms);
    return d.mean > 0 ? o_.batch_size / d.mean * 1e3 : 0;
  }
  double PrefillTokensPerSecond() const {
    const Distribution d = DistributionOf(s_.prefill_ms);
    return d.p50 > 0 ? static_cast<double>(o_.batch_size) * input_len_ / d.p50 * 1e3 : 0;
  }
  double HostSeconds() const {
    return s_.wall_ns > s_.compute_ns ? static_cast<double>(s_.wall_ns - s_.compute_ns) / 1e9 : 0;
  }

  std::string Table() const {
    ReportLines out(kBenchLabelWidth);
    out.Row("batch", std::to_string(o_.batch_size) + " sequences, " + Grouped(input_len_) +
                         " prompt tokens, " + Grouped(o_.output_len) + " generated; " +
                         std::to_string(s_.iterations) + " iterations");
    out.Row("steps in which all decode", Grouped(s_.step_ms.size()));
    DistributionRows(out);
    out.Gap();
    out.Row("decode tokens/s", Fixed(DecodeTokensPerSecond(), 1));
    out.Row(o_.context != 0 ? "prefill tokens/s (computed once)" : "prefill tokens/s",
            Fixed(PrefillTokensPerSecond(), 1));
    out.Row("preemptions / border moves",
            Grouped(s_.preemptions) + " / " + Grouped(s_.border_moves));
    out.Row("weights streamed", HumanSize(s_.streamed_bytes));
    out.Row("gates passed / faults", Grouped(s_.gate_arrivals) + " / " + Grouped(s_.gate_faults));
    out.Row("stalled in gates, s", Fixed(static_cast<double>(s_.stall_ns) / 1e9, 3));
    if (s_.core.queued_steps > 0) {
      out.Row("device idle between queued steps", IdleText(s_.core));
    }
    out.Row("host time outside compute",
            Fixed(HostSeconds(), 3) + " s of " + Fixed(static_cast<double>(s_.wall_ns) / 1e9, 3));
    if (s_.step_ms.empty()) {
      out.Text(
          "no step in which every sequence decodes: raise --output-len or "
          "--max-num-batched-tokens, give more memory, or use --context");
    }
    TroubleRows(out, s_.trouble, SummariseBench(s_.trouble));
    return out.Take();
  }
  void DistributionRows(ReportLines& out) const {
    out.Gap();
    DistributionHead(out);
    DistributionRow(out, "prefill, ms", DistributionOf(s_.prefill_ms), 2);
    DistributionRow(out, "decode step, ms", DistributionOf(s_.step_ms), 3);
    DistributionRow(out, "decode step to the next, ms", DistributionOf(s_.interval_ms), 3);
    if (s_.core.queued_steps > 0) {
      DistributionRow(out, "host time of a decode step, us", DistributionOf(s_.host_us), 1);
    }
    DistributionRow(out, "whole batch, ms", DistributionOf(s_.latency_ms), 1);
  }

  Json OptionsJson() const {
    return {{"batch_size", o_.batch_size}, {"input_len", input_len_},
            {"output_len", o_.output_len}, {"context", o_.context},
            {"num_iters", iterations_},    {"num_iters_warmup", warmups_}};
  }

  Json ResultsJson() const {
    return {{"iterations", s_.iterations},
            {"failed", s_.failed},
            {"other_length", s_.other_length},
            {"prefill_ms", DistributionJson(DistributionOf(s_.prefill_ms))},
            {"decode_step_ms", DistributionJson(DistributionOf(s_.step_ms))},
            {"decode_interval_ms", DistributionJson(DistributionOf(s_.interval_ms))},
            {"latency_ms", DistributionJson(DistributionOf(s_.latency_ms))},
            {"decode_tokens_per_s", DecodeTokensPerSecond()},
            {"prefill_tokens_per_s", PrefillTokensPerSecond()},
            {"output_tokens", s_.last.output_tokens},
            {"prompt_tokens_cached", s_.last.cached_tokens},
            {"preemptions", s_.preemptions},
            {"border_moves", s_.border_moves},
            {"streamed_bytes", s_.streamed_bytes},
            {"gate_arrivals", s_.gate_arrivals},
            {"gate_faults", s_.gate_faults},
            {"stall_s", static_cast<double>(s_.stall_ns) / 1e9},
            {"host_outside_compute_s", HostSeconds()},
            {"decode_step_host_us", DistributionJson(DistributionOf(s_.host_us))},
            {"latencies_ms", s_.latency_ms}};
  }

  const Config& config_;
  const LatencyOptions& o_;
  uint32_t input_len_;
  uint32_t iterations_;
  uint32_t warmups_;
  BenchSession session_;
  Samples s_;
};

}  // namespace

int LatencyCommand(const Config& config, const LatencyOptions& options) {
  LatencyBench bench(config, options);
  const Status prepared = bench.Prepare();
  const Status run = prepared.ok() ? bench.Run() : OkStatus();
  return BenchExitCode(prepared, run, bench.passed());
}

}  // namespace weir::cli
