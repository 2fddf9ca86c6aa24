// SimModel: a "language model" whose every token depends on every byte it should depend on.
//
// The KV word of position p is a hash of (token, p, digest of the weights as read at p's step, the
// tenant). The
// next token is a hash of all KV words of the context, read back through the block table. So a
// stale weight granule, a lost copy, a wrong block, a moved block or a missing rollback changes
// tokens, and what the tokens should be is known in closed form (SimModel::Expected), with no
// engine at all.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/compute.h"
#include "pager/eviction_plan.h"
#include "tests/support/sim_gates.h"
#include "vmm/driver.h"

namespace weir::testing {

struct SimModelShape {
  uint32_t layers = 4;
  uint32_t segments = 3;
  uint64_t segment_bytes = 2048;
  uint64_t resident_bytes = 512;  // embeddings and the like, before the first layer
  uint64_t lookup_bytes = 0;      // a lookup table before these
  uint32_t vocab = 50;
  uint32_t block_bytes = 16 * 8;  // one 8-byte word a token
  // What a step takes.
  uint64_t segment_ns = 2000;
  uint64_t token_ns = 500;
};

class SimModel {
 public:
  static WeightLayout Layout(const SimModelShape& shape);
  // The byte every loader must put at |offset| of the weight region.
  static std::byte WeightByte(uint64_t offset);
  static std::vector<std::byte> WeightBytes(const SimModelShape& shape);
  // The greedy continuation of |prompt| by |count| tokens.
  static std::vector<int32_t> Expected(const SimModelShape& shape, std::span<const int32_t> prompt,
                                       uint32_t count, uint64_t tenant = 0);

  static uint64_t Word(int32_t token, uint64_t position, uint64_t weight_digest, uint64_t tenant);
  static uint64_t Digest(std::span<const std::byte> bytes, uint64_t seed);
};

// Runs SimModel through a Driver's memory: weights and KV are read and written at their addresses.
class SimCompute final : public Compute {
 public:
  struct Memory {
    VirtAddr weights = 0;
    VirtAddr kv = 0;
    uint64_t kv_block_stride = 0;
  };
  // |advance(ns)| passes virtual time; called for each segment and token.
  SimCompute(Driver& driver, const SimModelShape& shape, const ComputeLimits& limits,
             const Memory& memory, std::function<void(uint64_t)> advance, uint32_t depth = 1);

  const ComputeLimits& limits() const override { return limits_; }
  uint32_t depth() const override { return depth_; }
  Status Scrub(std::span<const BlockId> blocks) override;
  // With depth 2 a step runs when it is collected, as late as it may. Where the pager has device
  // gates it runs as kernels would: to its end, whatever happens at its gates.
  Status Submit(const StepBatch& batch, StepGates& gates) override;
  Status Collect(StepOutcome* outcome) override;
  Result<std::vector<float>> ReadLogits(uint32_t row) override;
  uint64_t RecordedPointersDigest() const override { return memory_.weights ^ (memory_.kv << 1); }
  uint32_t recordings() const override { return 1; }
  std::string description() const override { return "simulated"; }

  std::function<Status()> submit_fails;  // asked at each Submit; empty: none does
  // The kernels of a step whose Submit failed run all the same, in their turn.
  bool failed_submits_run = false;
  // What the device's clock is off by in a step, no more than |clock_error_ns| and no more than
  // lets the step run between its submission and its collection; empty: nothing.
  std::function<int64_t()> clock_off;
  uint64_t clock_error_ns = 0;
  // The tenant of a request, by SampleRequest::key; empty: there is one.
  std::function<uint64_t(uint64_t key)> tenant_of;
  // The most rows that a step had of sequences with more than one.
  uint32_t most_prompt_rows = 0;
  // KV words of one tenant found in a block of another that was about to write there.
  uint64_t canaries_seen() const { return canaries_seen_; }

 private:
  struct Pending {
    StepBatch batch;
    std::vector<std::vector<BlockId>> blocks;  // by sequence
    std::vector<BlockId> scrubs;               // before it
    TimeNs submitted_ns = 0;
    StepGates* gates = nullptr;
    std::optional<SimStepGates> device;
  };
  void RunFailedSubmit();
  Status Run(Pending& step, StepOutcome* outcome);
  Result<uint64_t> ReadWeights(Pending& step);
  Status LookForCanaries(std::span<const BlockId> blocks, const StepSequence& s, uint64_t tenant,
                         uint64_t first_position);
  Status Arrive(Pending& step, uint32_t gate);
  Status Depart(Pending& step, uint32_t gate);
  VirtAddr WordAddress(BlockId block, uint64_t offset) const {
    return memory_.kv + static_cast<uint64_t>(block) * memory_.kv_block_stride + offset * 8;
  }

  Driver& driver_;
  SimModelShape shape_;
  ComputeLimits limits_;
  Memory memory_;
  std::function<void(uint64_t)> advance_;
  WeightLayout layout_;
  uint32_t depth_;
  std::deque<Pending> pending_;
  std::optional<Pending> failed_submit_;           // behind those
  std::vector<BlockId> scrubs_;                    // behind all of it
  std::unordered_map<uint64_t, uint64_t> writer_;  // tenant, by the KV word that it alone writes
  uint64_t canaries_seen_ = 0;
  Sampler sampler_;
  std::vector<int32_t> sampled_;  // of the last step that ran
  std::vector<std::vector<float>> logits_;
};

}  // namespace weir::testing
