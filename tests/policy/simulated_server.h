// A small continuous-batching server with a known step cost: enough of one to close the loop around
// a policy. Requests arrive, are prefilled in chunks, decode one token a step, and are preempted
// (and computed again) when KV runs out; the border moves in parts, as the engine moves it.
// Deterministic for a seed.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
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
  double waited_share = 1;  // of the gates, where it stood at any
};
struct StepWork {
  double tokens = 0;
  double decode_context = 0;   // KV read for tokens that are decoded
  double prefill_context = 0;  // and for the chunks of prompts: of each chunk once
  double pairs = 0;            // tokens of prompts times what each attends to
  double evicted_bytes = 0;
  double link_rests = 0;  // share of the compute in which nothing is copied (a ring of one slot)
};

struct ServerShape {
  uint32_t layers = 48;
  uint32_t granules_per_layer = 16;  // weights; stripes leave at least two of them at home
  uint32_t kv_granules = 200;        // with nothing evicted
  uint64_t granule_bytes = 32u << 20;
  uint32_t blocks_per_granule = 16;
  uint32_t max_running = 512;
  uint32_t chunk_tokens = 2048;  // tokens in a step at most
  double remap_ns = 90e3;        // of a granule, beside running kernels and between copies
  std::function<TrueStep(const StepWork&)> truth;
  // What the policy is told: this, for good, or what a cost model learns while serving.
  std::optional<StepCost> told;
  double link_at_start = 380;  // bytes/ns that the cost model begins with
};

struct Lengths {
  double mean = 512;
  double sigma = 0;  // of the logarithm; 0: uniform within +-50 %
};

struct Load {
  double requests_per_s = 60;
  Lengths prompt{512, 0};
  Lengths output{256, 0};
};

struct ServerResult {
  double tokens = 0;  // generated
  double tokens_per_s = 0;
  double seconds = 0;
  double mean_first_token_s = 0;
  double mean_step_ms = 0;  // what a token takes, as long as steps follow each other
  double p99_step_ms = 0;   // of steps that somebody who decodes waited for
  double running = 0;
  double stall_share = 0;
  double mean_away = 0;  // granules, all layers together, over those of one layer each
  uint64_t preemptions = 0;
  uint64_t moves = 0;  // decisions for another border
  uint64_t steps = 0;
  uint32_t last_away = 0;  // granules a layer, or whole layers
};

class SimulatedServer {
 public:
  SimulatedServer(const ServerShape& shape, Policy& policy);

  // Serves for |seconds|; |queue| requests wait at any time. The requests follow from |seed| and
  // go on from call to call. What is left goes on next time.
  ServerResult Flood(const Load& load, uint64_t seed, double seconds, size_t queue = 64);
  // Serves for |seconds| what comes at load.requests_per_s. What is left goes on next time.
  ServerResult Stream(const Load& load, uint64_t seed, double seconds);

  // Every request is cancelled, weights come home, and |policy| decides from now on. What was
  // learnt of steps and requests stays. The next flood begins with its first request.
  void Restart(Policy& policy);

 private:
  struct Request {
    double arrival_ns = 0;
    uint32_t prompt = 0, output = 0;
    uint32_t computed = 0;  // tokens in KV
    uint32_t produced = 0;
    uint32_t blocks = 0;
    double prefilled = 0;
    uint32_t length() const { return prompt + produced; }
    uint32_t end() const { return prompt + output; }
  };
  // What is away.
  struct Border {
    Placement placement = Placement::kStripe;
    uint32_t amount = 0;  // granules a layer, or whole layers
    uint32_t slots = 2;
    bool operator==(const Border& o) const {
      return amount == o.amount && (amount == 0 || (placement == o.placement && slots == o.slots));
    }
  };

  static Request Draw(const Load& load, double at, std::mt19937_64& random);
  void Calibrate();
  uint32_t AwayGranules(const Border& border) const;
  uint32_t FreedGranules(const Border& border) const;
  uint32_t Blocks(const Border& border) const;

  void Begin();
  ServerResult End();
  void Tick(double end = std::numeric_limits<double>::infinity());
  PolicySnapshot Snapshot() const;
  void ApplyPolicy();
  // What a step has room for of the move to the goal; how late that makes it, or the time it takes
  // at rest.
  double MovePart();
  bool Grow(Request* r, uint32_t tokens);
  void PreemptLast();
  void Schedule(StepWork* work);
  double RunStep();

  ServerShape shape_;
  Policy* policy_;
  CostModel model_;
  RequestWork work_;
  double now_ns_ = 0;
  uint64_t step_ = 0;
  Border border_, goal_;
  double move_room_ = 0;  // granules a layer that steps have had room for, not moved yet
  bool preempt_ = false;
  uint32_t prompt_tokens_ = 0;  // of a step at most; 0: as many as fit
  uint32_t used_blocks_ = 0;
  double spare_ = 0;  // blocks kept free at an admission, for each running request
  double smoothed_step_ns_ = 0, smoothed_stall_ns_ = 0;
  std::optional<std::mt19937_64> flood_;
  std::deque<Request> coming_;
  std::vector<Request> running_;
  std::deque<Request> waiting_;
  ServerResult result_;  // of the call under way, and its sums
  std::vector<double> decode_step_ms_;
  double begin_ns_ = 0, first_token_sum_ = 0;
  size_t first_tokens_ = 0;
};

}  // namespace weir
