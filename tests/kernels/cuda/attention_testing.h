// What the tests of the attention kernels share: block tables, and attention in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cuda/attention.h"
#include "tests/kernels/cuda/device_testing.h"

namespace weir::cuda::testing {

// Of sequences with |rows| new tokens each, the last of |contexts| tokens.
struct AttentionTables {
  std::vector<int32_t> rows, contexts;
  std::vector<int32_t> q_indptr{0}, page_indptr{0}, last, blocks;

  size_t sequences() const { return rows.size(); }
};

// Blocks in random order out of |pool_blocks|.
inline AttentionTables MakeTables(const std::vector<int32_t>& rows,
                                  const std::vector<int32_t>& contexts, int32_t pool_blocks,
                                  std::mt19937& rng) {
  AttentionTables t;
  t.rows = rows;
  t.contexts = contexts;
  std::vector<int32_t> order(static_cast<size_t>(pool_blocks));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), rng);
  for (size_t i = 0; i < rows.size(); ++i) {
    const int32_t pages = (contexts[i] + 15) / 16;
    t.q_indptr.push_back(t.q_indptr.back() + rows[i]);
    for (int32_t p = 0; p < pages; ++p) t.blocks.push_back(order[t.blocks.size()]);
    t.page_indptr.push_back(t.page_indptr.back() + pages);
    t.last.push_back(pages == 0 ? 0 : contexts[i] - 16 * (pages - 1));
  }
  return t;
}

inline int32_t BlocksOf(const std::vector<int32_t>& contexts) {
  int32_t blocks = 0;
  for (const int32_t context : contexts) blocks += (context + 15) / 16;
  return blocks;
}

// Where a token's key (slab KOffset) or value (VOffset) of a kv head begins in the pool.
inline size_t AtToken(const AttentionTables& t, const KvLayout& layout, size_t sequence,
                      int32_t token, int64_t slab, int64_t kv_head) {
  const int64_t block = t.blocks[static_cast<size_t>(t.page_indptr[sequence] + token / 16)];
  return static_cast<size_t>(block * layout.BlockElements() + slab +
                             (token % 16) * layout.TokenStride() + kv_head * layout.HeadStride());
}

// Row |row| of sequence |s|, head |head|, in double from the same bf16 inputs; q is contiguous.
inline std::vector<double> ReferenceAttention(const AttentionShape& shape, const AttentionTables& t,
                                              const KvLayout& layout,
                                              const std::vector<uint16_t>& pool,
                                              const std::vector<uint16_t>& q, size_t s, int32_t row,
                                              int32_t head, int32_t layer) {
  const auto dim = static_cast<size_t>(shape.head_dim);
  const int32_t visible = t.contexts[s] - t.rows[s] + row + 1;
  const int64_t kv_head = head / (shape.q_heads / shape.kv_heads);
  const size_t q_at = static_cast<size_t>((t.q_indptr[s] + row) * shape.q_heads + head) * dim;
  std::vector<double> scores(static_cast<size_t>(visible)), out(dim, 0.0);
  double sum = 0, max = -1e300;
  for (int32_t i = 0; i < visible; ++i) {
    double dot = 0;
    const size_t k = AtToken(t, layout, s, i, layout.KOffset(layer), kv_head);
    for (size_t d = 0; d < dim; ++d) {
      dot += double{cpu::Bf16ToFloat(q[q_at + d])} * double{cpu::Bf16ToFloat(pool[k + d])};
    }
    scores[static_cast<size_t>(i)] = dot / std::sqrt(static_cast<double>(dim));
    max = std::max(max, scores[static_cast<size_t>(i)]);
  }
  for (double& score : scores) sum += score = std::exp(score - max);
  for (int32_t i = 0; i < visible; ++i) {
    const size_t v = AtToken(t, layout, s, i, layout.VOffset(layer), kv_head);
    const double p = scores[static_cast<size_t>(i)] / sum;
    for (size_t d = 0; d < dim; ++d) out[d] += p * double{cpu::Bf16ToFloat(pool[v + d])};
  }
  return out;
}

// Relative RMS error against the reference, of about seven rows a sequence; not finite where a
// value is not.
inline double AttentionError(const AttentionShape& shape, const AttentionTables& t,
                             const KvLayout& layout, const std::vector<uint16_t>& pool,
                             const std::vector<uint16_t>& q, const std::vector<uint16_t>& out,
                             int32_t layer) {
  double error = 0, norm = 0;
  for (size_t s = 0; s < t.sequences(); ++s) {
    if (t.contexts[s] == 0) continue;  // a padded slot
    for (int32_t row = 0; row < t.rows[s]; row += 1 + t.rows[s] / 7) {
      for (int32_t head = 0; head < shape.q_heads; ++head) {
        const auto want = ReferenceAttention(shape, t, layout, pool, q, s, row, head, layer);
        const auto at =
            static_cast<size_t>((t.q_indptr[s] + row) * shape.q_heads + head) * want.size();
        for (size_t d = 0; d < want.size(); ++d) {
          const double got = double{cpu::Bf16ToFloat(out[at + d])};
          error += (got - want[d]) * (got - want[d]);
          norm += want[d] * want[d];
        }
      }
    }
  }
  return std::sqrt(error / norm);
}

}  // namespace weir::cuda::testing
