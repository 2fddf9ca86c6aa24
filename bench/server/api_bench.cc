// What the server costs between the engine and the socket: JSON, queue, formatting of events, HTTP.
// The engine is a stand-in that costs nothing: a step gives every running request one token.
//   weir_api_bench [STREAMS [TOKENS_A_STREAM [STEP_US]]]
// Prints JSON: time to the first token of single requests, alone and beside STREAMS others, which
// is all overhead; tokens a second and a core of server CPU (every thread but the client's).
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <pthread.h>

#include "bench/server/stream_client.h"
#include "engine/server/api_service.h"
#include "engine/server/async_engine.h"
#include "engine/server/http.h"
#include "engine/server/metrics.h"
#include "engine/server/served_engine.h"
#include "engine/server/step_engine.h"

namespace {

using namespace weir;
using namespace weir::server;

constexpr uint32_t kModelLen = 1 << 20;

class FreeEngine final : public StepEngine {
 public:
  FreeEngine(uint32_t sequences, const std::atomic<uint64_t>& step_us)
      : limits_{.max_sequences = sequences,
                .max_batched_tokens = 1 << 20,
                .max_model_len = kModelLen},
        step_us_(step_us) {}
  StepLimits limits() const override { return limits_; }
  Status Prepare(GenerationRequest*) const override { return OkStatus(); }
  Result<RequestId> Submit(GenerationRequest request) override {
    running_.push_back({next_id_, static_cast<uint32_t>(request.prompt_tokens.size()),
                        request.sampling.max_tokens, MonotonicNow()});
    return next_id_++;
  }
  Status Cancel(RequestId id) override {
    for (Running& r : running_) {
      if (r.id == id) r.cancelled = true;
    }
    return OkStatus();
  }
  Result<bool> Step() override {
    if (running_.empty()) return false;
    if (const uint64_t us = step_us_; us > 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(us));
    }
    size_t kept = 0;
    for (Running& r : running_) {
      GenerationOutput out;
      out.id = r.id;
      out.prompt_tokens = r.prompt;
      out.scheduled_ns = r.scheduled_ns;
      if (!r.cancelled) {
        out.tokens.push_back({.token = static_cast<int32_t>(r.left % 1000)});
        out.text = r.left % 7 == 0 ? " \"said\"\n" : " token";
        --r.left;
      }
      out.finished = r.cancelled || r.left == 0;
      if (out.finished) out.reason = r.cancelled ? FinishReason::kCancelled : FinishReason::kLength;
      if (!out.finished) running_[kept++] = r;
      outputs_.push_back(std::move(out));
    }
    running_.resize(kept);
    return true;
  }
  std::vector<GenerationOutput> TakeOutputs() override { return std::exchange(outputs_, {}); }
  StepLoad load() const override { return {.running = static_cast<uint32_t>(running_.size())}; }
  void SetQueued(const QueuedDemand&) override {}
  void FillStats(AsyncStats*) const override {}
  Status CheckIdle() override { return OkStatus(); }

 private:
  struct Running {
    RequestId id = 0;
    uint32_t prompt = 0;
    uint32_t left = 0;
    TimeNs scheduled_ns = 0;
    bool cancelled = false;
  };
  const StepLimits limits_;
  const std::atomic<uint64_t>& step_us_;
  std::vector<Running> running_;
  std::vector<GenerationOutput> outputs_;
  RequestId next_id_ = 1;
};

std::string Request(size_t prompt_tokens, size_t tokens) {
  std::string body =
      R"({"model":"bench","stream":true,"ignore_eos":true,"temperature":0,"prompt":[)";
  for (size_t i = 0; i < prompt_tokens; ++i) body += (i > 0 ? "," : "") + std::to_string(i % 900);
  body += R"(],"max_tokens":)" + std::to_string(tokens) + "}";
  return "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
         "Content-Length: " +
         std::to_string(body.size()) + "\r\n\r\n" + body;
}

// Taken down in the order of `weir serve`: HTTP, engine, API.
struct Stack {
  std::atomic<uint64_t> step_us{0};
  std::unique_ptr<ServerMetrics> metrics;
  std::unique_ptr<AsyncEngine> async;
  std::shared_ptr<ServedEngine> served;
  std::unique_ptr<ApiService> api;
  std::unique_ptr<HttpServer> http;

  Status Open(uint32_t streams) {
    MetricsOptions m;
    m.model_name = "bench";
    m.max_model_len = kModelLen;
    metrics = std::make_unique<ServerMetrics>(std::move(m));
    AsyncOptions options;
    options.max_queued_requests = options.max_queued_per_tenant = 4 * streams;
    options.max_queued_tokens = 1 << 24;
    options.metrics = metrics.get();
    async = WEIR_TRY(AsyncEngine::Start(
        std::unique_ptr<StepEngine>(std::make_unique<FreeEngine>(2 * streams, step_us)), options));
    served = std::make_shared<ServedEngine>(*async, *metrics);
    api = WEIR_TRY(ApiService::Create(
        served, {.id = "bench", .max_model_len = kModelLen, .vocab_size = 1000}, {}));
    http = WEIR_TRY(HttpServer::Start({.port = 0}, [this](std::shared_ptr<HttpExchange> exchange) {
      api->Handle(std::move(exchange));
    }));
    return OkStatus();
  }
  ~Stack() {
    http.reset();
    if (async) async->Drain(0);
    api.reset();
  }
};

}  // namespace

int main(int argc, char** argv) {
  const size_t streams = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 64;
  const size_t tokens = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 2000;
  const uint64_t step_us = argc > 3 ? std::strtoul(argv[3], nullptr, 10) : 2000;
  Stack stack;
  if (const Status opened = stack.Open(static_cast<uint32_t>(streams)); !opened.ok()) {
    std::fprintf(stderr, "%s\n", opened.ToString().c_str());
    return 1;
  }
  const uint16_t port = stack.http->port();
  const std::string single = Request(512, 1);
  (void)bench::FirstByteTimes(port, single, 200);  // warm
  const std::vector<double> alone = bench::FirstByteTimes(port, single, 2000);

  stack.step_us = step_us;
  std::vector<bench::StreamResult> results(streams);
  size_t failed = 0;
  double client_cpu_s = 0;
  const auto before = bench::CpuByThreadName();
  const auto begin = std::chrono::steady_clock::now();
  std::thread client([&] {
    pthread_setname_np(pthread_self(), "client");
    failed = bench::RunStreams(port, Request(16, tokens), results, client_cpu_s);
  });
  client.join();
  const double wall =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const auto after = bench::CpuByThreadName();

  std::thread others([&] {
    std::vector<bench::StreamResult> more(streams);
    double ignored = 0;
    failed += bench::RunStreams(port, Request(16, tokens), more, ignored);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const std::vector<double> beside = bench::FirstByteTimes(port, single, 200);
  others.join();

  uint64_t events = 0;
  for (const bench::StreamResult& result : results) events += result.events;
  const auto wanted = static_cast<double>(streams * tokens);
  double server_cpu = 0;
  std::string threads;
  for (const auto& [name, cpu] : after) {
    const auto at = before.find(name);
    const double took = cpu - (at == before.end() ? 0 : at->second);
    if (name == "client") continue;
    server_cpu += took;
    char text[96];
    std::snprintf(text, sizeof(text), "%s\"%s\": %.2f", threads.empty() ? "" : ", ", name.c_str(),
                  took / wanted * 1e6);
    threads += text;
  }
  std::printf(
      "{\"streams\": %zu, \"tokens\": %.0f, \"events\": %llu, \"failed\": %zu, \"step_us\": %llu, "
      "\"wall_s\": %.3f, \"tokens_per_s\": %.0f, \"server_cpu_s\": %.3f, "
      "\"tokens_per_server_core_s\": %.0f, \"cpu_us_a_token\": {%s}, "
      "\"ttft_alone_ms\": {\"p50\": %.3f, \"p99\": %.3f}, "
      "\"ttft_beside_ms\": {\"p50\": %.3f, \"p99\": %.3f}}\n",
      streams, wanted, static_cast<unsigned long long>(events), failed,
      static_cast<unsigned long long>(step_us), wall, wanted / wall, server_cpu,
      wanted / server_cpu, threads.c_str(), bench::Percentile(alone, 50) * 1e3,
      bench::Percentile(alone, 99) * 1e3, bench::Percentile(beside, 50) * 1e3,
      bench::Percentile(beside, 99) * 1e3);
  // The end of a stream is one event more than its tokens.
  return failed == 0 && events == streams * (tokens + 1) ? 0 : 1;
}
