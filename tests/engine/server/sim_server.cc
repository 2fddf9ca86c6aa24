// weir_sim_server: the server of `weir serve` over a simulated engine (sim_step_engine.h), for load
// tests: as fast as its memory manager, policy and scheduler, with tokens that can be checked.
//   weir_sim_server [--port N] [--max-num-seqs N] [--max-queued-requests N] [--budget-percent N]
//                   [--max-model-len N] [--step-us N] [--policy NAME] [--http-threads N]
//                   [--timeout-ms N (of clients that are idle, slow to send or do not read)]
// Prints where it listens as `weir serve` does. SIGTERM: drains for 30 s.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>

#include "engine/server/api_service.h"
#include "engine/server/async_engine.h"
#include "engine/server/http.h"
#include "engine/server/metrics.h"
#include "engine/server/served_engine.h"
#include "tests/engine/server/sim_step_engine.h"

namespace {

using namespace weir;
using namespace weir::server;
using weir::server::testing::SimEngineOptions;
using weir::server::testing::SimStepEngine;

struct Options {
  SimEngineOptions engine;
  HttpOptions http;
  uint32_t max_queued_requests = 1024;
};

bool Parse(int argc, char** argv, Options* o) {
  const auto number = [](const char* text) { return std::strtoull(text, nullptr, 10); };
  const auto small = [&](const char* text) { return static_cast<uint32_t>(number(text)); };
  const std::map<std::string, std::function<void(const char*)>> known = {
      {"--port", [&](const char* v) { o->http.port = static_cast<uint16_t>(number(v)); }},
      {"--http-threads", [&](const char* v) { o->http.threads = small(v); }},
      {"--timeout-ms",
       [&](const char* v) {
         const uint64_t ns = number(v) * 1'000'000;
         o->http.idle_timeout_ns = o->http.request_timeout_ns = o->http.write_timeout_ns = ns;
       }},
      {"--max-num-seqs", [&](const char* v) { o->engine.max_sequences = small(v); }},
      {"--max-queued-requests", [&](const char* v) { o->max_queued_requests = small(v); }},
      {"--budget-percent", [&](const char* v) { o->engine.budget_percent = small(v); }},
      {"--max-model-len", [&](const char* v) { o->engine.max_model_len = small(v); }},
      {"--step-us", [&](const char* v) { o->engine.step_us = number(v); }},
      {"--policy", [&](const char* v) { o->engine.policy = v; }}};
  for (int i = 1; i < argc; i += 2) {
    const auto at = known.find(argv[i]);
    if (at == known.end() || i + 1 == argc) return false;
    at->second(argv[i + 1]);
  }
  return true;
}

Status Serve(const Options& o, sigset_t signals) {
  std::unique_ptr<SimStepEngine> engine = WEIR_TRY(SimStepEngine::Create(o.engine));
  MetricsOptions m;
  m.model_name = "sim";
  m.max_model_len = o.engine.max_model_len;
  m.policy = o.engine.policy;
  m.budget_bytes = engine->budget_bytes();
  ServerMetrics metrics(std::move(m));
  AsyncOptions async;
  async.max_queued_requests = async.max_queued_per_tenant = o.max_queued_requests;
  async.max_queued_tokens = 1 << 24;
  async.metrics = &metrics;
  const std::unique_ptr<AsyncEngine> running =
      WEIR_TRY(AsyncEngine::Start(std::unique_ptr<StepEngine>(std::move(engine)), async));
  const auto served = std::make_shared<ServedEngine>(*running, metrics);
  std::unique_ptr<ApiService> api = WEIR_TRY(ApiService::Create(
      served,
      {.id = "sim", .max_model_len = o.engine.max_model_len, .vocab_size = o.engine.shape.vocab},
      {}));
  const std::unique_ptr<HttpServer> http =
      WEIR_TRY(HttpServer::Start(o.http, [&api](std::shared_ptr<HttpExchange> exchange) {
        api->Handle(std::move(exchange));
      }));
  served->set_http(http.get());
  std::printf("weir: serving sim at http://127.0.0.1:%u\n", http->port());
  std::fflush(stdout);
  int signal = 0;
  sigwait(&signals, &signal);
  const bool clean = running->Drain(30'000'000'000);
  served->set_http(nullptr);
  http->Stop();
  const AsyncStats stats = running->stats();
  if (stats.health == Health::kFailed) return stats.failure;
  api.reset();
  return clean ? OkStatus() : Cancelled("requests were aborted");
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  options.http.port = 0;
  if (!Parse(argc, argv, &options)) {
    std::fprintf(stderr, "unknown option or no value; the options are in sim_server.cc\n");
    return 2;
  }
  sigset_t signals = {};
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // before any thread
  const Status served = Serve(options, signals);
  if (!served.ok()) std::fprintf(stderr, "weir_sim_server: %s\n", served.ToString().c_str());
  return served.ok() ? 0 : 1;
}
