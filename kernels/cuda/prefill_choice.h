// Which of FlashInfer's kernels attends for a batch of prompts sooner. Pure arithmetic.
//
// FA3 gives 128 rows of one query head to a multiprocessor, with their whole context: a chunk of a
// long prompt with few rows fills few of them, for as long as a whole tile takes. FA2, on the
// slower tensor core instructions, has the query heads of a kv head in one tile and splits
// contexts.
#pragma once

#include <algorithm>
#include <cstdint>

namespace weir::cuda {

// |q_indptr| [sequences + 1] and |context| [sequences] as AttentionBatch has them.
inline bool Fa2AttendsSooner(int32_t q_heads, int32_t head_dim, const int32_t* q_indptr,
                             const int32_t* context, int32_t sequences, int32_t processors) {
  // In the time that FA3 takes for a tile's products with one token of the context.
  constexpr double kFa2Token = 2.8;
  constexpr double kFa2Meet = 600;  // adding up what was split
  const int32_t tile = head_dim == 64 ? 192 : 128;
  double longest = 0, tiles = 0, rows = 0;
  for (int32_t i = 0; i < sequences; ++i) {
    const int32_t n = q_indptr[i + 1] - q_indptr[i];
    const double tokens = std::max(1.0, context[i] - n / 2.0);  // a row attends to, on average
    longest = std::max(longest, tokens);
    tiles += static_cast<double>((n + tile - 1) / tile) * q_heads * tokens;
    rows += static_cast<double>(n) / tile * q_heads * tokens;
  }
  const double fa3 = std::max(longest, tiles / processors);
  const double fa2 = kFa2Token * rows / processors + kFa2Meet;
  return fa2 < fa3;
}

}  // namespace weir::cuda
