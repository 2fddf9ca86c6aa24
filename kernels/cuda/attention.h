// Paged attention in bf16 over KV blocks (FlashInfer's kernels behind an interface of our own).
//
// Semantics, as kernels/cpu/attention.h up to rounding: query j of a sequence with n new tokens and
// `context` tokens in its KV (the new ones included) sees tokens [0, context - n + j + 1); query
// head h reads kv head h / (q_heads / kv_heads). Products are of bf16, sums and softmax in float;
// where a context was split, partial results are rounded to bf16 before they are merged. Relative
// RMS error against a float reference of the same bf16 inputs: below 5e-3.
//
// Planning and running are separate. A plan distributes the batch over the GPU: host work of a few
// to some hundred microseconds and one copy into a fixed device buffer, once a step. Running reads
// only fixed addresses, so a captured run is replayed with a new plan each step, provided that
// SameLaunch(new plan, captured plan): check it, a different plan would corrupt memory silently.
//
// Head sizes: 64, 128, 256. FlashInfer has no kernels for others; a model with 80 or 96 can be run
// as 128 with zero rows added to its q, k, v weights and zero columns to o, at the price of KV
// memory. Any q_heads / kv_heads.
//
// Determinism: the same plan on the same inputs gives the same bits. How a context is split depends
// on the batch, so a row may differ in the last bits between batches; split_pages fixes that.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/kv.h"
#include "kernels/cuda/launch.h"

namespace weir::cuda {

enum class AttentionKernel : uint8_t {
  kFa2,  // mma; any GPU from sm_80; splits contexts, so it also decodes
  kFa3,  // wgmma; sm_90 only; prefill
};

// Whether |kernel| was built and runs on the current device.
bool AttentionKernelAvailable(AttentionKernel kernel);

struct AttentionShape {
  int32_t q_heads = 0;  // a multiple of kv_heads
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
};

// The batch, on the host. Sequence i has query rows [q_indptr[i], q_indptr[i+1]) and the blocks
// page table [page_indptr[i], page_indptr[i+1]).
struct AttentionBatch {
  const int32_t* q_indptr_host = nullptr;     // [sequences + 1]
  const int32_t* page_indptr_host = nullptr;  // [sequences + 1]
  const int32_t* context_host = nullptr;      // [sequences]; tokens
  int32_t sequences = 0;
};

// What prefill of |batch| should use on the current device: FA3 where it is available, but for few
// rows behind long contexts.
AttentionKernel PrefillKernel(const AttentionShape& shape, const AttentionBatch& batch);

enum class PlanUse : uint8_t {
  kEager,  // launched once, sized for this batch
  // Captured decode: every sequence has exactly one row. Padded slots keep one (dummy) row and have
  // no pages; their output is written but means nothing.
  kDecodeGraph,
  kPrefillGraph,  // captured: the number of sequences and rows are fixed
};

// Buffers of one plan. device_int is private to a captured graph, or the plan is followed by its
// launch on the same stream before the next one. host_int must not be written while an earlier
// plan's copy is pending: keep two and guard each with an event. device_float may be shared by all
// runs of one stream. All 16-byte aligned.
struct PlanBuffers {
  void* device_float = nullptr;
  size_t float_bytes = 0;
  void* device_int = nullptr;
  void* host_int = nullptr;  // pinned, same size
  size_t int_bytes = 0;
};

struct PlanSizes {
  size_t float_bytes = 0;
  size_t int_bytes = 0;
};

struct AttentionPlan {
  AttentionKernel kernel = AttentionKernel::kFa2;
  PlanUse use = PlanUse::kEager;
  AttentionShape shape;
  int32_t sequences = 0;
  int32_t rows = 0;
  int64_t fields[16] = {};  // FlashInfer's, offsets into the buffers
};
bool SameLaunch(const AttentionPlan& a, const AttentionPlan& b);

// The most that plans of this use with up to |rows| rows, |sequences| sequences need on the current
// device. For kDecodeGraph rows == sequences.
LaunchStatus AttentionPlanSizes(AttentionKernel kernel, const AttentionShape& shape, PlanUse use,
                                int32_t sequences, int32_t rows, PlanSizes* sizes);

struct PlanRequest {
  AttentionKernel kernel = AttentionKernel::kFa2;
  AttentionShape shape;
  AttentionBatch batch;
  PlanUse use = PlanUse::kEager;
  // FA2: 0: contexts are split to fill the GPU. > 0: always after that many pages, so that a row
  // does not depend on its batch; eager plans only.
  int32_t split_pages = 0;
};

// Enqueues one copy on |stream|. Invalid: a shape, batch or buffer that breaks a rule above (too
// small buffers are named with FlashInfer's message).
LaunchStatus PlanAttention(const PlanRequest& request, const PlanBuffers& buffers,
                           cudaStream_t stream, AttentionPlan* plan);

// The page table of the planned batch in device memory, shared by all layers of a step.
struct PageTable {
  int32_t* blocks = nullptr;         // [total pages]
  int32_t* page_indptr = nullptr;    // [sequences + 1]
  int32_t* last_page_len = nullptr;  // [sequences]; tokens in the last page, 1..16 (0: no pages)
  int32_t* q_indptr = nullptr;       // [sequences + 1]
};

struct AttentionRun {
  const Bf16* q = nullptr;  // row i, head h at q + i * q_stride + h * head_dim
  int64_t q_stride = 0;     // elements, a multiple of 8; a slice of the fused qkv buffer will do
  Bf16* out = nullptr;      // [rows, q_heads, head_dim], contiguous
  float* lse = nullptr;     // null, or [rows, q_heads]: base-2 log of the softmax denominator
  float scale = 0;          // usually 1 / sqrt(head_dim)
  KvPool kv;
  int32_t layer = 0;
  PageTable pages;
};

LaunchStatus RunAttention(const AttentionPlan& plan, const PlanBuffers& buffers,
                          const AttentionRun& run, const Launch& launch);

}  // namespace weir::cuda
