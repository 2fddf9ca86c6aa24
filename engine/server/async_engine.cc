#include "engine/server/async_engine.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include <pthread.h>

#include "engine/server/engine_loop.h"
#include "engine/server/mailbox.h"
#include "engine/server/metrics.h"
#include "engine/server/step_engine.h"

namespace weir::server {

TimeNs MonotonicNow() {
  return static_cast<TimeNs>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                 std::chrono::steady_clock::now().time_since_epoch())
                                 .count());
}

// Represents one place taken; gives it back.
struct Admission::State {
  State(std::shared_ptr<Mailbox> at, std::string of)
      : mailbox(std::move(at)), tenant(std::move(of)) {}
  ~State() {
    if (!used) mailbox->Unreserve(tenant);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  std::shared_ptr<Mailbox> mailbox;
  std::string tenant;
  bool used = false;
};

Admission::Admission(std::unique_ptr<State> state) : state_(std::move(state)) {}
Admission::Admission(Admission&&) noexcept = default;
Admission& Admission::operator=(Admission&&) noexcept = default;
Admission::~Admission() = default;

struct AsyncEngine::Impl {
  AsyncOptions options;
  std::unique_ptr<StepEngine> engine;
  const Engine* real = nullptr;  // inside |engine|; null: a stand-in
  std::shared_ptr<Mailbox> mailbox;
  std::thread thread;
};

AsyncEngine::AsyncEngine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

AsyncEngine::~AsyncEngine() {
  impl_->mailbox->Stop();
  impl_->thread.join();
}

Result<std::unique_ptr<AsyncEngine>> AsyncEngine::Start(std::unique_ptr<Engine> engine,
                                                        const AsyncOptions& options) {
  const Engine* real = engine.get();
  std::unique_ptr<AsyncEngine> started =
      WEIR_TRY(Start(MakeStepEngine(std::move(engine)), options));
  started->impl_->real = real;
  return started;
}

Result<std::unique_ptr<AsyncEngine>> AsyncEngine::Start(std::unique_ptr<StepEngine> engine,
                                                        const AsyncOptions& options) {
  if (options.max_queued_requests == 0 || options.max_queued_per_tenant == 0) {
    return InvalidArgument("max_queued_requests and max_queued_per_tenant must be at least 1");
  }
  if (options.max_failed_steps == 0) return InvalidArgument("max_failed_steps must be at least 1");
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  impl->engine = std::move(engine);
  impl->mailbox = std::make_shared<Mailbox>(options, impl->engine->limits());
  Impl* const shared = impl.get();
  std::unique_ptr<AsyncEngine> started(new AsyncEngine(std::move(impl)));
  shared->thread = std::thread([shared] {
    pthread_setname_np(pthread_self(), "weir-engine");
    EngineLoop(*shared->engine, *shared->mailbox, shared->options).Run();
  });
  return started;
}

Result<Admission> AsyncEngine::Admit(const std::string& tenant) {
  const Status reserved = impl_->mailbox->Reserve(tenant);
  if (reserved.ok()) return Admission(std::make_unique<Admission::State>(impl_->mailbox, tenant));
  if (ServerMetrics* metrics = impl_->options.metrics) metrics->OnRejected(reserved.code());
  return reserved;
}

Result<uint64_t> AsyncEngine::Submit(Admission admission, AsyncRequest request,
                                     std::shared_ptr<OutputSink> sink) {
  WEIR_CHECK(admission.state_ && admission.state_->mailbox == impl_->mailbox,
             "an admission is used once, at the engine that gave it");
  RequestEntry entry;
  entry.times.queued_ns = MonotonicNow();
  entry.tenant = admission.state_->tenant;
  entry.deadline_ns = request.deadline_ns;
  if (const TimeNs most = impl_->options.request_timeout_ns; most != 0) {
    const TimeNs last = entry.times.queued_ns + most;
    entry.deadline_ns = entry.deadline_ns == 0 ? last : std::min(entry.deadline_ns, last);
  }
  WEIR_TRY(impl_->engine->Prepare(&request.request));
  entry.prompt_tokens = static_cast<uint32_t>(request.request.prompt_tokens.size());
  entry.max_tokens = request.request.sampling.max_tokens;
  entry.request = std::move(request.request);
  entry.sink = std::move(sink);
  Result<uint64_t> ticket = impl_->mailbox->Put(std::move(entry));
  if (ticket.ok()) {
    admission.state_->used = true;
  } else if (ServerMetrics* metrics = impl_->options.metrics) {
    metrics->OnRejected(ticket.status().code());
  }
  return ticket;
}

void AsyncEngine::Cancel(uint64_t ticket) {
  impl_->mailbox->Cancel(ticket);
}

bool AsyncEngine::Drain(TimeNs timeout_ns) {
  return impl_->mailbox->Drain(timeout_ns);
}

void AsyncEngine::Abort() {
  impl_->mailbox->Abort();
}

AsyncStats AsyncEngine::stats() const {
  return impl_->mailbox->stats();
}

const Engine& AsyncEngine::engine() const {
  WEIR_CHECK(impl_->real != nullptr, "a stand-in has no Engine");
  return *impl_->real;
}

}  // namespace weir::server
