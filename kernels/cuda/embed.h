// Embedding rows, in bf16.
#pragma once

#include <cstdint>

#include "kernels/cuda/gates.h"
#include "kernels/cuda/launch.h"

namespace weir::cuda {

// y[i, :] = table[token_i, :], where token_i = tokens[i] if that is not negative, else
// sampled[-tokens[i] - 1]: a token that an earlier step sampled and the host does not know yet.
// What is not a token of [0, vocab) then, or not an index of |sampled|, becomes token 0.
struct EmbedParams {
  const Bf16* table = nullptr;       // [vocab, h], contiguous, 16-byte aligned
  const int32_t* tokens = nullptr;   // [m]
  const int32_t* sampled = nullptr;  // [sampled_count], or null
  int32_t sampled_count = 0;         // not 0 iff |sampled| is given
  int32_t vocab = 0;
  Bf16* y = nullptr;  // [m, h], contiguous, 16-byte aligned
  int64_t m = 0;
  int64_t h = 0;             // a multiple of 8
  StepLog* begin = nullptr;  // null, or the log that is begun: this is the first launch of a step
};
LaunchStatus Embed(const EmbedParams& params, const Launch& launch);

}  // namespace weir::cuda
