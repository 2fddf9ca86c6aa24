// A StepEngine without a model: each request gives the tokens 0, 1, 2 ... up to its max_tokens, one
// a step. The test holds, fails and watches it through FakeControl.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "engine/server/step_engine.h"

namespace weir::server::testing {

// Shared with the engine, which AsyncEngine owns.
class FakeControl {
 public:
  void Hold() {
    const std::lock_guard lock(mutex_);
    held_ = true;
  }
  // Lets |n| more steps begin while held.
  void Allow(int n) {
    {
      const std::lock_guard lock(mutex_);
      permits_ += n;
    }
    changed_.notify_all();
  }
  void Release() {
    {
      const std::lock_guard lock(mutex_);
      held_ = false;
    }
    changed_.notify_all();
  }
  // The engine thread waits inside a step.
  void AwaitHeld() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return waiting_; });
  }

  std::atomic<bool> fail{false};         // the next Step returns an error
  std::atomic<bool> fail_steps{false};   // steps fail as the core's do: counted, not returned
  std::atomic<bool> link_lost{false};    // weights cannot be read: requests end, nothing runs
  std::atomic<uint32_t> used_blocks{0};  // one for each running request
  std::atomic<uint64_t> steps{0};
  std::atomic<uint64_t> submitted{0};
  std::atomic<uint32_t> most_waiting{0};  // in the engine's own queue
  std::atomic<uint64_t> evicted_bytes{0};
  std::atomic<uint32_t> queued_seen{0};  // what the policy was told
  std::atomic<bool> leak{false};

  // Engine thread.
  void BeginStep() {
    std::unique_lock lock(mutex_);
    waiting_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !held_ || permits_ > 0; });
    waiting_ = false;
    if (held_) --permits_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  bool waiting_ = false;
  int permits_ = 0;
};

class FakeEngine final : public StepEngine {
 public:
  FakeEngine(std::shared_ptr<FakeControl> control, const StepLimits& limits)
      : control_(std::move(control)), limits_(limits) {}

  StepLimits limits() const override { return limits_; }
  Status Prepare(GenerationRequest* request) const override {
    if (request->prompt_tokens.empty()) return Unsupported("no tokenizer");
    return OkStatus();
  }
  Result<RequestId> Submit(GenerationRequest request) override {
    CheckThread();
    if (request.prompt_tokens.front() < 0) return InvalidArgument("prompt token -1");
    const RequestId id = next_id_++;
    waiting_.push_back({.id = id,
                        .prompt = static_cast<uint32_t>(request.prompt_tokens.size()),
                        .left = std::max(1U, request.sampling.max_tokens)});
    ++control_->submitted;
    control_->most_waiting =
        std::max(control_->most_waiting.load(), static_cast<uint32_t>(waiting_.size()));
    return id;
  }
  Status Cancel(RequestId id) override {
    CheckThread();
    for (std::list<Request>* list : {&waiting_, &running_}) {
      for (auto at = list->begin(); at != list->end(); ++at) {
        if (at->id != id) continue;
        if (list == &running_ && !control_->leak) --control_->used_blocks;
        End(*at, FinishReason::kCancelled);
        list->erase(at);
        return OkStatus();
      }
    }
    return NotFound("no such request");
  }
  Result<bool> Step() override {
    CheckThread();
    if (running_.empty() && waiting_.empty()) return false;
    control_->BeginStep();
    if (control_->link_lost) {
      EndAll(BadState("injected: weights cannot be read"));
      return true;
    }
    if (control_->fail) return DriverError("injected: the device is gone");
    if (control_->fail_steps) return FailStep();
    while (!waiting_.empty() && running_.size() < limits_.max_sequences) {
      waiting_.front().scheduled_ns = MonotonicNow();
      running_.splice(running_.end(), waiting_, waiting_.begin());
      ++control_->used_blocks;
    }
    for (auto at = running_.begin(); at != running_.end();) at = Generate(at);
    failed_in_a_row_ = 0;
    ++stats_.steps;
    ++control_->steps;
    return true;
  }
  std::vector<GenerationOutput> TakeOutputs() override { return std::exchange(outputs_, {}); }
  StepLoad load() const override {
    StepLoad load{.running = static_cast<uint32_t>(running_.size()),
                  .waiting = static_cast<uint32_t>(waiting_.size())};
    for (const Request& r : waiting_) load.waiting_tokens += r.prompt;
    return load;
  }
  void SetQueued(const QueuedDemand& queued) override { control_->queued_seen = queued.requests; }
  void FillStats(AsyncStats* stats) const override {
    stats->core = stats_;
    stats->running = static_cast<uint32_t>(running_.size());
    stats->waiting = static_cast<uint32_t>(waiting_.size());
    stats->evicted_bytes = control_->evicted_bytes;
    if (control_->link_lost) {
      stats->link.state = LinkState::kLost;
      stats->link.cause = "injected: weights cannot be read";
      stats->core.failed_steps = stats->core.steps_without_weights = 100;
    }
  }
  Status CheckIdle() override {
    if (control_->used_blocks != 0) return BadState("blocks are used by nobody");
    return OkStatus();
  }

 private:
  struct Request {
    RequestId id = 0;
    uint32_t prompt = 0;
    uint32_t left = 0;
    int32_t next = 0;
    TimeNs scheduled_ns = 0;
  };

  GenerationOutput OutputOf(const Request& r) const {
    GenerationOutput output;
    output.id = r.id;
    output.prompt_tokens = r.prompt;
    output.scheduled_ns = r.scheduled_ns;
    return output;
  }
  void End(const Request& r, FinishReason reason, Status error = {}) {
    GenerationOutput output = OutputOf(r);
    output.finished = true;
    output.reason = reason;
    output.error = std::move(error);
    outputs_.push_back(std::move(output));
  }
  std::list<Request>::iterator Generate(std::list<Request>::iterator at) {
    GenerationOutput output = OutputOf(*at);
    output.tokens.push_back({.token = at->next++});
    if (--at->left > 0) {
      outputs_.push_back(std::move(output));
      return std::next(at);
    }
    output.finished = true;
    output.reason = FinishReason::kLength;
    outputs_.push_back(std::move(output));
    --control_->used_blocks;
    return running_.erase(at);
  }
  bool FailStep() {
    ++stats_.failed_steps;
    if (++failed_in_a_row_ % 3 == 0) EndAll(DriverError("injected: step"));
    return true;
  }
  void EndAll(const Status& error) {
    for (std::list<Request>* list : {&waiting_, &running_}) {
      if (list == &running_) control_->used_blocks -= static_cast<uint32_t>(list->size());
      for (const Request& r : *list) End(r, FinishReason::kError, error);
      list->clear();
    }
  }
  // One thread and no other.
  void CheckThread() {
    if (thread_ == std::thread::id()) thread_ = std::this_thread::get_id();
    WEIR_CHECK(thread_ == std::this_thread::get_id(), "the engine's thread");
  }

  std::shared_ptr<FakeControl> control_;
  StepLimits limits_;
  std::list<Request> waiting_;
  std::list<Request> running_;
  std::vector<GenerationOutput> outputs_;
  CoreStats stats_;
  uint32_t failed_in_a_row_ = 0;
  RequestId next_id_ = 1;
  std::thread::id thread_;
};

// Gathers one request's outputs, from any thread; fails the test when the end comes twice.
class Gather final : public OutputSink {
 public:
  void OnOutput(GenerationOutput output, const RequestTimes& times) override {
    {
      const std::lock_guard lock(mutex_);
      WEIR_CHECK(!ended_, "an output after the last one");
      for (const SampledToken& t : output.tokens) tokens_.push_back(t.token);
      ended_ = output.finished;
      times_ = times;
      last_ = std::move(output);
    }
    changed_.notify_all();
    if (on_output) on_output();
  }
  GenerationOutput AwaitEnd() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, std::chrono::seconds(60), [this] { return ended_; })) {
      WEIR_CHECK(false, "no last output after a minute");
    }
    return last_;
  }
  bool ended() const {
    const std::lock_guard lock(mutex_);
    return ended_;
  }
  std::vector<int32_t> tokens() const {
    const std::lock_guard lock(mutex_);
    return tokens_;
  }
  RequestTimes times() const {
    const std::lock_guard lock(mutex_);
    return times_;
  }
  std::function<void()> on_output;

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int32_t> tokens_;
  RequestTimes times_;
  GenerationOutput last_;
  bool ended_ = false;
};

}  // namespace weir::server::testing
