// CudaLayout: the step buffers of the CUDA back-end, all in one block of device memory (scratch
// granules), and the host's copies of those that travel.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/compute.h"
#include "engine/model/model_config.h"
#include "engine/weight_map.h"
#include "kernels/cuda/attention.h"

namespace weir {

// What a step is told: offsets in the input block. Of the rows, and of the block tables at its end,
// only as much travels as there is.
struct CudaInputLayout {
  // Block tables of one attention plan.
  struct Tables {
    uint64_t q_indptr = 0, page_indptr = 0, last_page_len = 0;
  };
  uint64_t exchange = 0;  // cuda::ExchangeHeader; the block begins with it
  uint64_t gate_header = 0, chunk_of_gate = 0;
  uint64_t tokens = 0, positions = 0, slots = 0, logit_rows = 0, samples = 0;
  Tables decode, prefill;
  uint64_t pages = 0;  // int32 block ids, to the end
  uint64_t bytes = 0;
};

// What a step tells: offsets in the output block. What few steps have comes last.
struct CudaOutputLayout {
  uint64_t step = 0;  // ExchangeHeader::step; the block begins with it
  uint64_t log = 0, results = 0;
  uint64_t gate_records = 0;                  // of steps that pass a gate
  uint64_t top_tokens = 0, top_logprobs = 0;  // of steps that want some
  uint64_t bytes = 0;
};

struct CudaLayout {
  CudaInputLayout in;
  CudaOutputLayout out;
  // Offsets in the scratch block.
  uint64_t inputs = 0, outputs = 0, turn = 0, sampled = 0, edits = 0;
  uint64_t hidden = 0, normed = 0, qkv = 0, attended = 0, gate_up = 0, activated = 0;
  uint64_t gathered = 0, logits = 0, rope_cos = 0, rope_sin = 0;
  uint64_t gemm_workspace = 0;
  uint64_t expanded = 0;  // a part of compressed weights as it was
  uint64_t plan_float = 0, decode_int = 0, prefill_int = 0;
  uint64_t decode_workspace = 0;  // of our own decode attention; zeroed once
  uint64_t bytes = 0;

  uint64_t expanded_bytes = 0;
  uint64_t plan_float_bytes = 0, decode_int_bytes = 0, prefill_int_bytes = 0;
  uint64_t decode_workspace_bytes = 0;  // 0: this GPU or shape has no such kernel
  uint64_t max_edits = 0;
  std::vector<uint32_t> decode_buckets;  // ascending; the last holds max_sequences

  // On the calling thread's CUDA device.
  static Result<CudaLayout> Make(const ModelConfig& config, const WeightMap& map,
                                 const ComputeLimits& limits);
};

inline constexpr uint64_t kGemmWorkspaceBytes = 32 * kMiB;  // NVIDIA's advice for Hopper
// Of compressed weights: a thousand rows of 16,384 columns.
inline constexpr uint64_t kLeastExpandedBytes = 32 * kMiB;

cuda::AttentionShape AttentionShapeOf(const ModelConfig& config, const WeightMap& map);
cuda::KvLayout CudaKvLayoutOf(const ModelConfig& config, const WeightMap& map);

}  // namespace weir
