#include "engine/server/metrics.h"

#include <utility>

namespace weir::server {
namespace {

using Type = Exposition::Type;

double Seconds(TimeNs ns) {
  return static_cast<double>(ns) / 1e9;
}

double Span(TimeNs from, TimeNs to) {
  return to > from ? Seconds(to - from) : 0;
}

double Number(uint64_t n) {
  return static_cast<double>(n);
}

// Bounds as vLLM's, so that quantiles of both servers can be compared.
std::vector<double> FirstTokenBounds() {
  return {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5,   0.75,
          1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640.0, 2560};
}
std::vector<double> NextTokenBounds() {
  return {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
          0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
}
std::vector<double> LatencyBounds() {
  return {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
          30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
}
std::vector<double> IterationBounds() {
  return {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
}

// Share of the KV blocks that are in use; weir's capacity changes, so it is of what is mapped now.
double KvUse(const AsyncStats& stats) {
  return stats.blocks.capacity == 0
             ? 0
             : Number(stats.blocks.used) / static_cast<double>(stats.blocks.capacity);
}

}  // namespace

ServerMetrics::Requests::Requests(double max_tokens)
    : iteration_tokens(IterationBounds()),
      prompt_length(OneTwoFive(max_tokens)),
      output_length(OneTwoFive(max_tokens)),
      most_tokens(OneTwoFive(max_tokens)),
      choices({1, 2, 5, 10, 20}),
      computed_tokens(OneTwoFive(max_tokens)),
      first_token(FirstTokenBounds()),
      next_token(NextTokenBounds()),
      per_output_token(NextTokenBounds()),
      latency(LatencyBounds()),
      queue(LatencyBounds()),
      inference(LatencyBounds()),
      prefill(LatencyBounds()),
      decode(LatencyBounds()) {}

ServerMetrics::ServerMetrics(MetricsOptions options)
    : options_(std::move(options)), requests_(options_.max_model_len) {}

void ServerMetrics::OnRejected(StatusCode code) {
  Counter& counter = code == StatusCode::kNoMemory     ? requests_.rejected_full
                     : code == StatusCode::kShouldWait ? requests_.rejected_tenant
                                                       : requests_.rejected_closed;
  counter.Add();
}

void ServerMetrics::OnFirstToken(const RequestTimes& times, uint32_t prompt_tokens,
                                 uint32_t cached_tokens) {
  requests_.prompt_tokens.Add(prompt_tokens);
  requests_.cached_tokens.Add(cached_tokens);
  requests_.generated_tokens.Add();
  requests_.computed_tokens.Observe(prompt_tokens - std::min(prompt_tokens, cached_tokens));
  requests_.first_token.Observe(Span(times.queued_ns, times.first_token_ns));
}

void ServerMetrics::OnNextToken(TimeNs gap_ns) {
  requests_.generated_tokens.Add();
  requests_.next_token.Observe(Seconds(gap_ns));
}

void ServerMetrics::OnIteration(uint64_t tokens) {
  requests_.iteration_tokens.Observe(Number(tokens));
}

void ServerMetrics::OnFinished(const FinishedRequest& r) {
  switch (r.reason) {
    case FinishReason::kStop: requests_.ended_stop.Add(); break;
    case FinishReason::kLength: requests_.ended_length.Add(); break;
    case FinishReason::kCancelled: requests_.ended_abort.Add(); break;
    case FinishReason::kNone:
    case FinishReason::kError: requests_.ended_error.Add(); break;
  }
  requests_.prompt_length.Observe(r.prompt_tokens);
  requests_.output_length.Observe(r.output_tokens);
  requests_.most_tokens.Observe(r.max_tokens == 0 ? options_.max_model_len : r.max_tokens);
  requests_.choices.Observe(1);  // each choice is a request of the engine's
  requests_.latency.Observe(Span(r.times.queued_ns, r.ended_ns));
  if (r.times.scheduled_ns == 0) return;
  requests_.queue.Observe(Span(r.times.queued_ns, r.times.scheduled_ns));
  if (r.times.first_token_ns == 0) return;
  requests_.inference.Observe(Span(r.times.scheduled_ns, r.times.last_token_ns));
  requests_.prefill.Observe(Span(r.times.scheduled_ns, r.times.first_token_ns));
  const double decode = Span(r.times.first_token_ns, r.times.last_token_ns);
  requests_.decode.Observe(decode);
  if (r.output_tokens > 1) requests_.per_output_token.Observe(decode / (r.output_tokens - 1));
}

std::string ServerMetrics::Render(const AsyncStats& stats, const HttpStats& http) const {
  Exposition out({{"model_name", options_.model_name}, {"engine", "0"}});
  RenderRequests(out, "weir_", stats);
  if (options_.compat == MetricsCompat::kVllm) {
    RenderRequests(out, "vllm:", stats);
    RenderOldNames(out, stats);
  }
  RenderMemory(out, stats);
  RenderPager(out, stats);
  RenderServer(out, stats, http);
  std::string text = out.Take();
  Exposition process{Labels()};
  RenderProcess(process);
  return text + process.Take();
}

void ServerMetrics::RenderRequests(Exposition& out, const std::string& prefix,
                                   const AsyncStats& stats) const {
  const auto gauge = [&](const char* name, const char* help, double value) {
    out.Family(prefix + name, Type::kGauge, help);
    out.Sample(value);
  };
  const auto counter = [&](const char* name, const char* help, uint64_t value) {
    out.Family(prefix + name, Type::kCounter, help);
    out.Sample(Number(value));
  };
  const double waiting = Number(uint64_t{stats.queued} + stats.waiting);
  gauge("num_requests_running", "Requests that hold KV blocks.", stats.running);
  gauge("num_requests_waiting", "Requests that wait to run.", waiting);
  out.Family(prefix + "num_requests_waiting_by_reason", Type::kGauge, "Waiting requests by cause.");
  out.Sample({{"reason", "capacity"}}, waiting);
  out.Sample({{"reason", "deferred"}}, 0);
  gauge("kv_cache_usage_perc", "Share of the KV blocks mapped now that are in use, 0 to 1.",
        KvUse(stats));
  counter("prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.",
          stats.prefix_queries);
  counter("prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", stats.prefix_hits);
  counter("num_preemptions_total", "Running requests that gave up their KV.",
          stats.scheduler.preemptions);
  counter("prompt_tokens_total", "Prompt tokens of requests that gave a first token.",
          requests_.prompt_tokens.value());
  counter("prompt_tokens_cached_total", "Those of them that the prefix cache had.",
          requests_.cached_tokens.value());
  counter("generation_tokens_total", "Tokens generated.", requests_.generated_tokens.value());
  out.Family(prefix + "request_success_total", Type::kCounter,
             "Requests that ended, by reason; abort: the client left.");
  out.Sample({{"finished_reason", "stop"}}, Number(requests_.ended_stop.value()));
  out.Sample({{"finished_reason", "length"}}, Number(requests_.ended_length.value()));
  out.Sample({{"finished_reason", "abort"}}, Number(requests_.ended_abort.value()));
  out.Sample({{"finished_reason", "error"}}, Number(requests_.ended_error.value()));
  out.Family(prefix + "admission_rejections_total", Type::kCounter,
             "Requests refused before they were queued, by reason.");
  out.Sample({{"reason", "queue_full"}}, Number(requests_.rejected_full.value()));
  out.Sample({{"reason", "tenant_share"}}, Number(requests_.rejected_tenant.value()));
  out.Sample({{"reason", "not_ready"}}, Number(requests_.rejected_closed.value()));
  out.Family(prefix + "cache_config_info", Type::kGauge, "How the KV cache is set up.");
  out.Sample({{"block_size", std::to_string(kBlockTokens)},
              {"num_gpu_blocks", std::to_string(options_.most_kv_blocks)},
              {"cache_dtype", options_.kv_cache_dtype},
              {"enable_prefix_caching", options_.prefix_caching ? "True" : "False"},
              {"policy", options_.policy}},
             1);
  RenderHistograms(out, prefix);
}

void ServerMetrics::RenderHistograms(Exposition& out, const std::string& prefix) const {
  const auto histogram = [&](const std::string& name, const char* help, const Histogram& h) {
    out.Family(prefix + name, Type::kHistogram, help);
    out.Sample(h);
  };
  // Only vLLM calls a histogram a total.
  histogram(prefix == "vllm:" ? "iteration_tokens_total" : "iteration_tokens",
            "Tokens of one step: generated, and prompts whose first token came.",
            requests_.iteration_tokens);
  histogram("request_prompt_tokens", "Prompt tokens of a request.", requests_.prompt_length);
  histogram("request_generation_tokens", "Tokens generated for a request.",
            requests_.output_length);
  histogram("request_max_num_generation_tokens", "Most tokens a request may generate.",
            requests_.most_tokens);
  histogram("request_params_max_tokens", "max_tokens of a request.", requests_.most_tokens);
  histogram("request_params_n", "Choices of a request; each choice counts as one.",
            requests_.choices);
  histogram("request_prefill_kv_computed_tokens", "Prompt tokens the prefix cache did not have.",
            requests_.computed_tokens);
  histogram("time_to_first_token_seconds", "From arrival to the first token.",
            requests_.first_token);
  histogram("inter_token_latency_seconds", "From one token to the next.", requests_.next_token);
  histogram("request_time_per_output_token_seconds", "A request's mean time of a token.",
            requests_.per_output_token);
  histogram("e2e_request_latency_seconds", "From arrival to the end.", requests_.latency);
  histogram("request_queue_time_seconds", "From arrival to the first step.", requests_.queue);
  histogram("request_inference_time_seconds", "From the first step to the last token.",
            requests_.inference);
  histogram("request_prefill_time_seconds", "From the first step to the first token.",
            requests_.prefill);
  histogram("request_decode_time_seconds", "From the first token to the last.", requests_.decode);
}

// What dashboards made for older vLLM ask for.
void ServerMetrics::RenderOldNames(Exposition& out, const AsyncStats& stats) const {
  out.Family("vllm:gpu_cache_usage_perc", Type::kGauge, "Old name of kv_cache_usage_perc.");
  out.Sample(KvUse(stats));
  out.Family("vllm:num_requests_swapped", Type::kGauge, "Always 0: no KV is swapped.");
  out.Sample(0);
  out.Family("vllm:gpu_prefix_cache_queries_total", Type::kCounter,
             "Old name of prefix_cache_queries_total.");
  out.Sample(Number(stats.prefix_queries));
  out.Family("vllm:gpu_prefix_cache_hits_total", Type::kCounter,
             "Old name of prefix_cache_hits_total.");
  out.Sample(Number(stats.prefix_hits));
  out.Family("vllm:time_per_output_token_seconds", Type::kHistogram,
             "Old name of inter_token_latency_seconds.");
  out.Sample(requests_.next_token);
}

}  // namespace weir::server
