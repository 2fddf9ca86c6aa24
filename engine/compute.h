// Compute: runs one step of the model over a batch. Back-ends: CpuCompute (cpu_compute.h); the
// simulated one of the tests.
//
// A step is recorded once at start-up as a list of operations on fixed pointers and replayed for
// every batch (S1): what changes between steps is the content of fixed buffers, never an address.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "pager/gates.h"
#include "vmm/status.h"
#include "vmm/types.h"

namespace weir {

// One sequence's share of a step.
struct StepSequence {
  uint32_t first_row = 0;  // rows [first_row, first_row + rows) of the batch are its new tokens
  uint32_t rows = 0;
  uint32_t context = 0;         // tokens in its KV once this step has written its rows
  std::vector<int32_t> blocks;  // block table covering |context| tokens
  bool wants_logits = false;    // of its last row
};

struct StepBatch {
  std::vector<int32_t> tokens;     // [rows]
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
};

struct ComputeLimits {
  uint32_t max_rows = 512;      // tokens in a step
  uint32_t max_sequences = 64;  // sequences in a step
  uint32_t max_context = 0;     // tokens of one sequence
  uint32_t vocab_size = 0;
};

class Compute {
 public:
  virtual ~Compute() = default;
  virtual const ComputeLimits& limits() const = 0;
  // Runs the step to its end, passing every gate through |gates|. On success logits() holds one row
  // of limits().vocab_size floats for each sequence that wants them, in batch order.
  // An error (a gate that timed out) leaves the KV rows of this step undefined.
  virtual Status Run(const StepBatch& batch, StepGates& gates) = 0;
  virtual std::span<float> logits(uint32_t row) = 0;
  // A digest of every pointer in the recorded step, and how often one was recorded (S1).
  virtual uint64_t RecordedPointersDigest() const = 0;
  virtual uint32_t recordings() const = 0;
  virtual std::string description() const = 0;  // "cpu avx512, 2 threads"
};

}  // namespace weir
