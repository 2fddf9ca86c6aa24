#include "engine/cli/bench_runner.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <unordered_map>
#include <utility>

#include "engine/cli/logging.h"
#include "engine/cli/signals.h"
#include "engine/cli/size_text.h"

namespace weir::cli {
namespace {

// While nothing runs the policy is asked so often: it may bring weights home.
constexpr TimeNs kIdleSliceNs = 20'000'000;

CoreStats Difference(CoreStats now, const CoreStats& before) {
  now.steps -= before.steps;
  now.failed_steps -= before.failed_steps;
  now.prompt_tokens_computed -= before.prompt_tokens_computed;
  now.output_tokens -= before.output_tokens;
  now.requests_finished -= before.requests_finished;
  now.requests_failed -= before.requests_failed;
  now.border_moves -= before.border_moves;
  now.border_refusals -= before.border_refusals;
  now.compute_ns -= before.compute_ns;
  now.queued_steps -= before.queued_steps;
  now.queued_ns -= before.queued_ns;
  now.idle_ns -= before.idle_ns;
  now.step_ns -= before.step_ns;
  now.waited_ns -= before.waited_ns;
  now.wasted_rows -= before.wasted_rows;
  now.border_ns -= before.border_ns;
  return now;
}

PrefixCacheStats Difference(PrefixCacheStats now, const PrefixCacheStats& before) {
  now.queried_tokens -= before.queried_tokens;
  now.hit_tokens -= before.hit_tokens;
  now.evicted_blocks -= before.evicted_blocks;
  return now;
}

// Represents the engine's counters at one moment.
struct Counters {
  explicit Counters(EngineCore& core)
      : stats(core.stats()),
        scheduler(core.scheduler_stats()),
        pager(core.memory().weights().stats()),
        prefix(core.memory().blocks().prefix_stats()),
        blocks_moved(core.memory().blocks_moved()) {}
  CoreStats stats;
  SchedulerStats scheduler;
  WeightPagerStats pager;
  PrefixCacheStats prefix;
  uint64_t blocks_moved = 0;
};

// Represents one run in progress.
class Runner {
 public:
  Runner(Engine& engine, std::span<const bench::WorkloadRequest> requests,
         const BenchRunOptions& options)
      : engine_(engine), requests_(requests), options_(options) {
    run_.requests.resize(requests_.size());
  }

  Result<BenchRun> Run() {
    EngineCore& core = engine_.core();
    core.set_keep_step_records(true);
    const size_t first_record = core.step_records().size();
    const Counters before(core);
    run_.start_ns = last_ns_ = Now();
    while (done_ < requests_.size() && !Interrupted()) {
      SubmitDue();
      const bool worked = WEIR_TRY(engine_.Step());
      const TimeNs now = Now();
      for (const GenerationOutput& output : engine_.TakeOutputs()) Take(output, now);
      ShowProgress(now);
      if (!worked) WEIR_TRY(AwaitArrival());
    }
    run_.cancelled = Interrupted();
    run_.wall_ns = last_ns_ - run_.start_ns;
    // What an engine that works ahead has still to end.
    while (!run_.cancelled && WEIR_TRY(engine_.Step())) engine_.TakeOutputs();
    Collect(before, first_record);
    return std::move(run_);
  }

 private:
  TimeNs Now() { return engine_.driver().Now(); }

  void SubmitDue() {
    const TimeNs elapsed = Now() - run_.start_ns;
    while (next_ < requests_.size() && requests_[next_].at_ns <= elapsed) Submit(next_++);
    run_.peak_waiting = std::max(run_.peak_waiting, engine_.core().scheduler().waiting());
  }

  void Submit(size_t index) {
    const bench::WorkloadRequest& wanted = requests_[index];
    BenchRecord& record = run_.requests[index];
    record.wanted_tokens = wanted.output_len;
    record.due_ns = run_.start_ns + wanted.at_ns;
    GenerationRequest request;
    request.prompt_tokens = wanted.prompt;
    request.cache_salt = options_.cache_salt;
    request.sampling.max_tokens = wanted.output_len;
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    const Result<RequestId> id = engine_.Submit(std::move(request));
    if (id.ok()) {
      index_of_.emplace(*id, index);
      return;
    }
    record.reason = FinishReason::kError;
    record.error = id.status().ToString();
    End(index);
  }

  void Take(const GenerationOutput& output, TimeNs now) {
    const auto it = index_of_.find(output.id);
    if (it == index_of_.end()) return;
    const size_t index = it->second;
    BenchRecord& r = run_.requests[index];
    if (!output.tokens.empty()) {
      if (r.first_ns == 0) {
        r.first_ns = now;
      } else {
        run_.gaps_ms.push_back(static_cast<double>(now - r.last_ns) / 1e6);
      }
      r.last_ns = last_ns_ = now;
      r.output_tokens += static_cast<uint32_t>(output.tokens.size());
      tokens_ += output.tokens.size();
    }
    r.prompt_tokens = output.prompt_tokens;
    r.cached_tokens = output.cached_tokens;
    if (!output.finished) return;
    r.finished = true;
    r.reason = output.reason;
    if (!output.error.ok()) r.error = output.error.ToString();
    index_of_.erase(it);
    End(index);
  }

  void End(size_t index) {
    ++done_;
    const std::string& error = run_.requests[index].error;
    if (!error.empty()) LogWarn("request " + std::to_string(index + 1) + " failed: " + error);
  }

  // Nothing runs: either a request is still to come, or the engine lost one.
  Status AwaitArrival() {
    if (done_ == requests_.size()) return OkStatus();
    if (next_ == requests_.size()) {
      return BadState("the engine is idle, but " + std::to_string(requests_.size() - done_) +
                      " requests have not ended");
    }
    const TimeNs elapsed = Now() - run_.start_ns;
    const TimeNs due = requests_[next_].at_ns;
    if (due > elapsed) {
      std::this_thread::sleep_for(std::chrono::nanoseconds(std::min(due - elapsed, kIdleSliceNs)));
      run_.idle_ns += Now() - run_.start_ns - elapsed;
    }
    return OkStatus();
  }

  void ShowProgress(TimeNs now) {
    if (options_.progress == nullptr || !options_.progress->Due()) return;
    const Scheduler& scheduler = engine_.core().scheduler();
    const double seconds = static_cast<double>(now - run_.start_ns) / 1e9;
    options_.progress->Update(options_.label + ": " + std::to_string(done_) + "/" +
                              std::to_string(requests_.size()) + " done, " +
                              Fixed(static_cast<double>(tokens_) / std::max(seconds, 1e-3), 1) +
                              " output tokens/s, " + std::to_string(scheduler.running()) +
                              " running, " + std::to_string(scheduler.waiting()) + " waiting");
  }

  void Collect(const Counters& before, size_t first_record) {
    EngineCore& core = engine_.core();
    const Counters after(core);
    run_.core = Difference(after.stats, before.stats);
    run_.preemptions = after.scheduler.preemptions - before.scheduler.preemptions;
    run_.recomputed_tokens = after.scheduler.recomputed_tokens - before.scheduler.recomputed_tokens;
    run_.pager = cli::Difference(after.pager, before.pager);
    run_.prefix = Difference(after.prefix, before.prefix);
    run_.kv_blocks_moved = after.blocks_moved - before.blocks_moved;
    // The engine's peak is of all its time: it is this run's if it rose.
    if (after.stats.peak_running > before.stats.peak_running) {
      run_.peak_running = after.stats.peak_running;
    }
    const std::vector<StepRecord>& records = core.step_records();
    run_.steps.assign(records.begin() + static_cast<std::ptrdiff_t>(first_record), records.end());
    for (const StepRecord& r : run_.steps) {
      run_.peak_running = std::max(run_.peak_running, r.running);
      run_.peak_waiting = std::max(run_.peak_waiting, r.waiting);
    }
  }

  Engine& engine_;
  std::span<const bench::WorkloadRequest> requests_;
  const BenchRunOptions& options_;
  BenchRun run_;
  std::unordered_map<RequestId, size_t> index_of_;
  size_t next_ = 0;
  size_t done_ = 0;
  uint64_t tokens_ = 0;
  TimeNs last_ns_ = 0;
};

}  // namespace

TimeNs BenchRun::FirstTokens() const {
  TimeNs last = 0;
  for (const BenchRecord& r : requests) last = std::max(last, r.first_ns);
  return last;
}

Result<BenchRun> RunBench(Engine& engine, std::span<const bench::WorkloadRequest> requests,
                          const BenchRunOptions& options) {
  return Runner(engine, requests, options).Run();
}

}  // namespace weir::cli
