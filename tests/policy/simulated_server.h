// A small continuous-batching server with a known step cost: enough of one to close the loop around
// a policy. Requests arrive, are prefilled in chunks, decode one token a step, and are preempted
// (and computed again) when KV runs out. Deterministic for a seed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "engine/request_work.h"
#include "policy/cost_model.h"
#include "policy/policy.h"

namespace weir {

// One step as it really is.
struct TrueStep {
  double compute_ns = 0;  // with the copies' share of the memory bandwidth, without waiting
  double step_ns = 0;
};
struct StepWork {
  double tokens = 0;
  double decode_context = 0;   // KV read for tokens that are decoded
  double prefill_context = 0;  // and for the chunks of prompts: of each chunk once
  double pairs = 0;            // tokens of prompts times what each attends to
  double evicted_bytes = 0;
};

struct ServerShape {
  uint32_t layers = 48;
  uint32_t granules_per_layer = 16;  // weights; at most all but two may be away
  uint32_t kv_granules = 200;        // with nothing evicted
  uint64_t granule_bytes = 32u << 20;
  uint32_t blocks_per_granule = 16;
  uint32_t max_running = 512;
  uint32_t chunk_tokens = 2048;  // tokens in a step at most
  std::function<TrueStep(const StepWork&)> truth;
  // What the policy is told: this, for good, or what a cost model learns while serving.
  std::optional<StepCost> told;
  double link_at_start = 380;  // bytes/ns that the cost model begins with
};

// A truth in the form that the policy assumes.
inline std::function<TrueStep(const StepWork&)> LinearTruth(const StepCost& cost) {
  return [cost](const StepWork& w) {
    const double context = w.decode_context + w.prefill_context;
    TrueStep step;
    step.compute_ns = cost.fixed_ns + cost.per_token_ns * w.tokens + cost.per_context_ns * context +
                      cost.copy_interference * w.evicted_bytes;
    step.step_ns = std::max(step.compute_ns, w.evicted_bytes / cost.link_bytes_per_ns);
    return step;
  };
}

struct Lengths {
  double mean = 512;
  double sigma = 0;  // of the logarithm; 0: uniform within +-50 %
};

struct Load {
  double requests_per_s = 1e9;  // 1e9: everything is there from the start
  int requests = 1000;
  Lengths prompt{512, 0};
  Lengths output{256, 0};
};

struct ServerResult {
  double tokens_per_s = 0;  // output tokens
  double seconds = 0;
  double mean_first_token_s = 0;
  double mean_step_ms = 0;  // what a token takes, as long as steps follow each other
  double running = 0;
  double stall_share = 0;
  double mean_evicted = 0;
  uint64_t preemptions = 0;
  uint64_t moves = 0;
  uint32_t last_evicted = 0;
  std::vector<uint32_t> evicted_at_step;
};

class SimulatedServer {
 public:
  SimulatedServer(const ServerShape& shape, Policy& policy) : shape_(shape), policy_(policy) {
    if (!shape_.told) Calibrate();
  }

  // Serves |load| to the end, or for at most |most_steps|, then drops what is left. State
  // (eviction, clock, what was learnt) is kept, so loads can follow each other.
  ServerResult Serve(const Load& load, uint64_t seed, uint64_t most_steps = 1'000'000) {
    Begin();
    std::mt19937_64 random(seed);
    std::exponential_distribution<double> gap(load.requests_per_s * 1e-9);
    double at = now_ns_;
    for (int i = 0; i < load.requests; ++i) {
      if (load.requests_per_s < 1e9) at += gap(random);
      coming_.push_back(Draw(load, at, random));
    }
    for (uint64_t n = 0; n < most_steps && finished_ < static_cast<size_t>(load.requests); ++n) {
      Tick();
    }
    ServerResult result = End();
    coming_.clear();
    running_.clear();
    waiting_.clear();
    used_blocks_ = 0;
    return result;
  }

  // Serves for |seconds|; at least |queue| requests wait at any time. What is left goes on next
  // time.
  ServerResult Flood(const Load& load, uint64_t seed, double seconds, size_t queue = 64) {
    Begin();
    if (!flood_) flood_.emplace(seed);
    const double end = now_ns_ + seconds * 1e9;
    while (now_ns_ < end) {
      while (waiting_.size() < queue) waiting_.push_back(Draw(load, now_ns_, *flood_));
      Tick();
    }
    return End();
  }

  // Serves for |seconds| what comes at load.requests_per_s. What is left goes on next time.
  ServerResult Stream(const Load& load, uint64_t seed, double seconds) {
    Begin();
    std::mt19937_64 random(seed);
    std::exponential_distribution<double> gap(load.requests_per_s * 1e-9);
    const double end = now_ns_ + seconds * 1e9;
    for (double at = now_ns_ + gap(random); at < end; at += gap(random)) {
      coming_.push_back(Draw(load, at, random));
    }
    while (now_ns_ < end) Tick(end);
    return End();
  }

  uint32_t KvGranules(uint32_t evicted) const {
    return shape_.kv_granules + evicted * (shape_.layers - kRing);
  }

 private:
  static constexpr uint32_t kRing = 2;
  struct Request {
    double arrival_ns = 0;
    uint32_t prompt = 0, output = 0;
    uint32_t computed = 0;  // tokens in KV
    uint32_t produced = 0;
    uint32_t blocks = 0;
    double prefilled = 0;
    bool first_token_out = false;
    uint32_t length() const { return prompt + produced; }
    uint32_t end() const { return prompt + output; }
  };
  using Owned = std::unique_ptr<Request>;
  static uint32_t BlocksOf(uint32_t tokens) { return (tokens + 15) / 16; }

  static uint32_t DrawLength(const Lengths& lengths, std::mt19937_64& random) {
    if (lengths.sigma <= 0) {
      const auto mean = static_cast<uint32_t>(lengths.mean);
      return std::max(1u, static_cast<uint32_t>(mean / 2 + random() % (mean + 1)));
    }
    std::normal_distribution<double> normal(
        std::log(lengths.mean) - lengths.sigma * lengths.sigma / 2, lengths.sigma);
    return static_cast<uint32_t>(std::clamp(std::exp(normal(random)), 1.0, 6 * lengths.mean));
  }
  static Owned Draw(const Load& load, double at, std::mt19937_64& random) {
    auto r = std::make_unique<Request>();
    r->arrival_ns = at;
    r->prompt = DrawLength(load.prompt, random);
    r->output = DrawLength(load.output, random);
    return r;
  }

  // As the engine does it: some shapes, before the first request.
  void Calibrate() {
    std::vector<StepSample> samples;
    for (const auto& [sequences, rows, context] : {std::array{1, 1, 16},
                                                   {4, 1, 16},
                                                   {16, 1, 16},
                                                   {64, 1, 16},
                                                   {1, 1, 512},
                                                   {8, 1, 512},
                                                   {64, 1, 512},
                                                   {1, 64, 64},
                                                   {1, 256, 256},
                                                   {1, 1024, 1024},
                                                   {4, 256, 256}}) {
      StepWork w;
      w.tokens = sequences * rows;
      (rows == 1 ? w.decode_context : w.prefill_context) = sequences * context;
      if (rows > 1) w.pairs = w.tokens * (context - (rows - 1) / 2.0);
      samples.push_back(SampleOf(w, shape_.truth(w)));
      if (rows > 1 || context != 16 || sequences > 16) continue;
      w.evicted_bytes = Streamed(shape_.granules_per_layer - 2);
      samples.push_back(SampleOf(w, shape_.truth(w)));
    }
    (void)model_.Calibrate(samples);
    model_.SetLinkSpeed(shape_.link_at_start);
  }
  static StepSample SampleOf(const StepWork& w, const TrueStep& step) {
    StepSample s;
    s.tokens = w.tokens;
    s.context = w.decode_context + w.prefill_context;
    s.pairs = w.pairs;
    s.evicted_bytes = w.evicted_bytes;
    s.stall_ns = step.step_ns - step.compute_ns;
    s.step_ns = step.step_ns;
    return s;
  }

  double Streamed(uint32_t evicted) const {
    return static_cast<double>(evicted) * shape_.layers * static_cast<double>(shape_.granule_bytes);
  }

  void Begin() {
    result_ = {};
    begin_ns_ = now_ns_;
    output_ = first_token_sum_ = 0;
    finished_ = first_tokens_ = 0;
  }
  ServerResult End() {
    ServerResult r = std::move(result_);
    const double ns = std::max(1.0, now_ns_ - begin_ns_);
    const auto steps = static_cast<double>(std::max<size_t>(1, r.evicted_at_step.size()));
    r.seconds = ns * 1e-9;
    r.tokens_per_s = output_ / r.seconds;
    if (first_tokens_ > 0) {
      r.mean_first_token_s = first_token_sum_ * 1e-9 / static_cast<double>(first_tokens_);
    }
    r.mean_step_ms /= steps;
    r.running /= steps;
    r.stall_share /= ns;
    for (const uint32_t e : r.evicted_at_step) r.mean_evicted += e / steps;
    r.last_evicted = evicted_;
    return r;
  }

  void Tick(double end = std::numeric_limits<double>::infinity()) {
    while (!coming_.empty() && coming_.front()->arrival_ns <= now_ns_) {
      waiting_.push_back(std::move(coming_.front()));
      coming_.pop_front();
    }
    now_ns_ += ApplyPolicy();
    result_.evicted_at_step.push_back(evicted_);
    ++step_;
    if (running_.empty() && waiting_.empty()) {  // idle: a step boundary passes now and then
      const double next = coming_.empty() ? end : coming_.front()->arrival_ns;
      now_ns_ = std::min({now_ns_ + 5e6, next, end});
      return;
    }
    now_ns_ += RunStep();
  }

  uint32_t TotalBlocks() const { return KvGranules(evicted_) * shape_.blocks_per_granule; }

  double ApplyPolicy() {
    PolicySnapshot s;
    s.step = step_;
    s.now_ns = static_cast<uint64_t>(now_ns_);
    s.granule_bytes = shape_.granule_bytes;
    s.weights.layers = shape_.layers;
    s.weights.max_granules_per_layer = shape_.granules_per_layer - 2;
    s.weights.granules_per_layer = evicted_;
    s.weights.bytes = shape_.granule_bytes * shape_.layers * shape_.granules_per_layer;
    s.kv.blocks_per_extent = shape_.blocks_per_granule;
    s.kv.mapped_extents = KvGranules(evicted_);
    s.kv.max_extents = KvGranules(shape_.granules_per_layer);
    s.kv.used_blocks = used_blocks_;
    s.kv.free_blocks = TotalBlocks() - used_blocks_;
    s.demand.running = static_cast<uint32_t>(running_.size());
    s.demand.waiting = static_cast<uint32_t>(waiting_.size());
    s.demand.max_running = shape_.max_running;
    s.demand.max_batched_tokens = shape_.chunk_tokens;
    s.demand.blocks_per_seq = work_.blocks_per_seq();
    s.demand.prefill_per_request = work_.prefill_per_request();
    s.demand.output_per_request = work_.output_per_request();
    double tokens = 0;
    double asked = 0;
    for (const Owned& r : running_) {
      tokens += r->length();
      asked += r->output;
      s.demand.expected_blocks += BlocksOf(r->end());
    }
    for (const Owned& r : waiting_) {
      asked += r->output;
      s.demand.waiting_blocks += BlocksOf(r->length());
      s.demand.expected_blocks += BlocksOf(r->end());
    }
    if (asked > 0) {
      s.demand.asked_per_request = asked / static_cast<double>(running_.size() + waiting_.size());
    }
    if (!running_.empty()) s.demand.tokens_per_seq = tokens / static_cast<double>(running_.size());
    s.cost = shape_.told ? *shape_.told : model_.cost();
    const PolicyDecision decision = policy_.Decide(s);
    const uint32_t target = decision.granules_per_layer;
    if (target == evicted_) return 0;
    ++result_.moves;
    if (target > evicted_) {  // remaps only: weights are clean
      const uint32_t granules = (target - evicted_) * shape_.layers;
      evicted_ = target;
      return granules * 50e3;
    }
    while (decision.preempt && running_.size() > 1 &&
           KvGranules(target) * shape_.blocks_per_granule < used_blocks_) {
      Request& last = *running_.back();
      last.prefilled -= std::min<double>(last.prefilled, last.computed);
      PreemptLast();
    }
    double ns = 0;  // a granule per layer at a time, as far as KV can shrink
    while (evicted_ > target &&
           KvGranules(evicted_ - 1) * shape_.blocks_per_granule >= used_blocks_) {
      --evicted_;
      ns +=
          shape_.layers * (50e3 + static_cast<double>(shape_.granule_bytes) / shape_.link_at_start);
    }
    return ns;
  }

  bool Grow(Request* r, uint32_t tokens) {
    const uint32_t need = BlocksOf(tokens);
    if (need > r->blocks) {
      if (used_blocks_ + need - r->blocks > TotalBlocks()) return false;
      used_blocks_ += need - r->blocks;
      r->blocks = need;
    }
    return true;
  }

  void PreemptLast() {
    Owned victim = std::move(running_.back());
    running_.pop_back();
    used_blocks_ -= victim->blocks;
    victim->blocks = victim->computed = 0;
    waiting_.push_front(std::move(victim));
    ++result_.preemptions;
  }

  // Adds |take| tokens of |r| to the step.
  static void Compute(Request* r, uint32_t take, StepWork* work) {
    const bool decodes = take == 1 && r->computed + 1 == r->length() && r->produced > 0;
    r->computed += take;
    if (!decodes) r->prefilled += take;
    work->tokens += take;
    (decodes ? work->decode_context : work->prefill_context) += r->computed;
    if (take > 1) work->pairs += take * (r->computed - (take - 1) / 2.0);
  }

  double RunStep() {
    uint32_t budget = shape_.chunk_tokens;
    StepWork work;
    bool preempted = false;
    // Running sequences first, oldest first; the youngest give way.
    for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
      Request* r = running_[i].get();
      while (i < running_.size() && !Grow(r, r->length())) {
        PreemptLast();
        preempted = true;
      }
      if (i >= running_.size()) break;
      const uint32_t take = std::min(budget, r->length() - r->computed);
      budget -= take;
      Compute(r, take, &work);
    }
    // A block a running sequence stays free for those that run to grow into.
    while (!preempted && !waiting_.empty() && budget > 0 && running_.size() < shape_.max_running) {
      Request* r = waiting_.front().get();
      const auto spare = static_cast<uint32_t>(running_.size());
      if (used_blocks_ + spare + BlocksOf(r->length()) > TotalBlocks()) break;
      Grow(r, r->length());
      running_.push_back(std::move(waiting_.front()));
      waiting_.pop_front();
      const uint32_t take = std::min(budget, r->length());
      budget -= take;
      Compute(r, take, &work);
    }
    work.evicted_bytes = Streamed(evicted_);
    const TrueStep step = shape_.truth(work);
    model_.Observe(SampleOf(work, step));
    result_.mean_step_ms += step.step_ns * 1e-6;
    result_.stall_share += step.step_ns - step.compute_ns;
    result_.running += static_cast<double>(running_.size());
    uint32_t produced = 0;
    for (const Owned& r : running_) {
      if (r->computed < r->length()) continue;
      ++r->produced;
      ++produced;
      output_ += 1;
      if (!r->first_token_out) {
        r->first_token_out = true;
        first_token_sum_ += now_ns_ + step.step_ns - r->arrival_ns;
        ++first_tokens_;
      }
    }
    work_.ObserveStep(used_blocks_, static_cast<uint32_t>(running_.size()), produced);
    std::erase_if(running_, [&](const Owned& r) {
      if (r->produced < r->output) return false;
      used_blocks_ -= r->blocks;
      work_.ObserveEnd(static_cast<uint64_t>(r->prefilled));
      ++finished_;
      return true;
    });
    return step.step_ns;
  }

  ServerShape shape_;
  Policy& policy_;
  CostModel model_;
  RequestWork work_;
  double now_ns_ = 0;
  uint64_t step_ = 0;
  uint32_t evicted_ = 0;
  uint32_t used_blocks_ = 0;
  std::optional<std::mt19937_64> flood_;
  std::deque<Owned> coming_;
  std::vector<Owned> running_;
  std::deque<Owned> waiting_;
  ServerResult result_;  // of the call under way, and its sums
  double begin_ns_ = 0, output_ = 0, first_token_sum_ = 0;
  size_t finished_ = 0, first_tokens_ = 0;
};

}  // namespace weir
