#include "tests/support/compute_probe.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace weir {

ComputeProbe::~ComputeProbe() {
  BlockManager& blocks = engine_.core().memory().blocks();
  for (Sequence& s : sequences_) {
    for (auto block = s.blocks.rbegin(); block != s.blocks.rend(); ++block) blocks.Release(*block);
  }
}

ComputeProbe::Sequence& ComputeProbe::Add(std::vector<int32_t> tokens) {
  sequences_.push_back({.tokens = std::move(tokens), .computed = 0, .blocks = {}});
  return sequences_.back();
}

Status ComputeProbe::Reserve(Sequence& sequence, uint32_t tokens) {
  Memory& memory = engine_.core().memory();
  while (sequence.blocks.size() * kBlockTokens < tokens) {
    if (memory.blocks().counts().free == 0) WEIR_TRY(memory.GrowKv(1));
    sequence.blocks.push_back(WEIR_TRY(memory.blocks().Allocate(kNobody)));
  }
  return OkStatus();
}

Result<ComputeProbe::Outcome> ComputeProbe::Step(std::span<const Part> parts) {
  static const TokenHistory kNoHistory;
  StepBatch batch;
  for (const Part& part : parts) {
    Sequence& q = *part.sequence;
    const uint32_t end = q.computed + part.rows;
    WEIR_TRY(Reserve(q, end));
    StepSequence s;
    s.first_row = batch.rows();
    s.rows = part.rows;
    s.context = end;
    s.blocks = q.blocks;
    s.wants_logits = true;
    s.sample = {.params = part.params,
                .history = &kNoHistory,
                .key = batch.sequences.size(),
                .position = end,
                .output_tokens = 0,
                .eos_tokens = {}};
    for (uint32_t i = q.computed; i < end; ++i) {
      batch.tokens.push_back(q.tokens.at(i));
      batch.positions.push_back(static_cast<int32_t>(i));
    }
    batch.sequences.push_back(s);
  }
  Compute& compute = engine_.compute();
  WeightPager& weights = engine_.core().memory().weights();
  WEIR_TRY(weights.BeginStep());
  Status ran = compute.Submit(batch, weights);
  StepOutcome outcome;
  if (ran.ok()) ran = compute.Collect(&outcome);
  const Status ended = weights.EndStep();
  WEIR_TRY(ran);
  WEIR_TRY(ended);
  Outcome result;
  for (uint32_t i = 0; i < parts.size(); ++i) {
    parts[i].sequence->computed += parts[i].rows;
    result.logits.push_back(WEIR_TRY(compute.ReadLogits(i)));
  }
  for (Result<SampledToken>& sample : outcome.samples) {
    result.samples.push_back(WEIR_TRY(std::move(sample)));
  }
  return result;
}

Result<std::vector<float>> ComputeProbe::Prefill(Sequence& sequence, uint32_t chunk) {
  Outcome outcome;
  while (sequence.left() > 0) {
    const Part part{&sequence, std::min(chunk, sequence.left()), nullptr};
    outcome = WEIR_TRY(Step(std::span(&part, 1)));
  }
  return std::move(outcome.logits.at(0));
}

double RelativeError(std::span<const float> have, std::span<const float> want) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double d = double{have[i]} - double{want[i]};
    difference += d * d;
    size += double{want[i]} * double{want[i]};
  }
  return std::sqrt(difference / size);
}

float LargestMagnitude(std::span<const float> values) {
  float largest = 0;
  for (const float v : values) largest = std::max(largest, std::fabs(v));
  return largest;
}

int32_t Argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace weir
