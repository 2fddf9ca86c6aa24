// Policy: a pure function from a snapshot of memory, demand and speeds to a decision.
//
// Plain data and the interface; touches no driver, clock, lock or log. D1 same snapshots, same
// decisions. D2 a decision is a wish: the engine clips what breaks an invariant and says so.
// D3 decisions are hysteretic: two opposite moves within the hold-off are a defect of the policy,
// but for weights that come home because the link has failed them.
// Called by the engine thread at step boundaries.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace weir {

// What a step costs, in nanoseconds: fitted at start-up and corrected while serving (cost_model.h).
//   compute(step) = fixed + per_token * dear(tokens) + per_context * context + per_pair * pairs
// A step never takes less than streaming what is evicted: evicted_bytes / link_bytes_per_ns. When
// copying and computing share a resource (the memory's bandwidth, a CPU's cores), each streamed
// byte also slows the compute by copy_interference ns.
struct StepCost {
  double fixed_ns = 0;
  double per_token_ns = 0;
  double per_context_ns = 0;     // of each sequence's context, read once a step
  double link_bytes_per_ns = 0;  // backing tier -> ring, as measured
  double copy_interference = 0;  // ns of compute lost per byte streamed
  // Of each pair of a prompt's token and a token it attends to: arithmetic where decoding reads.
  double per_pair_ns = 0;
  // Tokens whose products take as long as the weights' read that every step pays.
  double free_tokens = 0;

  // A product reads its weights once for so many tokens at most (tiles of that height), so what is
  // read in place crosses the link again for each such part: measured on H200s.
  static constexpr double kTokensARead = 256;

  // Tokens that cost something: nearly none of a few, nearly all beyond free_tokens of many. Where
  // products and read take about as long neither hides behind the other quite.
  double DearTokens(double tokens) const {
    const double free = free_tokens > 0 ? free_tokens : 0;
    const double more = tokens > free ? tokens : free;
    if (!(more > 0)) return 0;
    const double ratio = (tokens > free ? free : tokens) / more;
    return more * std::sqrt(std::sqrt(1 + ratio * ratio * ratio * ratio)) - free;
  }

  double ComputeNs(double tokens, double context, double pairs, double evicted_bytes) const {
    return fixed_ns + per_token_ns * DearTokens(tokens) + per_context_ns * context +
           per_pair_ns * pairs + copy_interference * evicted_bytes;
  }
  // The mean of such steps: the longer of computing and streaming, and more where they are about as
  // long (4.4 % where equal, 1 % where one is a tenth shorter, 0.2 % a fifth). Batches vary from
  // step to step, and what is known is a few percent off, either way; but a step that is early does
  // not make up for one that waits.
  double StepNs(double tokens, double context, double pairs, double evicted_bytes) const {
    const double compute = ComputeNs(tokens, context, pairs, evicted_bytes);
    const double stream = StreamNs(evicted_bytes);
    const double longer = compute > stream ? compute : stream;
    double power = (compute > stream ? stream : compute) / longer;
    if (!(power > 0.4)) return longer;  // by less than a millionth
    for (int i = 0; i < 4; ++i) power *= power;
    return longer * std::sqrt(std::sqrt(std::sqrt(std::sqrt(1 + power))));
  }
  double StreamNs(double evicted_bytes) const {
    return link_bytes_per_ns > 0 ? evicted_bytes / link_bytes_per_ns : 0;
  }
  // How much longer a step takes that reads |bytes| of its weights in place: kernels wait for the
  // link themselves, and nothing hides that.
  double InPlaceNs(double tokens, double bytes) const {
    if (link_bytes_per_ns <= 0) return 0;
    return bytes / link_bytes_per_ns * (tokens > kTokensARead ? tokens / kTokensARead : 1);
  }
};

// How evicted weights are spread (pager/eviction_plan.h).
enum class Placement : uint8_t {
  kStripe,   // the last granules of every layer's segments, copied into a ring ahead of their use
  kLayer,    // whole layers, evenly spaced, copied likewise
  kInPlace,  // the granules of a stripe, read out of the backing copy by the kernels: no ring
};
inline constexpr std::array<std::string_view, 3> kPlacementNames = {"stripe", "layer", "in_place"};

struct WeightsView {
  uint64_t bytes = 0;  // the whole region
  uint32_t layers = 0;
  uint32_t max_granules_per_layer = 0;  // what a stripe plan may take from each layer at most
  uint32_t granules_per_layer = 0;      // evicted now; 0 where whole layers are
  uint32_t ring_slots = 2;              // as configured: what a policy without an opinion asks for
  Placement placement = Placement::kStripe;  // in force
  uint32_t layers_away = 0;                  // whole layers evicted now; 0 under another placement
  // The most whole layers that may be away; any number above the ring's slots is allowed up to it.
  // Of n layers away the ring of R slots takes R back: KV gains n - R.
  uint32_t max_layers_away = 0;
  uint32_t granules_per_whole_layer = 0;  // what evicting one layer more gives, at least
  uint32_t freed_granules = 0;            // evicted now, less the ring
  // The most granules of each layer that can be read in place, all of which KV gains; 0 where the
  // backing copy cannot be read so.
  uint32_t max_in_place_per_layer = 0;
};

struct KvView {
  uint32_t granules_per_extent = 1;
  uint32_t blocks_per_extent = 1;
  uint32_t block_tokens = 16;
  uint32_t mapped_extents = 0;
  uint32_t max_extents = 0;
  uint32_t used_blocks = 0;    // held by running sequences
  uint32_t cached_blocks = 0;  // only the prefix index holds them
  uint32_t free_blocks = 0;
};

struct DemandView {
  uint32_t running = 0;          // sequences holding blocks
  uint32_t decoding = 0;         // of them past their prompt: they wait for their next token
  uint32_t waiting = 0;          // admitted requests without blocks (preempted ones included)
  uint32_t max_running = 0;      // the scheduler's cap (max_num_seqs)
  uint64_t waiting_blocks = 0;   // blocks the waiting ones need for their prompts
  uint64_t expected_blocks = 0;  // blocks all known requests would hold at their expected end
  // Nothing runs and the first waiting request does not fit: blocks it lacks, else 0. A policy that
  // may evict answers with a border that has room for them, whatever its hold-off says (S3).
  uint64_t starved_blocks = 0;
  double tokens_per_seq = 0;        // mean context of a running sequence
  uint64_t preemptions = 0;         // since start
  uint32_t max_batched_tokens = 0;  // the scheduler's cap on tokens in a step; 0: none known
  double asked_per_request = 0;     // tokens the known requests may generate at most, mean
  // Measured, smoothed; 0: not yet.
  double blocks_beside_output = 0;  // blocks a running sequence holds beside those of its output
  // Tokens that a running sequence has generated at a time, mean, over output_per_request, once a
  // load has become steady: 1/2 if all requests are alike, 1 if an end is as likely at any time.
  double output_spread = 0;
  double prefill_per_request = 0;  // prompt tokens computed for a request, preemptions included
  double output_per_request = 0;   // tokens generated for a request that has ended
};

// One policy's view of the world at a step boundary.
struct PolicySnapshot {
  uint64_t step = 0;
  uint64_t now_ns = 0;
  uint64_t granule_bytes = 0;
  uint32_t pool_total = 0;
  uint32_t pool_free = 0;  // neither committed nor owned
  WeightsView weights;
  KvView kv;
  DemandView demand;
  StepCost cost;
  double step_ns = 0;            // smoothed, measured
  double stall_ns_per_step = 0;  // smoothed time in gates, measured
  // The link has dropped to a fraction of what it gave, which cost.link_bytes_per_ns says by now: a
  // hold-off need not keep weights away.
  bool link_slow = false;
};

// What the policy wants from now on. The engine moves towards it at step boundaries: evicting gives
// KV its granules at once; restoring first needs KV to shrink.
struct PolicyDecision {
  Placement placement = Placement::kStripe;
  uint32_t granules_per_layer = 0;  // kStripe, kInPlace: granules to keep away from each layer
  uint32_t layers = 0;              // kLayer: whole layers to keep away, 0 or more than ring_slots
  // At least 2, or 1 with kLayer: a load waits for the slot. kInPlace has no ring.
  uint32_t ring_slots = 2;
  // Weights come home although running sequences hold the KV they need: the last admitted ones are
  // preempted until they fit. Otherwise the border stays where it is as long as that is so.
  bool preempt = false;
  // Prompt tokens a step computes at most, of all sequences; 0: as many as fit.
  uint32_t prompt_tokens = 0;
  std::string reason;  // one clause, for the trace and the log
  // Granules a layer, or whole layers.
  uint32_t amount() const { return placement == Placement::kLayer ? layers : granules_per_layer; }
};

class Policy {
 public:
  virtual ~Policy() = default;
  virtual std::string_view name() const = 0;
  virtual PolicyDecision Decide(const PolicySnapshot& snapshot) = 0;
  // The decision that lends KV the most of all it may come to, for the sake of a request that runs
  // nowhere else (starved_blocks): what fits then is admitted, and is served.
  virtual PolicyDecision Widest(const WeightsView& weights) const {
    PolicyDecision widest;
    widest.granules_per_layer = weights.max_granules_per_layer;
    widest.ring_slots = weights.ring_slots < 2 ? 2 : weights.ring_slots;
    return widest;
  }
  // False: Decide wants the same border whatever the load. Then that bounds what a request may ever
  // hold.
  virtual bool follows_load() const { return true; }
  // Whether a lookup table (pager/eviction_plan.h: an embedding that is no lm_head) is read in
  // place from load on, where it can be. Asked once.
  virtual bool lookup_in_place() const { return false; }
  // Effective parameters, "name = value" lines.
  virtual std::vector<std::pair<std::string, std::string>> Parameters() const = 0;
};

}  // namespace weir
