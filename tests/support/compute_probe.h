// ComputeProbe: steps of a test's own making, on the memory and the compute of an idle engine.
//
// Represents some sequences whose KV lies in blocks taken from the engine's block manager. What a
// step consists of (which sequences, how many tokens of each) is up to the test, so that the same
// prompt can be computed alone, among others and in any chunks. The engine outlives the probe and
// serves no request meanwhile. After an error the KV of the step is undefined.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "engine/engine.h"

namespace weir {

class ComputeProbe {
 public:
  explicit ComputeProbe(Engine& engine) : engine_(engine) {}
  ~ComputeProbe();
  ComputeProbe(const ComputeProbe&) = delete;
  ComputeProbe& operator=(const ComputeProbe&) = delete;

  struct Sequence {
    std::vector<int32_t> tokens;
    uint32_t computed = 0;  // the first so many are in KV
    std::vector<BlockId> blocks;
    uint32_t left() const { return static_cast<uint32_t>(tokens.size()) - computed; }
  };
  struct Part {
    Sequence* sequence = nullptr;
    uint32_t rows = 0;                       // its next tokens
    const SamplingParams* params = nullptr;  // null: logits only
  };
  struct Outcome {
    std::vector<std::vector<float>> logits;  // [parts][vocab], of the last row of each
    std::vector<SampledToken> samples;       // of the parts with |params|, in order
  };

  // The probe owns it; its blocks go back when the probe ends.
  Sequence& Add(std::vector<int32_t> tokens);
  Result<Outcome> Step(std::span<const Part> parts);
  // Alone, in steps of at most |chunk| tokens; logits after the last.
  Result<std::vector<float>> Prefill(Sequence& sequence, uint32_t chunk);

 private:
  Status Reserve(Sequence& sequence, uint32_t tokens);

  Engine& engine_;
  std::deque<Sequence> sequences_;
};

// ||have - want|| / ||want||.
double RelativeError(std::span<const float> have, std::span<const float> want);
float LargestMagnitude(std::span<const float> values);
int32_t Argmax(std::span<const float> logits);

}  // namespace weir
