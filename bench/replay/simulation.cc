#include "bench/replay/simulation.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/core.h"
#include "engine/trace_metadata.h"
#include "policy/registry.h"
#include "vmm/sim_driver.h"
#include "vmm/trace.h"
#include "vmm/trace_file.h"

namespace weir::replay {
namespace {

constexpr uint64_t kIdleTurnNs = 5'000'000;  // between looks at an idle engine
// A step's arithmetic lies between its gates but for the last layer's norm and the logits; the
// share of the whole that is behind the last gate.
constexpr double kTailShare = 0.05;

// Stands in for the model: passes the gates in order, takes the time that was fitted, and knows the
// next token in closed form. It reads and writes no memory.
class ReplayCompute final : public Compute {
 public:
  ReplayCompute(SimDriver& driver, const StepFit& fit, const ComputeLimits& limits, uint32_t gates)
      : driver_(driver), fit_(fit), limits_(limits), gates_(gates) {}

  const ComputeLimits& limits() const override { return limits_; }
  Status Scrub(std::span<const BlockId>) override { return OkStatus(); }
  Status Submit(const StepBatch& batch, StepGates& gates) override {
    outcome_ = {};
    const TimeNs start = driver_.Now();
    const double whole = fit_.Ns(batch.rows(), static_cast<double>(batch.context_tokens()),
                                 static_cast<double>(streamed_bytes)) +
                         StepCost{.link_bytes_per_ns = link_bytes_per_ns}.InPlaceNs(
                             batch.rows(), static_cast<double>(in_place_bytes));
    const double each = whole * (1 - kTailShare) / std::max<uint32_t>(1, gates_);
    double done = 0;
    for (uint32_t g = 0; g < gates_; ++g) {
      WEIR_TRY(gates.Arrive(g));
      const double next = done + each;
      driver_.AdvanceBy(static_cast<uint64_t>(next) - static_cast<uint64_t>(done));
      done = next;
      gates.Depart(g);
    }
    driver_.AdvanceBy(static_cast<uint64_t>(whole - std::min(whole, done)));
    next_.clear();
    for (const StepSequence& s : batch.sequences) {
      if (!s.wants_logits) continue;
      const uint32_t row = s.first_row + s.rows - 1;
      next_.push_back(NextToken(batch.tokens[row], static_cast<uint64_t>(batch.positions[row])));
    }
    outcome_.compute_ns = driver_.Now() - start;
    SampleOnHost(
        batch, sampler_, [this](uint32_t row) { return Logits(row); }, &outcome_);
    return OkStatus();
  }
  Status Collect(StepOutcome* outcome) override {
    *outcome = std::move(outcome_);
    return OkStatus();
  }
  Result<std::vector<float>> ReadLogits(uint32_t row) override {
    const std::span<const float> have = Logits(row);
    return std::vector<float>(have.begin(), have.end());
  }
  uint64_t RecordedPointersDigest() const override { return 1; }
  uint32_t recordings() const override { return 1; }
  std::string description() const override { return "replayed in simulation"; }

  uint64_t streamed_bytes = 0;  // of the last step; those of the coming one are about the same
  uint64_t in_place_bytes = 0;  // of the weights: in the coming step
  double link_bytes_per_ns = 0;

 private:
  std::span<float> Logits(uint32_t row) {
    logits_.assign(kVocab, 0.0F);
    logits_[static_cast<size_t>(next_[row])] = 1.0F;
    return logits_;
  }

  SimDriver& driver_;
  const StepFit& fit_;
  const ComputeLimits limits_;
  const uint32_t gates_;
  std::vector<int32_t> next_;
  std::vector<float> logits_;
  Sampler sampler_;
  StepOutcome outcome_;
};

// Decides what was decided at this time of the recorded run.
class RecordedPolicy final : public Policy {
 public:
  RecordedPolicy(const RecordedWorkload& workload, SimDriver& driver, double rate)
      : w_(workload), driver_(driver), rate_(rate) {}
  std::string_view name() const override { return "recorded"; }
  PolicyDecision Decide(const PolicySnapshot& snapshot) override {
    PolicyDecision decision;
    decision.placement = snapshot.weights.placement;
    decision.granules_per_layer = snapshot.weights.granules_per_layer;
    decision.layers = snapshot.weights.layers_away;
    decision.ring_slots = snapshot.weights.ring_slots;
    decision.reason = "as recorded";
    const double now =
        static_cast<double>(driver_.Now() - begin_ns) * rate_ + static_cast<double>(w_.begin_ns);
    for (; begin_ns != 0 && next_ < w_.decisions.size() &&
           static_cast<double>(w_.decisions[next_].time_ns) <= now;
         ++next_) {
      wanted_ = w_.decisions[next_];
    }
    if (wanted_.time_ns != 0) {
      const bool layers = wanted_.placement == Placement::kLayer;
      decision.placement = wanted_.placement;
      decision.granules_per_layer = layers ? 0 : wanted_.amount;
      decision.layers = layers ? wanted_.amount : 0;
      decision.ring_slots = wanted_.ring_slots;
    }
    if (snapshot.demand.starved_blocks == 0) return decision;
    // S3: the recorded decision may be too little for a run that went another way.
    if (decision.placement == Placement::kLayer) {
      if (decision.layers > snapshot.weights.layers_away) return decision;
      decision.layers = std::min(snapshot.weights.max_layers_away,
                                 std::max(snapshot.weights.layers_away, decision.ring_slots) + 1);
      decision.reason = "a request does not fit where the recorded run had room";
    } else if (decision.granules_per_layer <= snapshot.weights.granules_per_layer) {
      decision.granules_per_layer = std::min(decision.placement == Placement::kInPlace
                                                 ? snapshot.weights.max_in_place_per_layer
                                                 : snapshot.weights.max_granules_per_layer,
                                             snapshot.weights.granules_per_layer + 1);
      decision.reason = "a request does not fit where the recorded run had room";
    }
    return decision;
  }
  std::vector<std::pair<std::string, std::string>> Parameters() const override { return {}; }

  uint64_t begin_ns = 0;  // virtual time of the first arrival; 0: not yet

 private:
  const RecordedWorkload& w_;
  SimDriver& driver_;
  const double rate_;
  size_t next_ = 0;
  RecordedDecision wanted_;
};

WeightLayout LayoutOf(const trace_tool::TraceMeta& meta) {
  WeightLayout layout;
  for (const auto& segments : meta.layers) {
    auto& layer = layout.layers.emplace_back();
    for (const trace_tool::SegmentSpan& s : segments) {
      layer.push_back({s.offset, s.bytes});
      layout.region_bytes = std::max(layout.region_bytes, s.offset + s.bytes);
    }
  }
  const auto region = meta.regions.find(static_cast<uint64_t>(meta.weights_region));
  if (region != meta.regions.end()) {
    layout.region_bytes = std::max(layout.region_bytes, region->second.bytes);
  }
  return layout;
}

class Run {
 public:
  Run(const RecordedWorkload& w, const trace_tool::TraceMeta& meta,
      const SimulationOptions& options)
      : w_(w), meta_(meta), options_(options) {}
  ~Run() {
    core_.reset();
    compute_.reset();
    memory_.reset();
    if (GetTracer() == tracer_.get()) SetTracer(nullptr);
  }

  Result<SimulationResult> Go() {
    WEIR_TRY(Build());
    WEIR_TRY(Serve());
    result_.end_ns = driver_->Now();
    result_.violations = driver_->violations();
    core_.reset();
    compute_.reset();
    memory_.reset();  // its plans belong into the trace
    WEIR_TRY(Drain(/*all=*/true));
    WEIR_TRY(file_->Close(tracer_->metadata()));
    return result_;
  }

 private:
  Status Build() {
    SimDriver::Options sim;
    sim.device = "replayed in simulation";
    sim.granularity_bytes = std::min<uint64_t>(4096, meta_.granule_bytes);
#ifndef WEIR_VALIDATE
    sim.content_bytes = 64;  // nobody reads what is in the memory, unless stripes are verified
#endif
    const double rate = w_.link_bytes_per_s > 0       ? w_.link_bytes_per_s
                        : meta_.link_bytes_per_ns > 0 ? meta_.link_bytes_per_ns * 1e9
                                                      : 20e9;
    sim.host_link.in_bytes_per_s = sim.host_link.out_bytes_per_s = rate * options_.link;
    sim.copy_latency_ns = 0;  // it is in the measured rate
    sim.map_ns = sim.unmap_ns = static_cast<TimeNs>(w_.op_ns);
    driver_ = WEIR_TRY(SimDriver::Create(sim));

    engine_.model = meta_.model;
    engine_.policy = options_.policy;
    engine_.max_num_seqs = static_cast<uint32_t>(meta_.max_num_seqs != 0 ? meta_.max_num_seqs : 64);
    engine_.max_num_batched_tokens =
        static_cast<uint32_t>(meta_.max_batched_tokens != 0 ? meta_.max_batched_tokens : 512);
    engine_.enable_prefix_caching = meta_.prefix_caching;
    engine_.trace.command = options_.command;
    engine_.trace.version = meta_.version;
    engine_.trace.commit = meta_.commit;
    uint64_t longest = meta_.max_model_len;
    if (longest == 0) {
      for (const auto& q : w_.requests) {
        longest = std::max(longest, q.prompt_tokens + std::max(q.output_tokens, q.max_tokens));
      }
    }
    info_.max_model_len = static_cast<uint32_t>(std::min<uint64_t>(longest, 1U << 24));

    tracer_ = std::make_unique<Tracer>(
        Tracer::Options{.ring_records = 1U << 18, .clock = [this] { return driver_->Now(); }});
    SetTracer(tracer_.get());
    file_ = WEIR_TRY(TraceFileWriter::Create(options_.trace_path, driver_->Now(), tracer_->mask(),
                                             tracer_->metadata()));
    WEIR_TRY(BuildMemory());
    return BuildCore();
  }

  Status BuildMemory() {
    MemoryOptions m;
    m.granule_bytes = meta_.granule_bytes;
    m.hbm_budget_bytes = options_.budget_bytes != 0
                             ? options_.budget_bytes
                             : meta_.pool_granules.at(0) * meta_.granule_bytes;
    m.scratch_bytes = std::max<uint64_t>(1, meta_.scratch_bytes);
    m.kv_block_bytes = meta_.block_bytes;
    m.weights = LayoutOf(meta_);
    m.prefix_caching = meta_.prefix_caching;
    if (meta_.ring_slots != 0) m.ring_slots = static_cast<uint32_t>(meta_.ring_slots);
    // The least that a start of the engine leaves to KV (engine.cc).
    m.kv_least_blocks = (std::min<uint64_t>(info_.max_model_len, 256) + 15) / 16;
    auto made = Memory::Create(*driver_, m);
    if (!made.ok() && made.status().code() == StatusCode::kNoMemory) {
      m.kv_least_blocks = 1;
      made = Memory::Create(*driver_, m);
    }
    memory_ = WEIR_TRY(std::move(made));
    info_.granule_bytes = m.granule_bytes;
    info_.kv_block_bytes = m.kv_block_bytes;
    info_.scratch_bytes = meta_.scratch_bytes;
    info_.device = "replayed in simulation";
    info_.driver = driver_->properties().name;
    WEIR_TRY(memory_->weights().Seal());
    return memory_->MeasureLink();
  }

  Status BuildCore() {
    const ComputeLimits limits{.max_rows = engine_.max_num_batched_tokens,
                               .max_sequences = engine_.max_num_seqs,
                               .max_context = info_.max_model_len,
                               .vocab_size = kVocab};
    compute_ = std::make_unique<ReplayCompute>(*driver_, w_.fit, limits,
                                               memory_->weights().layout().gates());
    if (options_.policy == "recorded") {
      auto recorded = std::make_unique<RecordedPolicy>(w_, *driver_, options_.rate);
      recorded_ = recorded.get();
      policy_ = std::move(recorded);
    } else {
      policy_ = WEIR_TRY(MakePolicy(options_.policy));
    }
    CoreOptions core;
    core.scheduler.max_batched_tokens = engine_.max_num_batched_tokens;
    core.scheduler.max_prefill_chunk = engine_.max_num_batched_tokens;
    core.scheduler.max_sequences = engine_.max_num_seqs;
    core.max_model_len = info_.max_model_len;
    compute_->link_bytes_per_ns = memory_->link_bytes_per_ns();
    core_ = std::make_unique<EngineCore>(*driver_, *memory_, *compute_, *policy_, core);
    WEIR_TRY(core_->Calibrate());
    WEIR_TRY(tracer_->SetMetadata(TraceMetadata(engine_, info_, *memory_, *policy_)));
    return Drain(/*all=*/true);
  }

  void Arrive(const RecordedRequest& q) {
    CoreRequest request;
    request.prompt = q.prompt;
    request.sampling.temperature = 0;
    request.sampling.max_tokens =
        static_cast<uint32_t>(std::max({q.max_tokens, q.output_tokens, uint64_t{1}}));
    const auto id = core_->Add(std::move(request));
    if (id.ok()) {
      left_[*id] = std::max<uint64_t>(1, q.output_tokens);
    } else {
      ++result_.refused;
    }
  }

  Status Collect() {
    for (const CoreOutput& out : core_->TakeOutputs()) {
      const auto it = left_.find(out.id);
      if (it == left_.end()) continue;
      it->second -= std::min<uint64_t>(it->second, out.tokens.size());
      if (out.finished) {
        result_.failed += out.reason == FinishReason::kError ? 1 : 0;
        left_.erase(it);
      } else if (it->second == 0) {
        left_.erase(it);
        // As a stop token would have ended it.
        WEIR_TRY(core_->Finish(out.id, FinishReason::kStop));
      }
    }
    return OkStatus();
  }

  Status Serve() {
    const uint64_t begin = driver_->Now() + 1;
    driver_->AdvanceTo(begin);
    result_.begin_ns = begin;
    if (recorded_ != nullptr) recorded_->begin_ns = begin;
    const auto due = [&](const RecordedRequest& q) {
      return begin +
             static_cast<uint64_t>(static_cast<double>(q.added_ns - w_.begin_ns) / options_.rate);
    };
    for (size_t next = 0;;) {
      for (; next < w_.requests.size() && due(w_.requests[next]) <= driver_->Now(); ++next) {
        Arrive(w_.requests[next]);
      }
      const uint64_t before = memory_->weights().stats().bytes_copied;
      const EvictionPlan& plan = memory_->weights().plan();
      compute_->in_place_bytes = plan.target().placement == Placement::kInPlace
                                     ? plan.evicted_granules() * meta_.granule_bytes
                                     : 0;
      const bool worked = WEIR_TRY(core_->Step());
      compute_->streamed_bytes = memory_->weights().stats().bytes_copied - before;
      WEIR_TRY(Collect());
      WEIR_TRY(Drain(/*all=*/false));
      if (worked) {
        ++result_.steps;
        driver_->AdvanceBy(static_cast<uint64_t>(w_.pause_ns));
      } else if (next == w_.requests.size()) {
        return OkStatus();
      } else {
        driver_->AdvanceTo(std::min(due(w_.requests[next]), driver_->Now() + kIdleTurnNs));
      }
    }
  }

  Status Drain(bool all) {
    if (!all && !tracer_->HalfFull()) return OkStatus();
    block_.clear();
    tracer_->Drain([this](const TraceRecord& r) { block_.push_back(r); });
    const uint64_t lost = tracer_->dropped();
    constexpr size_t kBlock = 1U << 15;
    for (size_t at = 0; at < block_.size(); at += kBlock) {
      const size_t n = std::min(kBlock, block_.size() - at);
      WEIR_TRY(file_->Append(std::span(block_).subspan(at, n),
                             at == 0 ? lost - std::exchange(lost_, lost) : 0));
    }
    return OkStatus();
  }

  const RecordedWorkload& w_;
  const trace_tool::TraceMeta& meta_;
  const SimulationOptions& options_;
  EngineOptions engine_;
  EngineInfo info_;
  std::unique_ptr<SimDriver> driver_;
  std::unique_ptr<Tracer> tracer_;
  std::unique_ptr<TraceFileWriter> file_;
  std::unique_ptr<Memory> memory_;
  std::unique_ptr<ReplayCompute> compute_;
  std::unique_ptr<Policy> policy_;
  RecordedPolicy* recorded_ = nullptr;
  std::unique_ptr<EngineCore> core_;
  std::unordered_map<RequestId, uint64_t> left_;  // output tokens to come
  std::vector<TraceRecord> block_;
  uint64_t lost_ = 0;
  SimulationResult result_;
};

}  // namespace

Result<SimulationResult> Simulate(const RecordedWorkload& workload,
                                  const trace_tool::TraceMeta& meta,
                                  const SimulationOptions& options) {
  Run run(workload, meta, options);
  return run.Go();
}

}  // namespace weir::replay
