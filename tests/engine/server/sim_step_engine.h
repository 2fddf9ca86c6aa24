// A StepEngine whose model is SimModel: the real engine core, its memory manager and policy on the
// simulated driver, without the arithmetic. Tokens depend on every byte they should depend on.
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/core.h"
#include "engine/server/step_engine.h"
#include "policy/registry.h"
#include "tests/support/sim_model.h"
#include "vmm/sim_driver.h"

namespace weir::server::testing {

struct SimEngineOptions {
  uint32_t max_sequences = 512;
  uint32_t max_batched_tokens = 2048;
  uint32_t max_model_len = 16384;
  uint32_t budget_percent = 130;  // of weights and step buffers, and what of it is left is KV
  std::string policy = "tide";
  uint64_t step_us = 0;  // real time added to each step
  weir::testing::SimModelShape shape{
      .layers = 6, .segments = 3, .segment_bytes = 64 << 10, .vocab = 1000};
};

class SimStepEngine final : public StepEngine {
 public:
  static Result<std::unique_ptr<SimStepEngine>> Create(const SimEngineOptions& options) {
    std::unique_ptr<SimStepEngine> engine(new SimStepEngine(options));
    WEIR_TRY(engine->Build());
    return engine;
  }
  ~SimStepEngine() override {
    core_.reset();
    policy_.reset();
    compute_.reset();
    memory_.reset();
  }

  uint64_t budget_bytes() const { return budget_bytes_; }
  StepLimits limits() const override {
    return {.max_sequences = options_.max_sequences,
            .max_batched_tokens = options_.max_batched_tokens,
            .max_model_len = options_.max_model_len};
  }
  Status Prepare(GenerationRequest* request) const override {
    if (request->prompt_tokens.empty()) return Unsupported("no tokenizer: give token ids");
    return OkStatus();
  }
  Result<RequestId> Submit(GenerationRequest request) override {
    return core_->Add({.prompt = std::move(request.prompt_tokens),
                       .sampling = std::move(request.sampling),
                       .cache_salt = request.cache_salt,
                       .priority = request.priority});
  }
  Status Cancel(RequestId id) override { return core_->Finish(id, FinishReason::kCancelled); }
  Result<bool> Step() override {
    if (options_.step_us > 0 && !core_->idle()) {
      std::this_thread::sleep_for(std::chrono::microseconds(options_.step_us));
    }
    return core_->Step();
  }
  std::vector<GenerationOutput> TakeOutputs() override {
    std::vector<GenerationOutput> outputs;
    for (CoreOutput& from : core_->TakeOutputs()) {
      GenerationOutput to;
      to.id = from.id;
      to.tokens = std::move(from.tokens);
      to.finished = from.finished;
      to.reason = from.reason;
      to.error = std::move(from.error);
      to.prompt_tokens = from.prompt_tokens;
      to.cached_tokens = from.cached_tokens;
      to.scheduled_ns = from.scheduled_ns == 0 ? 0 : MonotonicNow();  // the core's time is virtual
      outputs.push_back(std::move(to));
    }
    return outputs;
  }

  StepLoad load() const override {
    const Scheduler& s = core_->scheduler();
    return {.running = s.running(),
            .waiting = s.waiting(),
            .waiting_tokens = s.waiting_blocks() * kBlockTokens};
  }
  void SetQueued(const QueuedDemand& queued) override { core_->set_queued_demand(queued); }
  void FillStats(AsyncStats* stats) const override {
    stats->core = core_->stats();
    stats->scheduler = core_->scheduler_stats();
    stats->running = core_->scheduler().running();
    stats->waiting = core_->scheduler().waiting();
    stats->blocks = memory_->blocks().counts();
    const PrefixCacheStats& prefix = memory_->blocks().prefix_stats();
    stats->prefix_queries = prefix.queried_tokens;
    stats->prefix_hits = prefix.hit_tokens;
    stats->prefix_evicted_blocks = prefix.evicted_blocks;
    stats->memory = memory_->view();
    stats->pager = memory_->weights().stats();
    stats->link = core_->link();
    stats->evicted_bytes = stats->memory.evicted_granules * stats->memory.granule_bytes;
    stats->kv_blocks_moved = memory_->blocks_moved();
    stats->kv_block_bytes = options_.shape.block_bytes;
    if (core_->idle()) stats->leaked_blocks = stats->blocks.used;
  }
  // Always: memory's invariants, and no block in use.
  Status CheckIdle() override {
    if (driver_->violations() > 0) return BadState(driver_->violation_list()[0]);
    return core_->CheckIntegrity();
  }

 private:
  explicit SimStepEngine(const SimEngineOptions& options) : options_(options) {}

  Status Build() {
    using weir::testing::SimCompute;
    using weir::testing::SimModel;
    driver_ = WEIR_TRY(SimDriver::Create({.granularity_bytes = 4096}));
    MemoryOptions m;
    m.granule_bytes = 4096;
    m.scratch_bytes = 4096;
    m.kv_block_bytes = options_.shape.block_bytes;
    m.kv_least_blocks = 64;
    m.weights = SimModel::Layout(options_.shape);
    m.hbm_budget_bytes = (m.weights.region_bytes + m.scratch_bytes) * options_.budget_percent / 100;
    budget_bytes_ = m.hbm_budget_bytes;
    memory_ = WEIR_TRY(Memory::Create(*driver_, m));
    WEIR_TRY(memory_->weights().Write(0, SimModel::WeightBytes(options_.shape)));
    WEIR_TRY(memory_->weights().Seal());
    WEIR_TRY(memory_->MeasureLink());
    const ComputeLimits limits{.max_rows = options_.max_batched_tokens,
                               .max_sequences = options_.max_sequences,
                               .max_context = options_.max_model_len,
                               .vocab_size = options_.shape.vocab};
    compute_ = std::make_unique<SimCompute>(
        *driver_, options_.shape, limits,
        SimCompute::Memory{memory_->weights().base(), memory_->kv().base(),
                           memory_->kv().block_stride()},
        [this](uint64_t ns) { driver_->AdvanceBy(ns); });
    policy_ = WEIR_TRY(MakePolicy(options_.policy));
    CoreOptions core;
    core.scheduler.max_batched_tokens = options_.max_batched_tokens;
    core.scheduler.max_prefill_chunk = 512;
    core.scheduler.max_sequences = options_.max_sequences;
    core.max_model_len = options_.max_model_len;
    core_ = std::make_unique<EngineCore>(*driver_, *memory_, *compute_, *policy_, core);
    return core_->Calibrate();
  }

  const SimEngineOptions options_;
  uint64_t budget_bytes_ = 0;
  std::unique_ptr<SimDriver> driver_;
  std::unique_ptr<Memory> memory_;
  std::unique_ptr<weir::testing::SimCompute> compute_;
  std::unique_ptr<Policy> policy_;
  std::unique_ptr<EngineCore> core_;
};

}  // namespace weir::server::testing
