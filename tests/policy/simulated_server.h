// A small continuous-batching server with a known step cost: enough of one to close the loop around
// a policy. Requests arrive, are prefilled in chunks, decode one token a step, and are preempted
// (and computed again) when KV runs out. Deterministic for a seed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <random>
#include <vector>

#include "policy/policy.h"

namespace weir {

struct ServerShape {
  uint32_t layers = 48;
  uint32_t granules_per_layer = 16;  // weights; at most all but two may be away
  uint32_t kv_granules = 200;        // with nothing evicted
  uint64_t granule_bytes = 32u << 20;
  uint32_t blocks_per_granule = 16;
  uint32_t max_running = 512;
  uint32_t chunk_tokens = 2048;  // tokens in a step at most
  StepCost cost;                 // the truth
  StepCost told;                 // what the policy is told
};

struct Load {
  double requests_per_s = 1e9;  // 1e9: everything is there from the start
  int requests = 1000;
  uint32_t prompt_tokens = 512;  // means; drawn uniformly within +-50 %
  uint32_t output_tokens = 256;
};

struct ServerResult {
  double tokens_per_s = 0;  // output tokens
  double seconds = 0;
  double mean_first_token_s = 0;
  uint64_t preemptions = 0;
  uint64_t moves = 0;
  uint32_t last_evicted = 0;
  std::vector<uint32_t> evicted_at_step;
};

class SimulatedServer {
 public:
  SimulatedServer(const ServerShape& shape, Policy& policy) : shape_(shape), policy_(policy) {}

  // Serves |load| to the end, or for at most |most_steps|. State (eviction, clock) is kept, so
  // loads can follow each other.
  ServerResult Serve(const Load& load, uint64_t seed, uint64_t most_steps = 1'000'000) {
    ServerResult result;
    std::vector<Request> requests = Draw(load, seed);
    size_t arrived = 0, finished = 0;
    const double begin_ns = now_ns_;
    double output = 0, first_token_sum = 0;
    for (uint64_t n = 0; n < most_steps && finished < requests.size(); ++n) {
      while (arrived < requests.size() && requests[arrived].arrival_ns + begin_ns <= now_ns_) {
        waiting_.push_back(&requests[arrived++]);
      }
      now_ns_ += ApplyPolicy(&result);
      result.evicted_at_step.push_back(evicted_);
      if (running_.empty() && waiting_.empty()) {  // idle: a step boundary passes now and then
        now_ns_ = std::min(now_ns_ + 5e6, requests[arrived].arrival_ns + begin_ns);
        ++step_;
        continue;
      }
      now_ns_ += RunStep(begin_ns, &output, &first_token_sum, &finished, &result);
      ++step_;
    }
    result.seconds = (now_ns_ - begin_ns) * 1e-9;
    result.tokens_per_s = output / result.seconds;
    result.mean_first_token_s = first_token_sum * 1e-9 / static_cast<double>(requests.size());
    result.last_evicted = evicted_;
    running_.clear();
    waiting_.clear();
    used_blocks_ = 0;
    return result;
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
    bool first_token_out = false;
    uint32_t length() const { return prompt + produced; }
    uint32_t end() const { return prompt + output; }
  };
  static uint32_t BlocksOf(uint32_t tokens) { return (tokens + 15) / 16; }

  static std::vector<Request> Draw(const Load& load, uint64_t seed) {
    std::mt19937_64 random(seed);
    const auto around = [&](uint32_t mean) {
      return static_cast<uint32_t>(mean / 2 + random() % (mean + 1));
    };
    std::exponential_distribution<double> gap(load.requests_per_s * 1e-9);
    std::vector<Request> requests(static_cast<size_t>(load.requests));
    double at = 0;
    for (Request& r : requests) {
      if (load.requests_per_s < 1e9) at += gap(random);
      r.arrival_ns = at;
      r.prompt = around(load.prompt_tokens);
      r.output = std::max(1u, around(load.output_tokens));
    }
    return requests;
  }

  uint32_t TotalBlocks() const { return KvGranules(evicted_) * shape_.blocks_per_granule; }

  double ApplyPolicy(ServerResult* result) {
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
    double tokens = 0;
    for (const Request* r : running_) {
      tokens += r->length();
      s.demand.expected_blocks += BlocksOf(r->end());
    }
    for (const Request* r : waiting_) {
      s.demand.waiting_blocks += BlocksOf(r->length());
      s.demand.expected_blocks += BlocksOf(r->end());
    }
    if (!running_.empty()) s.demand.tokens_per_seq = tokens / static_cast<double>(running_.size());
    s.cost = shape_.told;
    const uint32_t target = policy_.Decide(s).granules_per_layer;
    if (target == evicted_) return 0;
    ++result->moves;
    if (target > evicted_) {  // remaps only: weights are clean
      const uint32_t granules = (target - evicted_) * shape_.layers;
      evicted_ = target;
      return granules * 50e3;
    }
    double ns = 0;  // a granule per layer at a time, as far as KV can shrink
    while (evicted_ > target &&
           KvGranules(evicted_ - 1) * shape_.blocks_per_granule >= used_blocks_) {
      --evicted_;
      ns += shape_.layers *
            (50e3 + static_cast<double>(shape_.granule_bytes) / shape_.cost.link_bytes_per_ns);
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

  void PreemptLast(ServerResult* result) {
    Request* victim = running_.back();
    running_.pop_back();
    used_blocks_ -= victim->blocks;
    victim->blocks = victim->computed = 0;
    waiting_.push_front(victim);
    ++result->preemptions;
  }

  double RunStep(double begin_ns, double* output, double* first_token_sum, size_t* finished,
                 ServerResult* result) {
    uint32_t budget = shape_.chunk_tokens;
    double tokens = 0, context = 0;
    // Running sequences first, oldest first; the youngest give way.
    for (size_t i = 0; i < running_.size(); ++i) {
      Request* r = running_[i];
      while (i < running_.size() && !Grow(r, r->length())) PreemptLast(result);
      if (i >= running_.size()) break;
      const uint32_t take = std::min(budget, r->length() - r->computed);
      budget -= take;
      r->computed += take;
      tokens += take;
      context += static_cast<double>(take) * r->computed;
    }
    while (!waiting_.empty() && budget > 0 && running_.size() < shape_.max_running) {
      Request* r = waiting_.front();
      if (!Grow(r, r->length())) break;
      waiting_.pop_front();
      running_.push_back(r);
      const uint32_t take = std::min(budget, r->length());
      budget -= take;
      r->computed = take;
      tokens += take;
      context += static_cast<double>(take) * take / 2;
    }
    const double bytes =
        static_cast<double>(evicted_) * shape_.layers * static_cast<double>(shape_.granule_bytes);
    // Attention over a chunk reads its KV once, not once a token.
    const double ns = shape_.cost.StepNs(tokens, std::min(context, ContextRead()), bytes);
    for (Request* r : running_) {
      if (r->computed < r->length()) continue;
      ++r->produced;
      *output += 1;
      if (!r->first_token_out) {
        r->first_token_out = true;
        *first_token_sum += now_ns_ + ns - begin_ns - r->arrival_ns;
      }
    }
    std::erase_if(running_, [&](Request* r) {
      if (r->produced < r->output) return false;
      used_blocks_ -= r->blocks;
      ++*finished;
      return true;
    });
    return ns;
  }

  double ContextRead() const {
    double sum = 0;
    for (const Request* r : running_) sum += r->computed;
    return sum;
  }

  ServerShape shape_;
  Policy& policy_;
  double now_ns_ = 0;
  uint64_t step_ = 0;
  uint32_t evicted_ = 0;
  uint32_t used_blocks_ = 0;
  std::vector<Request*> running_;
  std::deque<Request*> waiting_;
};

}  // namespace weir
