#include "engine/trace_session.h"

#include <cstdio>
#include <utility>

#include <pthread.h>

namespace weir {
namespace {

constexpr TimeNs kLookNs = 5'000'000;     // at the rings, while writing a file
constexpr TimeNs kBlockNs = 50'000'000;   // between blocks, unless a ring is half full
constexpr TimeNs kWatchNs = 100'000'000;  // over a recorder outside

}  // namespace

Result<std::unique_ptr<TraceSession>> TraceSession::Start(const TraceOptions& options) {
  std::unique_ptr<TraceSession> session;
  if (GetTracer() != nullptr || (!options.attach && options.file.empty())) return session;
  session.reset(new TraceSession());
  Tracer::Options tracer;
  if (options.attach) {
    auto shared = TraceSegment::Create(TraceSegment::Sharing::kShared, options.ring_records);
    if (shared.ok()) {
      tracer.segment = std::move(*shared);
    } else if (shared.status().code() == StatusCode::kInvalidArgument) {
      return shared.status();
    }
  }
  if (tracer.segment == nullptr) {
    tracer.segment =
        WEIR_TRY(TraceSegment::Create(TraceSegment::Sharing::kPrivate, options.ring_records));
  }
  tracer.mask = options.file.empty() ? 0 : ~uint64_t{0};
  session->tracer_ = std::make_unique<Tracer>(tracer);
  Tracer& t = *session->tracer_;
  if (!options.file.empty()) {
    session->file_ =
        WEIR_TRY(TraceFileWriter::Create(options.file, t.Now(), tracer.mask, t.metadata()));
    WEIR_CHECK(t.TakeLease(TraceMonotonicNs()), "nobody can have found the new rings");
  }
  SetTracer(&t);
  session->thread_ = std::thread([s = session.get()] { s->Run(); });
  return session;
}

TraceSession::~TraceSession() {
  if (thread_.joinable()) {
    {
      MutexLock lock(mutex_);
      stop_ = true;
      wake_.notify_one();
    }
    thread_.join();
  }
  if (tracer_ != nullptr && GetTracer() == tracer_.get()) SetTracer(nullptr);
}

void TraceSession::Run() {
  pthread_setname_np(pthread_self(), "weir-trace");
  TimeNs written = TraceMonotonicNs();
  for (bool stop = false; !stop;) {
    {
      MutexLock lock(mutex_);
      if (!stop_) lock.WaitFor(wake_, file_ != nullptr ? kLookNs : kWatchNs);
      stop = stop_;
    }
    const TimeNs now = TraceMonotonicNs();
    if (file_ == nullptr) {
      tracer_->ExpireRecorder(now);
      continue;
    }
    tracer_->KeepLease(now);
    if (!stop && now - written < kBlockNs && !tracer_->HalfFull()) continue;
    written = now;
    WriteBlock();
  }
  if (file_ == nullptr) return;
  if (const Status closed = file_->Close(tracer_->metadata()); !closed.ok()) GiveUp(closed);
}

void TraceSession::WriteBlock() {
  block_.clear();
  tracer_->Drain([this](const TraceRecord& r) { block_.push_back(r); });
  const uint64_t lost = tracer_->dropped();
  if (!block_.empty() || lost != lost_) {
    const Status written = file_->Append(block_, lost - std::exchange(lost_, lost));
    if (!written.ok()) return GiveUp(written);
  }
  const uint64_t version = tracer_->metadata_version();
  if (version == metadata_version_) return;
  metadata_version_ = version;
  if (const Status set = file_->SetMetadata(tracer_->metadata()); !set.ok()) GiveUp(set);
}

void TraceSession::GiveUp(const Status& error) {
  std::fprintf(stderr, "weir: tracing ends, serving goes on: %s\n", error.ToString().c_str());
  tracer_->set_mask(0);
  file_.reset();
  tracer_->ReleaseLease();
}

}  // namespace weir
