// weir serve: an engine behind the HTTP API, from opening the model to the last answer.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <thread>
#include <utility>

#include "engine/cli/api_keys.h"
#include "engine/cli/command_line.h"
#include "engine/cli/logging.h"
#include "engine/cli/progress.h"
#include "engine/cli/signals.h"
#include "engine/cli/size_text.h"
#include "engine/server/api_service.h"
#include "engine/server/async_engine.h"
#include "engine/server/http.h"
#include "engine/server/metrics.h"
#include "engine/server/served_engine.h"

namespace weir::cli {
namespace {

using server::AsyncEngine;
using server::AsyncStats;
using server::Health;
using server::MonotonicNow;

constexpr int kHealthCheckMs = 200;
// After the engine ended its requests, their answers have so long to leave.
constexpr TimeNs kFlushNs = 2'000'000'000;
// A failed server shows its health so long before it ends.
constexpr TimeNs kShowFailureNs = 1'000'000'000;
// An abort that takes longer hangs in the device: the process ends without it.
constexpr TimeNs kMostAbortNs = 4'000'000'000;

TimeNs Nanoseconds(double seconds) {
  return static_cast<TimeNs>(seconds * 1e9);
}

std::string ModelName(const Settings& settings) {
  if (!settings.serve.served_model_name.empty()) return settings.serve.served_model_name;
  std::filesystem::path path(settings.engine.model);
  if (!path.has_filename()) path = path.parent_path();
  const std::string name = path.extension() == ".gguf" ? path.stem() : path.filename();
  return name.empty() || name == "." || name == ".." ? "model" : name;
}

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

// Routes that probes and scrapers ask every few seconds are not worth a line each.
bool IsRoutine(const server::RequestRecord& r) {
  return r.status < 400 && r.route.starts_with("GET ");
}

void LogRequest(const server::RequestRecord& r) {
  const auto ms = (r.finished_ns - std::min(r.received_ns, r.finished_ns)) / 1'000'000;
  const LogFields fields = {{"request_id", r.request_id},
                            {"tenant", r.tenant},
                            {"route", r.route},
                            {"peer", r.peer},
                            {"status", uint64_t{r.status}},
                            {"prompt_tokens", r.prompt_tokens},
                            {"cached_tokens", r.cached_tokens},
                            {"completion_tokens", r.completion_tokens},
                            {"ms", ms},
                            {"error", r.error}};
  if (IsRoutine(r)) {
    LogDebug("request", fields);
  } else if (r.status >= 500) {
    LogWarn("request", fields);
  } else {
    LogInfo("request", fields);
  }
}

// Represents the running server. Taken down in this order: HTTP, API, engine.
class Server {
 public:
  explicit Server(const Settings& settings) : settings_(settings), name_(ModelName(settings)) {}

  Status Open() {
    std::vector<server::ApiKey> keys = WEIR_TRY(LoadApiKeys(settings_.serve.api_key_file));
    WarnAboutKeys(keys.empty());
    WEIR_TRY(BindHttp());  // before loading, which takes long
    Progress progress(/*quiet=*/false);
    Result<std::unique_ptr<Engine>> opened = Engine::Open(settings_.engine, progress.ForLoading());
    progress.Clear();
    if (!opened.ok()) return opened.status();
    CatchTermination();
    const Engine& engine = **opened;
    MakeMetrics(engine);
    server::AsyncOptions async;
    async.max_queued_requests = settings_.serve.max_queued_requests;
    async.max_queued_tokens = settings_.serve.max_queued_tokens;
    // Shares are for several: who is alone may fill the queue.
    async.max_queued_per_tenant = keys.size() > 1 ? settings_.serve.max_queued_per_tenant
                                                  : settings_.serve.max_queued_requests;
    async.request_timeout_ns = Nanoseconds(settings_.serve.request_timeout);
    async.metrics = metrics_.get();
    const EngineInfo info = engine.info();
    async_ = WEIR_TRY(AsyncEngine::Start(std::move(*opened), async));
    served_ = std::make_shared<server::ServedEngine>(*async_, *metrics_);
    WEIR_TRY(OpenApi(std::move(keys)));
    WEIR_TRY(ListenHttp());
    LogLoad(info);
    LogInfo("ready", {{"model", name_},
                      {"device", info.device},
                      {"policy", info.policy},
                      {"budget_bytes", info.budget_bytes},
                      {"weight_bytes", info.weight_bytes},
                      {"lookup_bytes", info.lookup_bytes},
                      {"max_model_len", uint64_t{info.max_model_len}},
                      {"most_kv_blocks", info.most_kv_blocks}});
    if (info.max_request_tokens < info.max_model_len) {
      LogWarn("KV never holds as many tokens as the context has: longer requests are refused",
              {{"max_request_tokens", info.max_request_tokens},
               {"max_model_len", uint64_t{info.max_model_len}},
               {"policy", info.policy}});
    }
    return OkStatus();
  }

  // Until a signal or a failure; the exit code.
  int Serve() {
    for (;;) {
      AwaitTermination(kHealthCheckMs);
      const AsyncStats stats = async_->stats();
      if (stats.health == Health::kFailed) return EndFailed(stats.failure);
      LogLink(stats.link);
      if (Terminations() > 0) return Drain(stats.unfinished);
    }
  }

 private:
  static void LogLoad(const EngineInfo& info) {
    const WeightLoadReport& load = info.load;
    LogInfo("weights are loaded",
            {{"bytes_read", load.bytes_read},
             {"bytes_stored", load.bytes_stored},
             {"ms", static_cast<uint64_t>(load.seconds * 1e3)},
             {"mb_per_s", static_cast<uint64_t>(load.GigabytesPerSecond() * 1e3)},
             {"staged", load.staged ? "yes" : "no"}});
    if (!info.backing_refusal.empty()) {
      LogWarn("no memory for a backing copy of the weights: they stay, and KV cannot borrow",
              {{"reason", info.backing_refusal}});
    }
    if (!info.host_memory_shortcoming.empty()) {
      LogInfo("host memory for the backing copy is not as wished: taking it is slower",
              {{"reason", info.host_memory_shortcoming}});
    }
    if (load.io_mode != FileRing::Mode::kIoUring) {
      LogWarn("files are read without io_uring", {{"reason", load.io_mode_reason}});
    }
    if (!load.staging_reason.empty()) {
      LogWarn("no pinned memory to load through: weights took the way through ordinary memory",
              {{"reason", load.staging_reason}});
    }
  }

  // Once for each change: troubles are a back-off apart.
  void LogLink(const LinkReport& now) {
    const LinkReport before = std::exchange(logged_link_, now);
    const uint64_t backoff_ms = now.backoff_ns / 1'000'000;
    if (now.slow != before.slow) {
      LogWarn("streaming weights is slow: tide keeps fewer away",
              {{"cause", now.cause}, {"tried_again_after_ms", backoff_ms}});
    }
    if (now.reread != before.reread) {
      LogWarn("the backing copy of the weights is gone: they were read anew from the checkpoint",
              {{"cause", now.cause}});
    }
    if (now.held != before.held) {
      LogWarn("weights came home and stay there",
              {{"cause", now.cause}, {"tried_again_after_ms", backoff_ms}});
    }
    if (now.lost != before.lost) {
      LogError("not ready: requests fail until the weights can be read",
               {{"cause", now.cause}, {"tried_again_after_ms", backoff_ms}});
    }
    if (now.recovered != before.recovered) {
      LogInfo("weights may leave again: the link does what it should", {{"was", now.cause}});
    }
  }

  void WarnAboutKeys(bool none) const {
    const ServeSettings& s = settings_.serve;
    if (none && !IsLoopback(s.host)) {
      LogWarn(
          "no API key is set and the address is not loopback: everybody who reaches it may "
          "use this server",
          {{"host", s.host}});
    }
    if (!s.api_key_file.empty() && OthersMayRead(s.api_key_file)) {
      LogWarn("others may read the key file; chmod 600 it", {{"path", s.api_key_file}});
    }
  }

  void MakeMetrics(const Engine& engine) {
    const EngineOptions& o = engine.options();
    server::MetricsOptions m;
    m.model_name = name_;
    m.compat =
        settings_.serve.vllm_metrics ? server::MetricsCompat::kVllm : server::MetricsCompat::kNone;
    m.max_model_len = engine.info().max_model_len;
    m.policy = o.policy.substr(0, o.policy.find('{'));
    m.kv_cache_dtype = o.kv_cache_dtype == KvCacheDtype::kF32 ? "f32" : "bf16";
    m.prefix_caching = o.enable_prefix_caching;
    m.most_kv_blocks = engine.info().most_kv_blocks;
    m.budget_bytes = engine.info().budget_bytes;
    m.weight_bytes = engine.info().weight_bytes;
    kv_cache_dtype_ = m.kv_cache_dtype;
    metrics_ = std::make_unique<server::ServerMetrics>(std::move(m));
  }

  Status OpenApi(std::vector<server::ApiKey> keys) {
    const Engine& engine = async_->engine();
    server::ServedModel model;
    model.id = name_;
    model.created_s = std::chrono::duration_cast<std::chrono::seconds>(
                          std::chrono::system_clock::now().time_since_epoch())
                          .count();
    model.max_model_len = static_cast<uint32_t>(engine.info().max_request_tokens);
    model.vocab_size = engine.model().vocab_size;
    model.tokenizer = engine.tokenizer();
    model.chat_template = engine.chat_template();
    model.chat_template_error = engine.chat_template_error();
    model.fingerprint = "weir-" + VersionNumber() + "-kv_" + kv_cache_dtype_;
    server::ApiOptions options;
    options.keys = std::move(keys);
    options.version = VersionNumber();
    if (settings_.serve.log_requests) options.on_request_end = LogRequest;
    api_ = WEIR_TRY(server::ApiService::Create(served_, std::move(model), std::move(options)));
    return OkStatus();
  }

  Status BindHttp() {
    server::HttpOptions options;
    options.host = settings_.serve.host;
    options.port = static_cast<uint16_t>(settings_.serve.port);
    options.threads = settings_.serve.http_threads;
    options.max_connections = settings_.serve.max_connections;
    http_ = WEIR_TRY(server::HttpServer::Bind(options));
    return OkStatus();
  }

  Status ListenHttp() {
    server::ApiService* api = api_.get();
    WEIR_TRY(http_->Listen([api](std::shared_ptr<server::HttpExchange> exchange) {
      api->Handle(std::move(exchange));
    }));
    served_->set_http(http_.get());
    const std::string& host = settings_.serve.host;
    const bool v6 = host.find(':') != std::string::npos;
    std::printf("weir: serving %s at http://%s:%u\n", OneLine(name_, 100).c_str(),
                (v6 ? "[" + host + "]" : host).c_str(), http_->port());
    std::fflush(stdout);
    return OkStatus();
  }

  // New requests are answered 503 and /health is 503 meanwhile; those in flight go on.
  int Drain(uint32_t unfinished) {
    LogInfo("shutting down: what is in flight may end; another signal ends it now",
            {{"unfinished", uint64_t{unfinished}},
             {"timeout_s", Fixed(settings_.serve.shutdown_timeout, 1)}});
    const TimeNs timeout = Nanoseconds(settings_.serve.shutdown_timeout);
    const TimeNs start = MonotonicNow();
    std::future<bool> drained =
        std::async(std::launch::async, [this, timeout] { return async_->Drain(timeout); });
    TimeNs abort_from = start + timeout;
    while (drained.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
      AwaitTermination(50);
      if (Terminations() > 1 && MonotonicNow() < abort_from) {
        async_->Abort();
        abort_from = MonotonicNow();
      }
      if (MonotonicNow() > abort_from + kMostAbortNs) EndHard("the engine does not stop");
    }
    const bool clean = drained.get();
    AwaitAnswers(kFlushNs);
    const TimeNs took = MonotonicNow() - start;
    if (clean) {
      LogInfo("every request in flight ended", {{"ms", took / 1'000'000}});
    } else {
      LogWarn("requests in flight were aborted", {{"ms", took / 1'000'000}});
    }
    Close();
    return clean ? kExitOk : kExitFailed;
  }

  int EndFailed(const Status& failure) {
    LogError("the engine failed; ending", {{"failure", failure.ToString()}});
    const TimeNs start = MonotonicNow();
    AwaitAnswers(kFlushNs);
    while (MonotonicNow() - start < kShowFailureNs) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    std::future<void> closed = std::async(std::launch::async, [this] { Close(); });
    if (closed.wait_for(std::chrono::nanoseconds(kMostAbortNs / 2)) != std::future_status::ready) {
      EndHard("the engine does not stop");
    }
    return kExitFailed;
  }

  // The engine has ended its requests; their answers are still on the way out.
  void AwaitAnswers(TimeNs most) const {
    const TimeNs start = MonotonicNow();
    while (api_->in_flight() > 0 && MonotonicNow() - start < most) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }

  void Close() {
    async_->Abort();
    served_->set_http(nullptr);
    http_->Stop();
    async_->Drain(0);  // before the API, whose requests the engine's thread may be answering
    api_.reset();
    async_.reset();
    http_.reset();
  }

  [[noreturn]] static void EndHard(const char* why) {
    LogError(std::string(why) + "; ending without it");
    std::_Exit(kExitFailed);
  }

  const Settings& settings_;
  std::string name_;
  std::string kv_cache_dtype_;
  LinkReport logged_link_;
  std::unique_ptr<server::ServerMetrics> metrics_;
  std::unique_ptr<AsyncEngine> async_;
  std::shared_ptr<server::ServedEngine> served_;
  std::unique_ptr<server::ApiService> api_;
  std::unique_ptr<server::HttpServer> http_;
};

}  // namespace

int ServeCommand(const Config& config) {
  Server server(config.settings());
  if (const Status opened = server.Open(); !opened.ok()) return Fail(opened, kExitUsage);
  return server.Serve();
}

}  // namespace weir::cli
