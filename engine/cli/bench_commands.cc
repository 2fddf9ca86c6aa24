#include "engine/cli/bench_commands.h"

#include <cstdio>
#include <limits>
#include <type_traits>

#include <CLI/CLI.hpp>

#include "engine/cli/command_line.h"
#include "engine/cli/logging.h"
#include "engine/cli/size_text.h"

namespace weir::cli {
namespace {

constexpr uint32_t k32 = std::numeric_limits<uint32_t>::max();
constexpr uint64_t k64 = std::numeric_limits<uint64_t>::max();
constexpr uint32_t kMostTokens = 1U << 27U;
constexpr uint64_t kMostRequests = 10'000'000;
// A batch of this many sequences is above what any engine option takes.
constexpr uint32_t kMostBatch = 65'536;

// Flags whose text our own parsers read: their errors say what is accepted. |names| as CLI11 takes
// them; errors show the first.
template <typename Parse>
void Flag(CLI::App* app, const std::string& names, const std::string& accepted,
          const std::string& help, Parse parse) {
  const std::string first = names.substr(0, names.find(','));
  app->add_option_function<std::string>(
         names,
         [first, parse](const std::string& text) {
           const Status status = parse(text);
           if (!status.ok()) throw CLI::ValidationError(first, status.message());
         },
         help)
      ->type_name("(" + accepted + ")");
}

// |value|: a number, or an optional one.
template <typename T>
void CountFlag(CLI::App* app, const std::string& names, T* value, uint64_t least, uint64_t most,
               const std::string& help) {
  using Number = std::conditional_t<std::is_same_v<T, uint64_t>, uint64_t, uint32_t>;
  const std::string range = most == k64 ? "a whole number from " + std::to_string(least)
                                        : std::to_string(least) + " to " + std::to_string(most);
  Flag(app, names, range, help, [value, least, most](const std::string& text) -> Status {
    *value = static_cast<Number>(WEIR_TRY(ParseCount(text, least, most)));
    return OkStatus();
  });
}

void RealFlag(CLI::App* app, const std::string& names, double* value, double least, double most,
              const std::string& help) {
  Flag(app, names, RealText(least) + " to " + RealText(most), help,
       [value, least, most](const std::string& text) -> Status {
         *value = WEIR_TRY(ParseReal(text, least, most));
         return OkStatus();
       });
}

void AddOutput(CLI::App* app, BenchOutput* output) {
  app->add_option("--json", output->json, "write everything measured")->type_name("FILE");
  app->add_option("--save-requests", output->save_requests,
                  "write the requests, a JSON object a line, for other programs to run")
      ->type_name("FILE");
  app->add_flag("--quiet", output->quiet, "no progress, the report alone");
}

// What requests are made of. Names as vllm bench has them, with its long forms as aliases.
void AddWorkload(CLI::App* app, bench::WorkloadOptions* o) {
  Flag(app, "--dataset-name",
       "random, sharegpt_like, prefix_repetition, long_context, azure or mooncake",
       "what the requests are like [random]", [o](const std::string& text) -> Status {
         o->dataset = WEIR_TRY(bench::ParseDataset(text));
         return OkStatus();
       });
  app->add_option("--dataset-path", o->path, "trace file of azure (CSV) or mooncake (JSON Lines)")
      ->type_name("FILE");
  CountFlag(app, "--num-prompts", &o->num_prompts, 1, kMostRequests,
            "requests [200, or all of a trace file]");
  CountFlag(app, "--input-len,--random-input-len", &o->input_len, 1, kMostTokens,
            "prompt tokens, or their mean [512; sharegpt_like 161]");
  CountFlag(app, "--output-len,--random-output-len", &o->output_len, 1, kMostTokens,
            "tokens to generate, or their mean [128; sharegpt_like 338]");
  RealFlag(app, "--random-range-ratio", &o->range_ratio, 0, 0.999999,
           "random: lengths r are spread evenly over n (1 - r) to n (1 + r) [0]");
  CountFlag(app, "--num-prefixes,--prefix-repetition-num-prefixes", &o->num_prefixes, 1, k32,
            "prefix_repetition: shared beginnings, in turn [10]");
  CountFlag(app, "--prefix-len,--prefix-repetition-prefix-len", &o->prefix_len, 0, kMostTokens,
            "prefix_repetition: their tokens [256]");
  CountFlag(app, "--suffix-len,--prefix-repetition-suffix-len", &o->suffix_len, 0, kMostTokens,
            "prefix_repetition: tokens of each prompt after it [256]");
  RealFlag(app, "--long-share", &o->long_share, 0, 1,
           "long_context: share of requests with long prompts [0.1]");
  CountFlag(app, "--long-input-len", &o->long_input_len, 1, kMostTokens,
            "long_context: mean tokens of those prompts [8192]");
  Flag(app, "--seed", "a whole number from 0", "of lengths, tokens and arrivals [0]",
       [o](const std::string& text) -> Status {
         o->seed = WEIR_TRY(ParseCount(text, 0, k64));
         o->arrivals.seed = o->seed;
         return OkStatus();
       });
}

void AddArrivals(CLI::App* app, bench::WorkloadOptions* o) {
  Flag(app, "--request-rate", "requests a second, or inf",
       "inf: all at once, or at the times of the trace file [inf]",
       [o](const std::string& text) -> Status {
         if (text == "inf") {
           o->arrivals.request_rate = 0;
           return OkStatus();
         }
         const Result<double> rate = ParseReal(text, 1e-6, 1e9);
         if (!rate.ok()) return rate.status().WithContext("neither inf nor a rate");
         o->arrivals.request_rate = *rate;
         return OkStatus();
       });
  RealFlag(app, "--burstiness", &o->arrivals.burstiness, 1e-3, 1e6,
           "of the gaps: 1 is Poisson, less comes in bursts, more is evener [1]");
  Flag(app, "--ramp-up-strategy", "linear or exponential",
       "the rate goes from --ramp-up-start-rps to --ramp-up-end-rps instead",
       [o](const std::string& text) -> Status {
         if (text == "linear") {
           o->arrivals.ramp_up = bench::RampUp::kLinear;
         } else if (text == "exponential") {
           o->arrivals.ramp_up = bench::RampUp::kExponential;
         } else {
           return InvalidArgument("\"" + OneLine(text, 40) +
                                  "\" is not accepted; give linear or exponential");
         }
         return OkStatus();
       });
  RealFlag(app, "--ramp-up-start-rps", &o->arrivals.ramp_start, 1e-6, 1e9,
           "requests a second at the start");
  RealFlag(app, "--ramp-up-end-rps", &o->arrivals.ramp_end, 1e-6, 1e9, "and at the end");
  RealFlag(app, "--time-scale", &o->time_scale, 1e-6, 1e6,
           "of a trace file's times: 2 is half as fast [1]");
}

}  // namespace

void BenchCommands::AddTo(CLI::App& app) {
  CLI::App* const bench = app.add_subcommand("bench", "measure throughput, latency or serving");
  bench->require_subcommand(1);
  AddThroughput(*bench);
  AddLatency(*bench);
  AddServeTrace(*bench);
  bench->footer(
      "Examples:\n"
      "  weir bench throughput -m model.gguf --num-prompts 100\n"
      "  weir bench latency -m bench/models/llama-3.2-1b.json --dummy-weights\n"
      "  weir bench serve-trace -m model.gguf --request-rate 4 --goodput ttft:500 tpot:50\n"
      "'weir bench COMMAND --help' has each command's options.");
}

void BenchCommands::AddThroughput(CLI::App& bench) {
  throughput_app_ = bench.add_subcommand("throughput", "all requests at once, as fast as it goes");
  AddWorkload(throughput_app_, &throughput_.workload);
  CountFlag(throughput_app_, "--warmups,--num-warmups", &throughput_.warmups, 0, kMostRequests,
            "requests that run before the clock starts; they leave no prefix to be found [0]");
  AddOutput(throughput_app_, &throughput_.output);
  throughput_flags_.AddTo(*throughput_app_, false, {"server", "sampling"});
  throughput_app_->footer(
      "Examples:\n"
      "  weir bench throughput -m model.gguf --num-prompts 100 --input-len 512 --output-len 128\n"
      "  weir bench throughput -m bench/models/llama-3.1-8b.json --dummy-weights --num-prompts "
      "1000 --json throughput.json\n"
      "  weir bench throughput -m model.gguf --dataset-name azure --dataset-path conv.csv\n"
      "Greedy, and never ends early: every request generates exactly its output length.\n"
      "Exit code: 0 when every request did.");
}

void BenchCommands::AddLatency(CLI::App& bench) {
  latency_app_ = bench.add_subcommand("latency", "one fixed batch: prefill and decode steps");
  CountFlag(latency_app_, "--batch-size", &latency_.batch_size, 1, kMostBatch,
            "sequences at once [8]");
  CountFlag(latency_app_, "--input-len", &latency_.input_len, 1, kMostTokens,
            "prompt tokens of each [32]");
  CountFlag(latency_app_, "--output-len", &latency_.output_len, 2, kMostTokens,
            "tokens each generates [128]");
  CountFlag(latency_app_, "--context", &latency_.context, 0, kMostTokens,
            "measure decode steps behind a prompt of so many tokens, which is computed once and "
            "then taken from the prefix cache; 0: off [0]");
  CountFlag(latency_app_, "--num-iters", &latency_.num_iters, 1, k32,
            "times the batch runs [30; with --context 3]");
  CountFlag(latency_app_, "--num-iters-warmup", &latency_.num_iters_warmup, 0, k32,
            "times it runs before that, not counted [10; with --context 1]");
  CountFlag(latency_app_, "--seed", &latency_.seed, 0, k64, "of the tokens [0]");
  AddOutput(latency_app_, &latency_.output);
  latency_flags_.AddTo(*latency_app_, false, {"server", "sampling"});
  latency_app_->footer(
      "Examples:\n"
      "  weir bench latency -m model.gguf --batch-size 1 --input-len 512 --output-len 64\n"
      "  weir bench latency -m bench/models/llama-3.1-8b.json --dummy-weights --batch-size 16 "
      "--context 8192\n"
      "Without --hbm-budget and --kv-cache there is room for the whole batch.\n"
      "Exit code: 0 when every sequence generated its output length.");
}

void BenchCommands::AddServeTrace(CLI::App& bench) {
  serve_trace_app_ =
      bench.add_subcommand("serve-trace", "requests arrive over time: latencies and goodput");
  AddWorkload(serve_trace_app_, &serve_trace_.workload);
  AddArrivals(serve_trace_app_, &serve_trace_.workload);
  serve_trace_app_
      ->add_option("--goodput", serve_trace_.goodput,
                   "count requests within all of these milliseconds: ttft:500 tpot:50 e2el:9000")
      ->type_name("KEY:MS");
  CountFlag(serve_trace_app_, "--warmups,--num-warmups", &serve_trace_.warmups, 0, kMostRequests,
            "requests that run before the clock starts; they leave no prefix to be found [0]");
  AddOutput(serve_trace_app_, &serve_trace_.output);
  serve_trace_flags_.AddTo(*serve_trace_app_, false, {"server", "sampling"});
  serve_trace_app_->footer(
      "Examples:\n"
      "  weir bench serve-trace -m model.gguf --dataset-name sharegpt_like --request-rate 4 "
      "--goodput ttft:500 tpot:50\n"
      "  weir bench serve-trace -m model.gguf --dataset-name mooncake --dataset-path "
      "conversation.jsonl --num-prompts 500 --time-scale 4 --max-model-len 8192\n"
      "  weir bench serve-trace -m model.gguf --ramp-up-strategy linear --ramp-up-start-rps 1 "
      "--ramp-up-end-rps 8\n"
      "No HTTP and no tokenizer in the way: what the engine does alone. Times count from the "
      "moment a request is due.\n"
      "Exit code: 0 when every request generated its output length.");
}

bool BenchCommands::parsed() const {
  return throughput_app_->parsed() || latency_app_->parsed() || serve_trace_app_->parsed();
}

int BenchCommands::Run() {
  const TableFlags& flags = throughput_app_->parsed() ? throughput_flags_
                            : latency_app_->parsed()  ? latency_flags_
                                                      : serve_trace_flags_;
  Config config;
  const Status status = flags.Apply(&config);
  if (!status.ok()) return Fail(status, kExitUsage);
  if (flags.print()) {
    std::fputs(config.ToToml().c_str(), stdout);
    return kExitOk;
  }
  StartLog(config.settings());
  if (throughput_app_->parsed()) return ThroughputCommand(config, throughput_);
  if (latency_app_->parsed()) return LatencyCommand(config, latency_);
  return ServeTraceCommand(config, serve_trace_);
}

}  // namespace weir::cli
