// CpuLayout: where the CPU back-end's weights and step buffers lie.
//
// Weights are bf16 in the panel order of kernels/cpu/gemm.h, norms and biases f32. What a step
// reads of a layer between two gates is one segment:
//   segment 0  fused q|k|v, then o     (gate: before the attention products)
//   segment 1  fused gate|up           (gate: before the MLP)
//   segment 2  down                    (gate: after the activation)
// Embedding, lm_head, norms and biases come first and are never evicted.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/model/model_config.h"
#include "pager/eviction_plan.h"

namespace weir {

inline constexpr uint32_t kCpuSegmentsPerLayer = 3;

// Byte offsets into the weight region; kAbsent where the model has no such tensor.
struct CpuLayerOffsets {
  static constexpr uint64_t kAbsent = ~uint64_t{0};
  uint64_t qkv = kAbsent, o = kAbsent, gate_up = kAbsent, down = kAbsent;
  uint64_t attn_norm = kAbsent, mlp_norm = kAbsent, q_norm = kAbsent, k_norm = kAbsent;
  uint64_t qkv_bias = kAbsent, o_bias = kAbsent, gate_up_bias = kAbsent, down_bias = kAbsent;
};

struct CpuWeightMap {
  uint64_t embedding = 0;  // packed panels
  uint64_t lm_head = 0;    // == embedding when tied
  uint64_t final_norm = 0;
  std::vector<CpuLayerOffsets> layers;
  WeightLayout layout;

  static CpuWeightMap Make(const ModelConfig& config);
};

}  // namespace weir
