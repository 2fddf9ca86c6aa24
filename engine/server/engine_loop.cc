#include "engine/server/engine_loop.h"

#include <utility>

#include "vmm/trace.h"

namespace weir::server {
namespace {

// While weights are away and nothing runs, the policy is asked so often, and so many times after
// its last move.
constexpr TimeNs kIdleTurnNs = 5'000'000;
constexpr uint32_t kIdleTurns = 400;
// With nothing to do at all: how often a step looks whether a recorder outside has come.
constexpr TimeNs kLookForRecorderNs = 200'000'000;
// While weights are away and cannot be read: how often the engine is asked whether they can again.
// It keeps a back-off of its own.
constexpr TimeNs kLookForLinkNs = 200'000'000;

}  // namespace

void EngineLoop::Run() {
  Settle();
  for (;;) {
    Intake intake = mailbox_.Take(RoomLeft(), WaitTime());
    engine_.SetQueued(intake.queued);
    for (RequestEntry& entry : intake.ended) {
      const bool by_client = entry.end.ok();
      Status error = std::move(entry.end);
      EndUnknown(std::move(entry), by_client ? FinishReason::kCancelled : FinishReason::kError,
                 std::move(error));
    }
    EndRunning(intake);
    for (RequestEntry& entry : intake.feed) Submit(std::move(entry));
    if (intake.stop && running_.empty()) {
      Settle();
      return;
    }
    if (Status status = Step(); !status.ok()) {
      FailAll(status);
      mailbox_.AwaitStop();
      return;
    }
    Settle();
  }
}

Room EngineLoop::RoomLeft() const {
  const StepLimits limits = engine_.limits();
  const StepLoad load = engine_.load();
  const uint32_t known = load.running + load.waiting;
  return {.sequences = limits.max_sequences - std::min(known, limits.max_sequences),
          .tokens = limits.max_batched_tokens -
                    std::min<uint64_t>(load.waiting_tokens, limits.max_batched_tokens)};
}

TimeNs EngineLoop::WaitTime() const {
  if (!running_.empty()) return 0;
  if (link_lost_) return kLookForLinkNs;
  if (idle_turns_ > 0) return kIdleTurnNs;
  return GetTracer() != nullptr ? kLookForRecorderNs : Mailbox::kForever;
}

// An ended request's last output comes with the next step.
void EngineLoop::EndRunning(const Intake& intake) {
  const auto end = [this](RequestEntry& entry, RequestId id, const Status& why) {
    if (!entry.end.ok()) return;
    entry.end = why;
    const Status cancelled = engine_.Cancel(id);
    // kNotFound: it was ended before, by its client.
    WEIR_CHECK(cancelled.ok() || cancelled.code() == StatusCode::kNotFound, "a request can end");
  };
  for (const auto& [ticket, why] : intake.end_running) {
    const auto known = id_of_ticket_.find(ticket);
    if (known != id_of_ticket_.end()) end(running_.at(known->second), known->second, why);
  }
  if (!intake.end_all) return;
  const Status why = BadState("the server shut down before the request was done");
  for (auto& [id, entry] : running_) end(entry, id, why);
}

void EngineLoop::Submit(RequestEntry entry) {
  Result<RequestId> id = engine_.Submit(std::move(entry.request));
  if (!id.ok()) {
    EndUnknown(std::move(entry), FinishReason::kError, id.status());
    return;
  }
  id_of_ticket_.emplace(entry.ticket, *id);
  running_.emplace(*id, std::move(entry));
}

Status EngineLoop::Step() {
  const Result<bool> worked = engine_.Step();
  if (!worked.ok()) return worked.status();
  const TimeNs now = MonotonicNow();
  for (GenerationOutput& output : engine_.TakeOutputs()) Deliver(std::move(output), now);
  if (options_.metrics != nullptr && iteration_tokens_ > 0) {
    options_.metrics->OnIteration(std::exchange(iteration_tokens_, 0));
  }
  engine_.FillStats(&settlement_.stats);
  link_lost_ = settlement_.stats.link.state == LinkState::kLost;
  WEIR_TRY(CheckProgress());
  if (!running_.empty()) {
    was_busy_ = true;
    return OkStatus();
  }
  const bool first = std::exchange(was_busy_, false);
  const AsyncStats& stats = settlement_.stats;
  // It compares weights with a copy that may just now not be readable.
  const bool readable =
      stats.link.state != LinkState::kHeld && stats.link.state != LinkState::kLost;
  if (first && readable) WEIR_TRY(engine_.CheckIdle().WithContext("idle check"));
  const bool moved = std::exchange(border_moves_, stats.core.border_moves) != border_moves_;
  if (stats.evicted_bytes == 0) {
    idle_turns_ = 0;
  } else if (first || moved) {
    idle_turns_ = kIdleTurns;
  } else if (idle_turns_ > 0) {
    --idle_turns_;
  }
  return OkStatus();
}

// The core fails the requests of a step that fails again and again; when the next ones' fail too,
// the device is lost. Steps that lacked weights are the engine's to judge (LinkState).
Status EngineLoop::CheckProgress() {
  const CoreStats& core = settlement_.stats.core;
  const uint64_t failed = core.failed_steps - core.steps_without_weights;
  if (core.steps != steps_) {
    steps_ = core.steps;
    failed_before_ = failed;
  }
  if (failed - failed_before_ < options_.max_failed_steps) return OkStatus();
  return DriverError(std::to_string(failed - failed_before_) +
                     " steps failed in a row; the last request's error: " + last_error_);
}

void EngineLoop::Deliver(GenerationOutput output, TimeNs now) {
  const auto at = running_.find(output.id);
  WEIR_CHECK(at != running_.end(), "outputs are of requests that were submitted");
  RequestEntry& entry = at->second;
  if (output.finished && output.reason == FinishReason::kCancelled && !entry.end.ok()) {
    output.reason = FinishReason::kError;
    output.error = entry.end;
  }
  Count(entry, output, now);
  const bool finished = output.finished;
  if (finished) Ended(entry, output.reason, now);
  if (!output.error.ok()) last_error_ = output.error.ToString();
  output.id = entry.ticket;
  entry.sink->OnOutput(std::move(output), entry.times);
  if (!finished) return;
  id_of_ticket_.erase(entry.ticket);
  running_.erase(at);
}

void EngineLoop::Count(RequestEntry& entry, const GenerationOutput& output, TimeNs now) {
  ServerMetrics* metrics = options_.metrics;
  RequestTimes& times = entry.times;
  if (times.scheduled_ns == 0) times.scheduled_ns = output.scheduled_ns;
  if (output.tokens.empty()) return;
  entry.output_tokens += static_cast<uint32_t>(output.tokens.size());
  iteration_tokens_ += output.tokens.size();
  settlement_.output_tokens.emplace_back(entry.tenant, output.tokens.size());
  for (size_t i = 0; i < output.tokens.size(); ++i) {
    if (times.first_token_ns == 0) {
      times.first_token_ns = now;
      iteration_tokens_ += output.prompt_tokens;
      if (metrics != nullptr) {
        metrics->OnFirstToken(times, output.prompt_tokens, output.cached_tokens);
      }
    } else if (metrics != nullptr) {
      metrics->OnNextToken(now - times.last_token_ns);
    }
    times.last_token_ns = now;
  }
}

void EngineLoop::Ended(const RequestEntry& entry, FinishReason reason, TimeNs now) {
  settlement_.ended.emplace_back(entry.ticket, entry.deadline_ns);
  if (options_.metrics == nullptr) return;
  options_.metrics->OnFinished({.reason = reason,
                                .times = entry.times,
                                .ended_ns = now,
                                .prompt_tokens = entry.prompt_tokens,
                                .output_tokens = entry.output_tokens,
                                .max_tokens = entry.max_tokens});
}

void EngineLoop::EndUnknown(RequestEntry entry, FinishReason reason, Status error) {
  Ended(entry, reason, MonotonicNow());
  GenerationOutput output;
  output.id = entry.ticket;
  output.finished = true;
  output.reason = reason;
  output.error = std::move(error);
  output.prompt_tokens = entry.prompt_tokens;
  entry.sink->OnOutput(std::move(output), entry.times);
}

void EngineLoop::Settle() {
  engine_.FillStats(&settlement_.stats);
  mailbox_.Settle(std::exchange(settlement_, {}));
}

void EngineLoop::FailAll(const Status& failure) {
  std::vector<RequestEntry> entries = mailbox_.Fail(failure);
  for (auto& [id, entry] : running_) entries.push_back(std::move(entry));
  running_.clear();
  id_of_ticket_.clear();
  const Status error = BadState("the engine failed: " + failure.ToString());
  for (RequestEntry& entry : entries) {
    EndUnknown(std::move(entry), FinishReason::kError, error);
  }
  Settle();
}

}  // namespace weir::server
