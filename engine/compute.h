// Compute: runs steps of the model over batches. Back-ends: CpuCompute (cpu_compute.h), CudaCompute
// (cuda_compute.h), the simulated one of the tests.
//
// A step is recorded once at start-up as a list of operations on fixed pointers and replayed for
// every batch (S1): what changes between steps is the content of fixed buffers, never an address.
//
// Steps are submitted and collected, in order. Where depth() is 2 a step may be submitted while the
// one before it runs: a row whose token that step is still to sample names it by its place there,
// and the token never leaves the device in between.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/block_manager.h"
#include "engine/sampler.h"
#include "pager/gates.h"
#include "vmm/status.h"
#include "vmm/types.h"

namespace weir {

// How the next token of a sequence is drawn. Its pointers stay valid until the step is collected.
struct SampleRequest {
  const SamplingParams* params = nullptr;
  const TokenHistory* history = nullptr;  // of all tokens before |position|, if they are looked at
  uint64_t key = 0;                       // of the draw, where |params| has no seed
  uint64_t position = 0;                  // of the token in its sequence
  uint32_t output_tokens = 0;             // before it
  std::span<const int32_t> eos_tokens;
};

// One sequence's share of a step.
struct StepSequence {
  uint32_t first_row = 0;  // rows [first_row, first_row + rows) of the batch are its new tokens
  uint32_t rows = 0;
  uint32_t context = 0;             // tokens in its KV once this step has written its rows
  std::span<const BlockId> blocks;  // block table covering |context| tokens; valid during Submit
  bool wants_logits = false;        // of its last row
  SampleRequest sample;             // params == nullptr: logits only
};

struct StepBatch {
  // [rows]; below zero: the token sampled for the (-token - 1)-th sequence that wanted logits in
  // the step submitted before this one.
  std::vector<int32_t> tokens;
  std::vector<int32_t> positions;  // [rows]
  std::vector<StepSequence> sequences;
  uint32_t rows() const { return static_cast<uint32_t>(tokens.size()); }
  uint32_t logit_rows() const {
    uint32_t n = 0;
    for (const StepSequence& s : sequences) n += s.wants_logits ? 1 : 0;
    return n;
  }
  uint64_t context_tokens() const {
    uint64_t n = 0;
    for (const StepSequence& s : sequences) n += s.context;
    return n;
  }
  // Sum over the tokens of prompts of the tokens each attends to; causal.
  double prompt_pairs() const {
    double n = 0;
    for (const StepSequence& s : sequences) {
      if (s.rows > 1) n += static_cast<double>(s.rows) * (s.context - (s.rows - 1) / 2.0);
    }
    return n;
  }
};

struct StepOutcome {
  std::vector<Result<SampledToken>> samples;  // one for each sequence that wanted logits, in order
  uint64_t compute_ns = 0;                    // begin to end of the step where it ran
  // Of a step that was submitted while the one before it ran: the time between the two.
  std::optional<uint64_t> idle_before_ns;
  // For the trace: when it ran, in the driver's clock, within clock_error_ns; 0 where the caller of
  // Submit runs the step, or where nobody asked.
  TimeNs begin_ns = 0, end_ns = 0;
  uint64_t clock_error_ns = 0;
};

struct ComputeLimits {
  uint32_t max_rows = 512;      // tokens in a step
  uint32_t max_sequences = 64;  // sequences in a step
  uint32_t max_context = 0;     // tokens of one sequence
  uint32_t vocab_size = 0;
  // Logits of a step that biases, penalties and min_tokens may touch (MostLogitEdits); 0: any.
  uint64_t max_logit_edits = 0;
};

class Compute {
 public:
  virtual ~Compute() = default;
  virtual const ComputeLimits& limits() const = 0;
  // Whether a sequence's tokens are the same in every batch; if not, they are so for one schedule.
  virtual bool schedule_invariant() const { return true; }
  // How many steps may be submitted and not collected.
  virtual uint32_t depth() const { return 1; }
  // Zeroes KV blocks (in ascending order), behind the steps submitted so far and before the next.
  // After an error nothing of it is under way.
  virtual Status Scrub(std::span<const BlockId> blocks) = 0;
  // Puts the step on its way, between WeightPager::BeginStep and the EndStep that follows its
  // Collect; every gate is passed through |gates|. After an error nothing was submitted.
  virtual Status Submit(const StepBatch& batch, StepGates& gates) = 0;
  // Waits for the oldest step. An error (a gate that timed out) leaves the KV rows of the step
  // undefined, and so those of the steps submitted after it.
  virtual Status Collect(StepOutcome* outcome) = 0;
  // Row |row| of the logits of the last step collected; waits. Of tests and tools.
  virtual Result<std::vector<float>> ReadLogits(uint32_t row) = 0;
  // A digest of every pointer in the recorded step, and how often one was recorded (S1).
  virtual uint64_t RecordedPointersDigest() const = 0;
  virtual uint32_t recordings() const = 0;
  virtual std::string description() const = 0;  // "cpu avx512, 2 threads"
  // How far the times of steps and gates may be off the driver's clock now; 0: they are of it.
  virtual uint64_t clock_error_ns() const { return 0; }
};

// Calls zero(first, n) for each run of |n| neighbours in |blocks|, which ascend, until one fails.
template <typename ZeroFn>
Status ForEachRun(std::span<const BlockId> blocks, ZeroFn zero) {
  for (size_t i = 0; i < blocks.size();) {
    size_t n = 1;
    while (i + n < blocks.size() && blocks[i + n] == blocks[i] + n) ++n;
    WEIR_TRY(zero(blocks[i], n));
    i += n;
  }
  return OkStatus();
}

// Draws the tokens of |batch| on the host. |logits(i)| is row i of the logits, and is used as
// scratch.
template <typename LogitsFn>
void SampleOnHost(const StepBatch& batch, Sampler& sampler, LogitsFn logits, StepOutcome* outcome) {
  uint32_t row = 0;
  for (const StepSequence& s : batch.sequences) {
    if (!s.wants_logits) continue;
    const uint32_t i = row++;
    if (s.sample.params == nullptr) continue;
    outcome->samples.push_back(sampler.Sample(logits(i), *s.sample.params, *s.sample.history,
                                              s.sample.key, s.sample.position,
                                              s.sample.eos_tokens));
  }
}

}  // namespace weir
