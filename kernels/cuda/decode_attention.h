// Paged attention for sequences with one new row each, on Hopper: a kernel of our own, in one
// launch and without a plan. Semantics as attention.h, with q_indptr[i] = i; partial results stay
// in float. Relative RMS error against a float reference of the same bf16 inputs: below 5e-3.
//
// The work is cut into units, a page of one kv head. Each cluster of blocks derives its share from
// page_indptr in device memory, so a captured launch is replayed for any contexts:
//   * few sequences with similar contexts: a cluster takes all units of a kv head, and its blocks
//     meet in distributed shared memory;
//   * otherwise every cluster takes as many units, in order, wherever kv heads begin and end; a kv
//     head counts as some more for its beginning (decode_walk.h). What it has in several clusters
//     meets in |workspace|; the last block that comes adds it up.
// Blocks of a cluster, and warps of a block, take its pages in turn.
//
// Determinism: bits depend on the inputs, on |sequences|, on the contexts of the whole batch (they
// set the shares) and on the GPU model; neither on the order in which blocks run nor on where pages
// lie. A row may differ in the last bits between batches.
//
// Tokens of a last page beyond last_page_len are not read. Rows of sequences without pages (padded
// slots) become zero.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attention.h"

namespace weir::cuda {

inline constexpr int32_t kMaxDecodeGroup = 8;         // query heads of a kv head
inline constexpr int32_t kMaxDecodeSequences = 1024;  // of a launch
inline constexpr int kMaxDecodeCluster = 8;           // blocks; what every Hopper GPU can place

struct DecodeAttentionParams {
  const Bf16* q = nullptr;  // row i, head h at q + i * q_stride + h * head_dim
  int64_t q_stride = 0;     // elements, a multiple of 8; a slice of the fused qkv buffer will do
  Bf16* out = nullptr;      // [sequences, q_heads, head_dim], contiguous
  float scale = 0;          // usually 1 / sqrt(head_dim)
  KvPool kv;
  int32_t layer = 0;
  int32_t sequences = 0;  // rows; up to kMaxDecodeSequences
  PageTable pages;        // without q_indptr
  // workspace_bytes() of device memory, 256-byte aligned, zeroed once before the first run. Runs of
  // one stream share it; each leaves it ready for the next.
  void* workspace = nullptr;
};

// Represents what the kernel needs to know of a device and a shape; made once, outside captures.
class DecodeAttention {
 public:
  // On the calling thread's device. Not supported: the message says which GPU, build or shape is.
  static LaunchStatus Create(const AttentionShape& shape, DecodeAttention* decode);

  size_t workspace_bytes() const;
  // With Overlap::kPrologue the kernel reads the page table, and all pages but each sequence's
  // last, before its predecessor has ended: none of them may be written by a launch that a chain of
  // early launches ties to this one. (A step's first kernel is not launched early, and a step
  // writes one token of KV to each of these sequences; what it writes for others is theirs alone
  // until it has ended.) q and the last pages are read behind the predecessor.
  LaunchStatus Run(const DecodeAttentionParams& params, const Launch& launch) const;

 private:
  int ClusterFor(int32_t sequences) const;

  AttentionShape shape_;
  // Clusters of so many blocks that the GPU holds at once, a block a multiprocessor; 0: none.
  std::array<int, kMaxDecodeCluster + 1> clusters_{};
};

}  // namespace weir::cuda
