#include "engine/cli/job.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>
#include <thread>
#include <unordered_map>
#include <utility>

#include "engine/cli/logging.h"
#include "engine/cli/signals.h"
#include "engine/cli/size_text.h"

namespace weir::cli {
namespace {

TimeNs Now() {
  return static_cast<TimeNs>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                 std::chrono::steady_clock::now().time_since_epoch())
                                 .count());
}

// Represents one run in progress.
class Runner {
 public:
  Runner(Engine& engine, std::vector<JobRequest> requests, const JobOptions& options)
      : engine_(engine),
        requests_(std::move(requests)),
        options_(options),
        arrivals_(ArrivalTimes(requests_.size(), options.request_rate, options.arrival_seed)) {
    result_.requests.resize(requests_.size());
  }

  Result<JobResult> Run() {
    const WeightPagerStats before = engine_.core().memory().weights().stats();
    engine_.core().set_keep_step_records(true);
    start_ns_ = last_ns_ = Now();
    while (done_ < requests_.size() && !Interrupted()) {
      SubmitDue();
      const bool worked = WEIR_TRY(engine_.Step());
      const TimeNs now = Now();
      for (const GenerationOutput& output : engine_.TakeOutputs()) Take(output, now);
      ShowProgress(now);
      if (!worked) WEIR_TRY(AwaitArrival());
    }
    result_.cancelled = Interrupted();
    result_.wall_ns = last_ns_ - start_ns_;
    const EngineCore& core = engine_.core();
    result_.core = core.stats();
    result_.preemptions = core.scheduler_stats().preemptions;
    result_.recomputed_tokens = core.scheduler_stats().recomputed_tokens;
    result_.steps = core.step_records();
    Memory& memory = engine_.core().memory();
    result_.pager = Difference(memory.weights().stats(), before);
    result_.prefix = memory.blocks().prefix_stats();
    result_.kv_blocks_moved = memory.blocks_moved();
    return std::move(result_);
  }

 private:
  void SubmitDue() {
    const TimeNs elapsed = Now() - start_ns_;
    while (next_ < requests_.size() && arrivals_[next_] <= elapsed) Submit(next_++);
  }

  void Submit(size_t index) {
    RequestRecord& record = result_.requests[index];
    // Moved, not copied: a request is submitted once.
    GenerationRequest request;
    request.prompt = std::move(requests_[index].text);
    request.add_special_tokens = requests_[index].add_special_tokens;
    request.sampling = requests_[index].sampling;
    record.submitted_ns = Now();
    record.submitted = true;
    Result<RequestId> id = engine_.Submit(std::move(request));
    if (id.ok()) {
      index_of_.emplace(*id, index);
    } else {
      record.reason = FinishReason::kError;
      record.error = id.status().ToString();
      End(index);
    }
  }

  void Take(const GenerationOutput& output, TimeNs now) {
    const auto it = index_of_.find(output.id);
    if (it == index_of_.end()) return;
    const size_t index = it->second;
    RequestRecord& r = result_.requests[index];
    for (const SampledToken& token : output.tokens) {
      if (r.tokens.empty()) {
        r.first_token_ns = now;
      } else {
        r.gaps_ms.push_back(static_cast<double>(now - r.last_token_ns) / 1e6);
      }
      r.last_token_ns = now;
      r.tokens.push_back(token.token);
    }
    r.text += output.text;
    r.prompt_tokens = output.prompt_tokens;
    r.cached_tokens = output.cached_tokens;
    tokens_ += output.tokens.size();
    if (!output.finished) return;
    r.finished = true;
    r.reason = output.reason;
    if (!output.error.ok()) r.error = output.error.ToString();
    index_of_.erase(it);
    last_ns_ = now;
    End(index);
  }

  void End(size_t index) {
    ++done_;
    const RequestRecord& r = result_.requests[index];
    if (!r.error.empty()) {
      LogWarn("request " + std::to_string(index + 1) + " failed: " + r.error);
    }
    if (options_.on_finished) options_.on_finished(index, r);
  }

  // Nothing runs: either a request is still to come, or the engine lost one.
  Status AwaitArrival() {
    if (done_ == requests_.size()) return OkStatus();
    if (next_ == requests_.size()) {
      return BadState("the engine is idle, but " + std::to_string(requests_.size() - done_) +
                      " requests have not ended");
    }
    const TimeNs elapsed = Now() - start_ns_;
    if (arrivals_[next_] > elapsed) {
      const TimeNs wait = std::min<TimeNs>(arrivals_[next_] - elapsed, 20'000'000);
      std::this_thread::sleep_for(std::chrono::nanoseconds(wait));
    }
    return OkStatus();
  }

  void ShowProgress(TimeNs now) {
    if (options_.progress == nullptr || !options_.progress->Due()) return;
    const std::vector<StepRecord>& steps = engine_.core().step_records();
    if (steps.empty()) return;
    const StepRecord& s = steps.back();
    const double seconds = static_cast<double>(now - start_ns_) / 1e9;
    options_.progress->Update(
        options_.label + ": " + std::to_string(done_) + "/" + std::to_string(requests_.size()) +
        " done, " + Fixed(static_cast<double>(tokens_) / std::max(seconds, 1e-3), 1) +
        " tokens/s, " + std::to_string(s.running) + " running, " + std::to_string(s.waiting) +
        " waiting, KV " + std::to_string(s.kv_used) + "/" + std::to_string(s.kv_capacity) +
        " blocks, weights away " + HumanSize(s.evicted_granules * engine_.info().granule_bytes));
  }

  Engine& engine_;
  std::vector<JobRequest> requests_;
  const JobOptions& options_;
  std::vector<TimeNs> arrivals_;
  JobResult result_;
  std::unordered_map<RequestId, size_t> index_of_;
  size_t next_ = 0;
  size_t done_ = 0;
  uint64_t tokens_ = 0;
  TimeNs start_ns_ = 0;
  TimeNs last_ns_ = 0;
};

}  // namespace

std::vector<TimeNs> ArrivalTimes(size_t requests, double rate, uint64_t seed) {
  std::vector<TimeNs> times(requests, 0);
  if (rate <= 0) return times;
  // The standard fixes the generator but not the distributions: the gaps are made here.
  std::mt19937_64 random(seed);
  double at = 0;
  for (TimeNs& t : times) {
    t = static_cast<TimeNs>(at * 1e9);
    const double uniform = static_cast<double>(random() >> 11U) * 0x1p-53;
    at += -std::log1p(-uniform) / rate;
  }
  return times;
}

Result<std::vector<JobRequest>> MakeRequests(const Engine& engine,
                                             const std::vector<PromptEntry>& prompts,
                                             const SamplingParams& defaults) {
  std::vector<JobRequest> requests;
  requests.reserve(prompts.size());
  for (const PromptEntry& entry : prompts) {
    JobRequest r;
    r.group = entry.group;
    r.sampling = defaults;
    if (entry.max_tokens != 0) r.sampling.max_tokens = entry.max_tokens;
    if (engine.chat_template() != nullptr) {
      Result<std::string> text = engine.ApplyChatTemplate(MessagesJson(entry.system, entry.prompt));
      if (!text.ok()) {
        return text.status().WithContext("prompt of line " + std::to_string(entry.line));
      }
      r.text = std::move(*text);
      r.add_special_tokens = false;
    } else {
      r.text = entry.system.empty() ? entry.prompt : entry.system + "\n\n" + entry.prompt;
    }
    requests.push_back(std::move(r));
  }
  return requests;
}

Result<JobResult> RunJob(const EngineOptions& options, const std::vector<PromptEntry>& prompts,
                         const SamplingParams& sampling, const JobOptions& job) {
  const TimeNs start = Now();
  const std::unique_ptr<Engine> engine = WEIR_TRY(Engine::Open(
      options, job.progress != nullptr ? job.progress->ForLoading() : Engine::ProgressFn()));
  const TimeNs opened = Now();
  LogInfo(job.label + ": opened in " + Fixed(static_cast<double>(opened - start) / 1e9, 2) +
          " s; " + engine->info().device + ", budget " + HumanSize(engine->info().budget_bytes));
  std::vector<JobRequest> requests = WEIR_TRY(MakeRequests(*engine, prompts, sampling));
  JobResult result = WEIR_TRY(Runner(*engine, std::move(requests), job).Run());
  result.label = job.label;
  result.policy = options.policy;
  result.info = engine->info();
  result.open_ns = opened - start;
  if (!result.cancelled) {
    // Every block is free or cached again, and the weights are what was loaded.
    WEIR_TRY(engine->core().CheckIntegrity());
  }
  if (job.progress != nullptr) job.progress->Clear();
  return result;
}

}  // namespace weir::cli
