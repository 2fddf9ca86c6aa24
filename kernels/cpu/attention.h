#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/kv.h"
#include "kernels/cpu/thread_pool.h"

namespace weir::cpu {

// One sequence of a ragged batch: its new queries and the context they see.
struct AttentionSeq {
  int64_t q_begin = 0;  // token rows [q_begin, q_end) of q and out
  int64_t q_end = 0;
  int64_t context = 0;  // tokens of the sequence in the KV blocks, these queries included
  const int32_t* blocks = nullptr;  // [ceil(context / 16)] block indices into the pool
};

struct AttentionParams {
  const float* q = nullptr;  // token i, head h at q + i * q_stride + h * head_dim
  int64_t q_stride = 0;      // floats
  float* out = nullptr;      // likewise; every row of every sequence is written
  int64_t out_stride = 0;
  int64_t q_heads = 0;  // a multiple of kv_heads; head h reads kv head h / (q_heads / kv_heads)
  int64_t layer = 0;
  float scale = 0;  // usually 1 / sqrt(head_dim)
  const AttentionSeq* seqs = nullptr;
  int64_t num_seqs = 0;
  // Caller's memory, 64-byte aligned, at least AttentionScratchBytes(num_seqs, 0, ...). Contents
  // are not kept between calls.
  void* scratch = nullptr;
  size_t scratch_bytes = 0;
};

// Bytes with which decoding `decode_seqs` sequences whose contexts sum to `context_tokens` can be
// spread over spans as well as heads; with less, long contexts are merely spread less.
size_t AttentionScratchBytes(int64_t num_seqs, int64_t context_tokens, int64_t q_heads,
                             int64_t head_dim);

// Causal attention over paged keys and values: query q_begin + i of a sequence sees tokens
// [0, visible), visible = context - (q_end - q_begin) + i + 1. A row's result depends on its query
// and those tokens alone: not on the batch, on chunking, on the block indices or on threads.
// Memory of a block past `visible` may hold anything, NaN included. Allocates nothing.
//
// Exact semantics of one (query, head) row. Positions are absolute; lanes j are position % 16.
//   q'[d] = q[d] * scale
//   score(t): a = +0; for d increasing: a = fma(q'[d], K[t][d], a)
// The context is cut into spans of 1024 tokens and these into tiles of 64. For one span, from
// m = -inf, l[0..15] = +0, acc[d] = +0 (Milakov & Gimelshein 2018, online softmax):
//   for each tile:  m' = max(m, max over its visible t of score(t));  c = Exp(m - m');
//     l[j] = l[j] * c;  acc[d] = acc[d] * c;
//     for each visible t of the tile, increasing:
//       p = Exp(score(t) - m');  l[t%16] = l[t%16] + p;  acc[d] = fma(p, V[t][d], acc[d]);
//     m = m'
//   L = Fold16(l) (norm.h)
// Spans (m2, L2, acc2) join the running (m, L, acc) in increasing order (flash-decoding):
//   m' = max(m, m2);  a = Exp(m - m');  b = Exp(m2 - m');
//   L = fma(L, a, L2 * b);  acc[d] = fma(acc[d], a, acc2[d] * b);  m = m'
// and out[d] = acc[d] * (1 / L). Exp is elementwise.h's.
inline constexpr int64_t kAttentionTile = 64;
inline constexpr int64_t kAttentionSpan = 1024;

void PagedAttention(const KvPool& kv, const AttentionParams& params, ThreadPool& pool);

}  // namespace weir::cpu
