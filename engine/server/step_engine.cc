#include "engine/server/step_engine.h"

#include <utility>

namespace weir::server {
namespace {

class RealEngine final : public StepEngine {
 public:
  explicit RealEngine(std::unique_ptr<Engine> engine) : engine_(std::move(engine)) {}

  StepLimits limits() const override {
    const EngineOptions& o = engine_->options();
    return {.max_sequences = o.max_num_seqs,
            .max_batched_tokens = o.max_num_batched_tokens,
            .max_model_len = engine_->info().max_model_len};
  }
  Status Prepare(GenerationRequest* request) const override {
    if (!request->prompt_tokens.empty()) return OkStatus();
    request->prompt_tokens =
        WEIR_TRY(engine_->Tokenize(request->prompt, request->add_special_tokens));
    return OkStatus();
  }

  Result<RequestId> Submit(GenerationRequest request) override {
    return engine_->Submit(std::move(request));
  }
  Status Cancel(RequestId id) override { return engine_->Cancel(id); }
  Result<bool> Step() override { return engine_->Step(); }
  std::vector<GenerationOutput> TakeOutputs() override { return engine_->TakeOutputs(); }

  StepLoad load() const override {
    const Scheduler& s = engine_->core().scheduler();
    return {.running = s.running(),
            .waiting = s.waiting(),
            .waiting_tokens = s.waiting_blocks() * kBlockTokens};
  }
  void SetQueued(const QueuedDemand& queued) override { engine_->core().set_queued_demand(queued); }
  void FillStats(AsyncStats* stats) const override {
    EngineCore& core = engine_->core();
    Memory& memory = core.memory();
    stats->core = core.stats();
    stats->scheduler = core.scheduler_stats();
    stats->running = core.scheduler().running();
    stats->waiting = core.scheduler().waiting();
    stats->blocks = memory.blocks().counts();
    const PrefixCacheStats& prefix = memory.blocks().prefix_stats();
    stats->prefix_queries = prefix.queried_tokens;
    stats->prefix_hits = prefix.hit_tokens;
    stats->prefix_evicted_blocks = prefix.evicted_blocks;
    stats->memory = memory.view();
    stats->pager = memory.weights().stats();
    stats->link = core.link();
    stats->evicted_bytes = stats->memory.evicted_granules * stats->memory.granule_bytes;
    stats->stall_ns = stats->pager.stall_ns;
    stats->faults_major = stats->pager.faults;
    stats->bytes_streamed = stats->pager.bytes_copied;
    stats->kv_blocks_moved = memory.blocks_moved();
    stats->kv_block_bytes = engine_->info().kv_block_bytes;
    if (core.idle()) stats->leaked_blocks = stats->blocks.used;
  }
  Status CheckIdle() override {
#if defined(WEIR_VALIDATE) || !defined(NDEBUG)
    return engine_->core().CheckIntegrity();
#else
    return OkStatus();
#endif
  }

 private:
  std::unique_ptr<Engine> engine_;
};

}  // namespace

std::unique_ptr<StepEngine> MakeStepEngine(std::unique_ptr<Engine> engine) {
  return std::make_unique<RealEngine>(std::move(engine));
}

}  // namespace weir::server
