// ServerMetrics: what GET /metrics shows.
//
// Represents counters and histograms of requests, kept as they happen, and the names under which
// they and the engine's own figures are shown. Request figures have vLLM's names, under `weir_`
// and, with MetricsCompat::kVllm, under `vllm:` too, so that dashboards made for vLLM work
// unchanged; memory figures are under `weir_` alone. On* of requests are called on the engine
// thread; OnRejected and Render on any.
#pragma once

#include <cstdint>
#include <string>

#include "engine/server/async_engine.h"
#include "engine/server/exposition.h"
#include "engine/server/http.h"

namespace weir::server {

enum class MetricsCompat : uint8_t { kNone, kVllm };

// Immutable facts; labels of `cache_config_info`, and where the histograms' bounds end.
struct MetricsOptions {
  std::string model_name;
  MetricsCompat compat = MetricsCompat::kVllm;
  uint32_t max_model_len = 0;
  std::string policy;
  std::string kv_cache_dtype;
  bool prefix_caching = true;
  uint64_t most_kv_blocks = 0;
  uint64_t budget_bytes = 0;
  uint64_t weight_bytes = 0;
};

struct FinishedRequest {
  FinishReason reason = FinishReason::kNone;
  RequestTimes times;
  TimeNs ended_ns = 0;
  uint32_t prompt_tokens = 0;
  uint32_t output_tokens = 0;
  uint32_t max_tokens = 0;  // as asked; 0: what the context holds
};

class ServerMetrics {
 public:
  explicit ServerMetrics(MetricsOptions options);

  void OnRejected(StatusCode code);
  void OnFirstToken(const RequestTimes& times, uint32_t prompt_tokens, uint32_t cached_tokens);
  void OnNextToken(TimeNs gap_ns);
  // Tokens of one step: generated ones, and the prompts of requests that gave their first.
  void OnIteration(uint64_t tokens);
  void OnFinished(const FinishedRequest& request);

  std::string Render(const AsyncStats& stats, const HttpStats& http) const;

 private:
  struct Requests {
    explicit Requests(double max_tokens);
    Counter prompt_tokens, cached_tokens, generated_tokens;
    Counter ended_stop, ended_length, ended_abort, ended_error;
    Counter rejected_full, rejected_tenant, rejected_closed;
    Histogram iteration_tokens, prompt_length, output_length, most_tokens, choices, computed_tokens;
    Histogram first_token, next_token, per_output_token;
    Histogram latency, queue, inference, prefill, decode;
  };
  void RenderRequests(Exposition& out, const std::string& prefix, const AsyncStats& stats) const;
  void RenderHistograms(Exposition& out, const std::string& prefix) const;
  void RenderOldNames(Exposition& out, const AsyncStats& stats) const;
  void RenderMemory(Exposition& out, const AsyncStats& stats) const;
  void RenderPager(Exposition& out, const AsyncStats& stats) const;
  void RenderServer(Exposition& out, const AsyncStats& stats, const HttpStats& http) const;

  MetricsOptions options_;
  Requests requests_;
};

// Of this process, for every Prometheus client the same names (process_...).
void RenderProcess(Exposition& out);

}  // namespace weir::server
