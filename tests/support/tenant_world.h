// TenantWorld: an engine core over a real back-end, whose every step is looked at before it runs.
//
// Two tenants (cache salts) take turns on the same KV blocks. What the first has left is stamped
// over with kCanary; before the other's first write into a block its bytes are read back.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "engine/backend.h"
#include "engine/core.h"
#include "engine/open_model.h"
#include "policy/registry.h"

namespace weir::testing {

inline constexpr std::byte kCanary{0xA5};

class TenantWorld {
 public:
  struct Options {
    EngineOptions engine;
    bool scrub = true;
    uint32_t kv_blocks = 64;
    std::function<void()> settle = [] {};  // waits for what is queued on the device
  };
  explicit TenantWorld(Options options) : options_(std::move(options)) {}

  Status Build() {
    const EngineOptions& o = options_.engine;
    const Checkpoint checkpoint = WEIR_TRY(OpenCheckpoint(o));
    const ComputeLimits limits{.max_rows = o.max_num_batched_tokens,
                               .max_sequences = o.max_num_seqs,
                               .max_context = o.max_model_len,
                               .vocab_size = checkpoint.config().vocab_size};
    backend_ = WEIR_TRY(MakeBackend(o, checkpoint.config(), limits));
    MemoryOptions m;
    m.kv_wanted_bytes = 1;  // the back-end need not choose a budget
    backend_->Describe(&m);
    m.kv_wanted_bytes = options_.kv_blocks * m.kv_block_bytes;
    m.scrub_kv = options_.scrub;
    memory_ = WEIR_TRY(Memory::Create(backend_->driver(), m));
    WEIR_TRY(backend_->Load(checkpoint, *memory_, {}));
    compute_ = WEIR_TRY(backend_->MakeCompute(*memory_, {}));
    watch_ = std::make_unique<Watch>(*this);
    policy_ = WEIR_TRY(MakePolicy("resident"));
    CoreOptions core;
    core.scheduler = {.max_batched_tokens = o.max_num_batched_tokens,
                      .max_sequences = o.max_num_seqs,
                      .max_prefill_chunk = o.max_num_batched_tokens};
    core.max_model_len = o.max_model_len;
    core_ = std::make_unique<EngineCore>(backend_->driver(), *memory_, *watch_, *policy_, core);
    return core_->Calibrate();
  }

  // Runs requests of |tenant| until they have held every block there is room for.
  Status FillKv(uint64_t tenant) {
    held_.clear();
    for (int32_t n = 0; held_.size() < BlocksThereCanBe(); ++n) {
      if (n > 1000) return BadState("the KV cache does not fill");
      CoreRequest request;
      const uint32_t length = options_.engine.max_model_len / 2;
      for (uint32_t i = 0; i < length; ++i) {
        request.prompt.push_back(static_cast<int32_t>((i * 7 + static_cast<uint32_t>(n)) % 64));
      }
      request.sampling.temperature = 0;
      request.sampling.ignore_eos = true;
      request.sampling.max_tokens = kBlockTokens;
      request.cache_salt = tenant;
      WEIR_TRY(core_->Add(std::move(request)));
      while (WEIR_TRY(core_->Step())) {
        for (const CoreOutput& out : core_->TakeOutputs()) WEIR_TRY(out.error);
      }
    }
    return core_->CheckIntegrity();
  }

  // Overwrites all the last tenant has held.
  Status StampCanary() {
    options_.settle();
    const std::vector<std::byte> stamp(memory_->kv().block_stride(), kCanary);
    for (const BlockId block : held_) {
      WEIR_TRY(backend_->driver().Write(AddressOf(block), stamp));
    }
    return OkStatus();
  }

  EngineCore& core() { return *core_; }
  // Of blocks that a tenant was about to write for the first time since FillKv began.
  uint64_t blocks_looked_at() const { return blocks_looked_at_; }
  uint64_t bytes_not_zero() const { return bytes_not_zero_; }
  uint64_t canary_bytes() const { return canary_bytes_; }
  double scrub_seconds() const { return scrub_seconds_; }
  uint64_t block_bytes() const { return memory_->kv().block_stride(); }

 private:
  class Watch final : public Compute {
   public:
    explicit Watch(TenantWorld& world) : world_(world), inner_(*world.compute_) {}
    const ComputeLimits& limits() const override { return inner_.limits(); }
    bool schedule_invariant() const override { return inner_.schedule_invariant(); }
    uint32_t depth() const override { return inner_.depth(); }
    Status Scrub(std::span<const BlockId> blocks) override {
      world_.options_.settle();
      const auto start = std::chrono::steady_clock::now();
      WEIR_TRY(inner_.Scrub(blocks));
      world_.options_.settle();
      world_.scrub_seconds_ +=
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      return OkStatus();
    }
    Status Submit(const StepBatch& batch, StepGates& gates) override {
      for (const StepSequence& s : batch.sequences) {
        if (s.sample.params != nullptr) WEIR_TRY(world_.LookAt(s.blocks));
      }
      return inner_.Submit(batch, gates);
    }
    Status Collect(StepOutcome* outcome) override { return inner_.Collect(outcome); }
    Result<std::vector<float>> ReadLogits(uint32_t row) override { return inner_.ReadLogits(row); }
    uint64_t RecordedPointersDigest() const override { return inner_.RecordedPointersDigest(); }
    uint32_t recordings() const override { return inner_.recordings(); }
    std::string description() const override { return inner_.description(); }

   private:
    TenantWorld& world_;
    Compute& inner_;
  };

  VirtAddr AddressOf(BlockId block) const {
    return memory_->kv().base() + block * memory_->kv().block_stride();
  }

  uint64_t BlocksThereCanBe() const {
    const KvGeometry& g = memory_->kv().geometry();
    return memory_->blocks().counts().capacity +
           uint64_t{memory_->pool().Available() / g.granules_per_extent} * g.blocks_per_extent;
  }

  Status LookAt(std::span<const BlockId> blocks) {
    std::vector<std::byte> bytes(memory_->kv().block_stride());
    for (const BlockId block : blocks) {
      if (!held_.insert(block).second) continue;
      options_.settle();
      WEIR_TRY(backend_->driver().Read(AddressOf(block), bytes));
      ++blocks_looked_at_;
      bytes_not_zero_ += bytes.size() - static_cast<uint64_t>(
                                            std::count(bytes.begin(), bytes.end(), std::byte{0}));
      canary_bytes_ += static_cast<uint64_t>(std::count(bytes.begin(), bytes.end(), kCanary));
    }
    return OkStatus();
  }

  const Options options_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Memory> memory_;
  std::unique_ptr<Compute> compute_;
  std::unique_ptr<Watch> watch_;
  std::unique_ptr<Policy> policy_;
  std::unique_ptr<EngineCore> core_;
  std::set<BlockId> held_;  // since FillKv began
  uint64_t blocks_looked_at_ = 0;
  uint64_t bytes_not_zero_ = 0;
  uint64_t canary_bytes_ = 0;
  double scrub_seconds_ = 0;
};

}  // namespace weir::testing
