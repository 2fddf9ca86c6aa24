#include "bench/engine/overload_run.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "engine/bench/arrivals.h"

namespace weir::overload {
namespace {

constexpr uint32_t kQueue = 64;  // requests that wait in a flood
// Between looks at an idle engine.
constexpr std::chrono::microseconds kIdle{50};

double Ms(TimeNs from, TimeNs to) {
  return to > from ? static_cast<double>(to - from) * 1e-6 : 0;
}

}  // namespace

LoadRun::LoadRun(Engine& engine, const bench::Workload& workload, uint64_t salt, size_t first)
    : engine_(engine), workload_(workload), salt_(salt), next_(first) {
  engine_.core().set_keep_step_records(true);
  Mark();
}

void LoadRun::Mark() {
  EngineCore& core = engine_.core();
  begin_ = engine_.driver().Now();
  tokens_ = ended_ = 0;
  first_record_ = core.step_records().size();
  core_ = core.stats();
  pager_ = core.memory().weights().stats();
  preemptions_ = core.scheduler_stats().preemptions;
  latencies_.clear();
}

Status LoadRun::Submit(TimeNs due, size_t phase) {
  const bench::WorkloadRequest& wanted = workload_.requests[next_++ % workload_.requests.size()];
  GenerationRequest request;
  request.prompt_tokens = wanted.prompt;
  request.cache_salt = salt_ + next_ / workload_.requests.size();
  request.sampling.max_tokens = wanted.output_len;
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  const RequestId id = WEIR_TRY(engine_.Submit(std::move(request)));
  live_[id] = {.due = due, .phase = phase};
  return OkStatus();
}

void LoadRun::Note(const GenerationOutput& out, TimeNs now) {
  const auto it = live_.find(out.id);
  if (it == live_.end()) return;
  Live& live = it->second;
  if (latencies_.size() <= live.phase) latencies_.resize(live.phase + 1);
  Latencies& to = latencies_[live.phase];
  if (!out.tokens.empty()) {
    if (live.first == 0) {
      live.first = now;
      to.ttft.push_back(Ms(live.due, now));
    } else {
      to.itl.push_back(Ms(live.last, now));
    }
    live.last = now;
    live.tokens += out.tokens.size();
    tokens_ += out.tokens.size();
  }
  if (!out.finished) return;
  ++ended_;
  if (live.tokens > 1) {
    to.tpot.push_back(Ms(live.first, live.last) / static_cast<double>(live.tokens - 1));
  }
  live_.erase(it);
}

Status LoadRun::StepOnce(bool* worked) {
  *worked = WEIR_TRY(engine_.Step());
  const TimeNs now = engine_.driver().Now();
  for (const GenerationOutput& out : engine_.TakeOutputs()) {
    if (!out.error.ok()) return out.error;
    Note(out, now);
  }
  return OkStatus();
}

Status LoadRun::Flood(double seconds) {
  const TimeNs end = engine_.driver().Now() + static_cast<TimeNs>(seconds * 1e9);
  bool worked = false;
  while (engine_.driver().Now() < end) {
    while (engine_.core().scheduler().waiting() < kQueue) {
      WEIR_TRY(Submit(engine_.driver().Now(), 0));
    }
    WEIR_TRY(StepOnce(&worked));
  }
  return OkStatus();
}

Status LoadRun::Stream(double requests_per_s, double seconds, uint64_t seed, size_t phase) {
  bench::ArrivalOptions arrivals;
  arrivals.request_rate = requests_per_s;
  arrivals.seed = seed;
  const auto expected = static_cast<size_t>(std::max(1.0, requests_per_s * seconds));
  const std::vector<TimeNs> due = bench::ArrivalTimes(expected, arrivals);
  const TimeNs begin = engine_.driver().Now();
  const TimeNs end = begin + static_cast<TimeNs>(seconds * 1e9);
  size_t next = 0;
  for (TimeNs now = begin; now < end; now = engine_.driver().Now()) {
    for (; next < due.size() && begin + due[next] <= now; ++next) {
      WEIR_TRY(Submit(begin + due[next], phase));
    }
    bool worked = false;
    WEIR_TRY(StepOnce(&worked));
    if (!worked) std::this_thread::sleep_for(kIdle);
  }
  return OkStatus();
}

Result<Figures> LoadRun::Take() {
  EngineCore& core = engine_.core();
  const CoreStats& now = core.stats();
  const WeightPagerStats& pager = core.memory().weights().stats();
  Figures f;
  f.seconds = static_cast<double>(engine_.driver().Now() - begin_) * 1e-9;
  f.tokens_per_s = static_cast<double>(tokens_) / f.seconds;
  f.requests_per_s = static_cast<double>(ended_) / f.seconds;
  f.prompt_tokens_per_s =
      static_cast<double>(now.prompt_tokens_computed - core_.prompt_tokens_computed) / f.seconds;
  f.preemptions = core.scheduler_stats().preemptions - preemptions_;
  f.border_moves = now.border_moves - core_.border_moves;
  f.border_refusals = now.border_refusals - core_.border_refusals;
  f.border_ms = static_cast<double>(now.border_ns - core_.border_ns) * 1e-6;
  f.streamed_gb_s =
      static_cast<double>(pager.bytes_copied - pager_.bytes_copied) / f.seconds * 1e-9;
  std::vector<double> ms;
  double time = 0;
  for (size_t i = first_record_; i < core.step_records().size(); ++i) {
    const StepRecord& r = core.step_records()[i];
    ms.push_back(static_cast<double>(r.step_ns) * 1e-6);
    time += ms.back();
    const bool prompts = r.rows > r.running;
    (prompts ? f.prompt_step_ms : f.decode_step_ms) += ms.back();
    f.prompt_steps += prompts ? 1 : 0;
    f.running += r.running * ms.back();
    f.away_gib += r.evicted_granules * ms.back();
    f.kv_blocks += r.kv_capacity * ms.back();
  }
  if (ms.empty()) return BadState("no step ended while it was measured; measure for longer");
  f.steps = ms.size();
  f.running /= time;
  f.away_gib *= static_cast<double>(engine_.info().granule_bytes) / (1 << 30) / time;
  f.kv_blocks /= time;
  f.step_ms = time / static_cast<double>(ms.size());
  f.prompt_step_ms /= static_cast<double>(std::max<uint64_t>(1, f.prompt_steps));
  f.decode_step_ms /= static_cast<double>(std::max<uint64_t>(1, f.steps - f.prompt_steps));
  std::sort(ms.begin(), ms.end());
  f.step_p99_ms = ms[ms.size() * 99 / 100];
  f.waited_share =
      static_cast<double>(pager.faults - pager_.faults) /
      static_cast<double>(std::max<uint64_t>(1, pager.gate_arrivals - pager_.gate_arrivals));
  f.stall_share = static_cast<double>(pager.stall_ns - pager_.stall_ns) * 1e-6 / time;
  return f;
}

Status LoadRun::Stop() {
  for (const auto& [id, live] : live_) WEIR_TRY(engine_.Cancel(id));
  live_.clear();
  while (WEIR_TRY(engine_.Step())) (void)engine_.TakeOutputs();
  (void)engine_.TakeOutputs();
  return OkStatus();
}

}  // namespace weir::overload
