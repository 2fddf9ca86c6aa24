#include "tests/policy/simulated_server.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace weir {
namespace {

// As engine/scheduler.cc keeps blocks free for those that run.
constexpr double kSpareRise = 0.1, kSpareMost = 4, kSpareFall = 1.0 / 512;
// As engine/core.cc smooths what it measures.
constexpr double kSmoothing = 0.1;
constexpr double kLateMove = 0.06;     // as EngineCore's
constexpr double kRestRemapNs = 75e3;  // of a granule while nothing runs
constexpr double kIdleNs = 5e6;        // between looks at an idle server

uint32_t BlocksOf(uint32_t tokens) {
  return (tokens + 15) / 16;
}

double Smooth(double old, double now) {
  return old == 0 ? now : old + kSmoothing * (now - old);
}

uint32_t DrawLength(const Lengths& lengths, std::mt19937_64& random) {
  if (lengths.sigma <= 0) {
    const auto mean = static_cast<uint32_t>(lengths.mean);
    return std::max(1u, static_cast<uint32_t>(mean / 2 + random() % (mean + 1)));
  }
  std::normal_distribution<double> normal(
      std::log(lengths.mean) - lengths.sigma * lengths.sigma / 2, lengths.sigma);
  return static_cast<uint32_t>(std::clamp(std::exp(normal(random)), 1.0, 12 * lengths.mean));
}

StepSample SampleOf(const StepWork& w, const TrueStep& step) {
  return {.tokens = w.tokens,
          .context = w.decode_context + w.prefill_context,
          .evicted_bytes = w.evicted_bytes,
          .stall_ns = step.step_ns - step.compute_ns,
          .step_ns = step.step_ns,
          .pairs = w.pairs,
          .waited_share = step.waited_share};
}

}  // namespace

SimulatedServer::SimulatedServer(const ServerShape& shape, Policy& policy)
    : shape_(shape), policy_(&policy) {
  if (!shape_.told) Calibrate();
}

ServerResult SimulatedServer::Flood(const Load& load, uint64_t seed, double seconds, size_t queue) {
  Begin();
  if (!flood_) flood_.emplace(seed);
  const double end = now_ns_ + seconds * 1e9;
  while (now_ns_ < end) {
    while (waiting_.size() < queue) waiting_.push_back(Draw(load, now_ns_, *flood_));
    Tick();
  }
  return End();
}

ServerResult SimulatedServer::Stream(const Load& load, uint64_t seed, double seconds) {
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

void SimulatedServer::Restart(Policy& policy) {
  for (const Request& r : running_) {
    if (r.produced > 0) work_.ObserveCancelled(static_cast<uint64_t>(r.prefilled), r.produced);
  }
  running_.clear();
  waiting_.clear();
  coming_.clear();
  flood_.reset();
  used_blocks_ = 0;
  border_ = goal_ = {};
  policy_ = &policy;
}

SimulatedServer::Request SimulatedServer::Draw(const Load& load, double at,
                                               std::mt19937_64& random) {
  Request r;
  r.arrival_ns = at;
  r.prompt = DrawLength(load.prompt, random);
  r.output = DrawLength(load.output, random);
  return r;
}

// As the engine does it: some shapes, before the first request.
void SimulatedServer::Calibrate() {
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
    w.evicted_bytes = static_cast<double>(shape_.granules_per_layer - 2) * shape_.layers *
                      static_cast<double>(shape_.granule_bytes);
    samples.push_back(SampleOf(w, shape_.truth(w)));
  }
  (void)model_.Calibrate(samples);
  model_.SetLinkSpeed(shape_.link_at_start);
}

uint32_t SimulatedServer::AwayGranules(const Border& border) const {
  return border.amount *
         (border.placement == Placement::kStripe ? shape_.layers : shape_.granules_per_layer);
}

uint32_t SimulatedServer::FreedGranules(const Border& border) const {
  if (border.amount == 0) return 0;
  return border.placement == Placement::kStripe
             ? border.amount * (shape_.layers - border.slots)
             : (border.amount - border.slots) * shape_.granules_per_layer;
}

uint32_t SimulatedServer::Blocks(const Border& border) const {
  return (shape_.kv_granules + FreedGranules(border)) * shape_.blocks_per_granule;
}

void SimulatedServer::Begin() {
  result_ = {};
  decode_step_ms_.clear();
  begin_ns_ = now_ns_;
  first_token_sum_ = 0;
  first_tokens_ = 0;
}

ServerResult SimulatedServer::End() {
  ServerResult r = result_;
  const double ns = std::max(1.0, now_ns_ - begin_ns_);
  const auto steps = static_cast<double>(std::max<uint64_t>(1, r.steps));
  r.seconds = ns * 1e-9;
  r.tokens_per_s = r.tokens / r.seconds;
  if (first_tokens_ > 0) {
    r.mean_first_token_s = first_token_sum_ * 1e-9 / static_cast<double>(first_tokens_);
  }
  r.mean_step_ms /= steps;
  if (!decode_step_ms_.empty()) {
    const auto at =
        decode_step_ms_.begin() + static_cast<std::ptrdiff_t>(decode_step_ms_.size() * 99 / 100);
    std::nth_element(decode_step_ms_.begin(), at, decode_step_ms_.end());
    r.p99_step_ms = *at;
  }
  r.running /= steps;
  r.stall_share /= ns;
  r.mean_away /= steps * shape_.layers;
  r.last_away = border_.amount;
  return r;
}

void SimulatedServer::Tick(double end) {
  while (!coming_.empty() && coming_.front().arrival_ns <= now_ns_) {
    waiting_.push_back(coming_.front());
    coming_.pop_front();
  }
  ApplyPolicy();
  now_ns_ += MovePart();
  ++step_;
  ++result_.steps;
  result_.mean_away += AwayGranules(border_);
  if (running_.empty() && waiting_.empty()) {  // idle: a step boundary passes now and then
    const double next = coming_.empty() ? end : coming_.front().arrival_ns;
    now_ns_ = std::min({now_ns_ + kIdleNs, next, end});
    return;
  }
  now_ns_ += RunStep();
}

PolicySnapshot SimulatedServer::Snapshot() const {
  PolicySnapshot s;
  const bool stripes = border_.placement == Placement::kStripe;
  s.step = step_;
  s.now_ns = static_cast<uint64_t>(now_ns_);
  s.granule_bytes = shape_.granule_bytes;
  s.weights = {.bytes = shape_.granule_bytes * shape_.layers * shape_.granules_per_layer,
               .layers = shape_.layers,
               .max_granules_per_layer = shape_.granules_per_layer - 2,
               .granules_per_layer = stripes ? border_.amount : 0,
               .placement = border_.placement,
               .layers_away = stripes ? 0 : border_.amount,
               .max_layers_away = shape_.layers,
               .granules_per_whole_layer = shape_.granules_per_layer,
               .freed_granules = FreedGranules(border_)};
  s.kv.blocks_per_extent = shape_.blocks_per_granule;
  s.kv.mapped_extents = Blocks(border_) / shape_.blocks_per_granule;
  s.kv.max_extents = shape_.kv_granules + shape_.layers * shape_.granules_per_layer;
  s.kv.used_blocks = used_blocks_;
  s.kv.free_blocks = Blocks(border_) - used_blocks_;
  s.demand.running = static_cast<uint32_t>(running_.size());
  s.demand.waiting = static_cast<uint32_t>(waiting_.size());
  s.demand.max_running = shape_.max_running;
  s.demand.max_batched_tokens = shape_.chunk_tokens;
  s.demand.blocks_beside_output = work_.blocks_beside_output();
  s.demand.output_spread = work_.output_spread();
  s.demand.prefill_per_request = work_.prefill_per_request();
  s.demand.output_per_request = work_.output_per_request();
  s.cost = shape_.told ? *shape_.told : model_.cost();
  s.step_ns = smoothed_step_ns_;
  s.stall_ns_per_step = smoothed_stall_ns_;
  for (const Request& r : waiting_) s.demand.waiting_blocks += BlocksOf(r.length());
  double tokens = 0;
  for (const Request& r : running_) {
    tokens += r.length();
    if (r.length() - r.computed <= 1) ++s.demand.decoding;
  }
  if (!running_.empty()) s.demand.tokens_per_seq = tokens / static_cast<double>(running_.size());
  if (!policy_->follows_load()) return s;  // the rest takes long, and would not be looked at
  double asked = 0;
  for (const Request& r : running_) {
    asked += r.output;
    s.demand.expected_blocks += BlocksOf(r.end());
  }
  for (const Request& r : waiting_) {
    asked += r.output;
    s.demand.expected_blocks += BlocksOf(r.end());
  }
  if (asked > 0) {
    s.demand.asked_per_request = asked / static_cast<double>(running_.size() + waiting_.size());
  }
  return s;
}

void SimulatedServer::ApplyPolicy() {
  const PolicyDecision decision = policy_->Decide(Snapshot());
  const Border wanted{
      .placement = decision.placement, .amount = decision.amount(), .slots = decision.ring_slots};
  preempt_ = decision.preempt;
  prompt_tokens_ = decision.prompt_tokens;
  if (wanted == goal_) return;
  goal_ = wanted;
  ++result_.moves;
}

double SimulatedServer::MovePart() {
  if (border_ == goal_) {
    move_room_ = 0;
    return 0;
  }
  const auto bytes = static_cast<double>(shape_.granule_bytes);
  const auto copying_ns = [&](const Border& b) {
    return AwayGranules(b) * bytes / shape_.link_at_start;
  };
  const auto stripes = [](const Border& b) {
    return b.amount == 0 || b.placement == Placement::kStripe;
  };
  const bool hidden = stripes(border_) && stripes(goal_) && !running_.empty();
  Border next = goal_;
  const uint32_t left =
      std::max(goal_.amount, border_.amount) - std::min(goal_.amount, border_.amount);
  double late_ns = 0;
  if (hidden && left > 0) {
    // As the engine's moves keep pace: what a step has room for beside its copies, if it takes a
    // little longer.
    const double pace_ns =
        std::max({smoothed_step_ns_ - smoothed_stall_ns_, copying_ns(border_), copying_ns(goal_)});
    late_ns = kLateMove * pace_ns;
    const double granule_ns =
        shape_.remap_ns + (goal_.amount > border_.amount ? bytes / shape_.link_at_start : 0);
    move_room_ += (pace_ns + late_ns - copying_ns(border_)) / (granule_ns * shape_.layers);
    const auto part = static_cast<uint32_t>(std::min<double>(left, std::floor(move_room_)));
    if (part == 0) return late_ns;
    move_room_ -= part;
    next.placement = Placement::kStripe;
    next.slots = goal_.amount > 0 ? goal_.slots : border_.slots;
    next.amount = goal_.amount > border_.amount ? border_.amount + part : border_.amount - part;
  }
  while (preempt_ && running_.size() > 1 && Blocks(next) < used_blocks_) {
    Request& last = running_.back();
    last.prefilled -= std::min<double>(last.prefilled, last.computed);
    PreemptLast();
  }
  if (Blocks(next) < used_blocks_) return 0;
  const double before = AwayGranules(border_), after = AwayGranules(next);
  border_ = next;
  if (hidden) return late_ns;
  return std::abs(after - before) * kRestRemapNs +
         std::max(0.0, before - after) * bytes / shape_.link_at_start;
}

bool SimulatedServer::Grow(Request* r, uint32_t tokens) {
  const uint32_t need = BlocksOf(tokens);
  if (need > r->blocks) {
    if (used_blocks_ + need - r->blocks > Blocks(border_)) return false;
    used_blocks_ += need - r->blocks;
    r->blocks = need;
  }
  return true;
}

void SimulatedServer::PreemptLast() {
  Request victim = running_.back();
  running_.pop_back();
  used_blocks_ -= victim.blocks;
  victim.blocks = victim.computed = 0;
  waiting_.push_front(victim);
  spare_ = std::min(kSpareMost, spare_ + kSpareRise);
  ++result_.preemptions;
}

void SimulatedServer::Schedule(StepWork* work) {
  uint32_t budget = shape_.chunk_tokens;
  uint32_t prompts = prompt_tokens_ > 0 ? std::min(budget, prompt_tokens_) : budget;
  const auto compute = [&](Request* r) {
    const uint32_t left = r->length() - r->computed;
    const uint32_t take = left == 1 ? 1 : std::min({left, budget, prompts});
    if (take == 0) return;
    const bool decodes = left == 1 && r->produced > 0;
    budget -= take;
    if (left > 1) prompts -= take;
    r->computed += take;
    if (!decodes) r->prefilled += take;
    work->tokens += take;
    (decodes ? work->decode_context : work->prefill_context) += r->computed;
    if (take > 1) work->pairs += take * (r->computed - (take - 1) / 2.0);
  };
  spare_ -= spare_ * kSpareFall;
  const uint64_t preemptions = result_.preemptions;
  // Running sequences first, oldest first; the youngest give way.
  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    Request* r = &running_[i];
    while (i < running_.size() && !Grow(r, r->length())) PreemptLast();
    if (i < running_.size()) compute(r);
  }
  if (result_.preemptions != preemptions) return;
  while (!waiting_.empty() && budget > 0 && prompts > 0 && running_.size() < shape_.max_running) {
    const auto spare = static_cast<uint32_t>(spare_ * static_cast<double>(running_.size()));
    const uint32_t length = waiting_.front().length();
    if (used_blocks_ + spare + BlocksOf(length) > Blocks(border_)) break;
    running_.push_back(waiting_.front());
    waiting_.pop_front();
    Grow(&running_.back(), length);
    compute(&running_.back());
  }
}

double SimulatedServer::RunStep() {
  StepWork work;
  Schedule(&work);
  work.evicted_bytes = AwayGranules(border_) * static_cast<double>(shape_.granule_bytes);
  if (border_.placement == Placement::kLayer && border_.slots == 1) {
    work.link_rests = static_cast<double>(border_.amount) / shape_.layers;
  }
  const TrueStep step = shape_.truth(work);
  StepSample sample = SampleOf(work, step);
  sample.streamed_evenly = border_.placement == Placement::kStripe;
  model_.Observe(sample);
  smoothed_step_ns_ = Smooth(smoothed_step_ns_, step.step_ns);
  smoothed_stall_ns_ = Smooth(smoothed_stall_ns_, step.step_ns - step.compute_ns);
  result_.mean_step_ms += step.step_ns * 1e-6;
  if (work.decode_context > 0) decode_step_ms_.push_back(step.step_ns * 1e-6);
  result_.stall_share += step.step_ns - step.compute_ns;
  result_.running += static_cast<double>(running_.size());
  uint32_t produced = 0;
  for (Request& r : running_) {
    if (r.computed < r.length()) continue;
    ++produced;
    if (r.produced++ > 0) continue;
    first_token_sum_ += now_ns_ + step.step_ns - r.arrival_ns;
    ++first_tokens_;
  }
  result_.tokens += produced;
  std::erase_if(running_, [&](const Request& r) {
    if (r.produced < r.output) return false;
    used_blocks_ -= r.blocks;
    work_.ObserveEnd(static_cast<uint64_t>(r.prefilled), r.produced);
    return true;
  });
  uint64_t generated = 0;
  for (const Request& r : running_) generated += r.produced;
  work_.ObserveStep(used_blocks_, static_cast<uint32_t>(running_.size()), generated, produced);
  return step.step_ns;
}

}  // namespace weir
