// WeightMap: where a back-end's weights lie in the weight region.
//
// What a step reads of a layer between two gates is one segment:
//   segment 0  fused q|k|v, then o     (gate: before the attention products)
//   segment 1  fused gate|up           (gate: before the MLP)
//   segment 2  down                    (gate: after the activation)
// Embedding, lm_head, norms and biases come first and are never evicted. An embedding that is not
// the lm_head too is the layout's lookup table.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/model/model_config.h"
#include "pager/eviction_plan.h"

namespace weir {

inline constexpr uint32_t kSegmentsPerLayer = 3;

// How one back-end wants its tensors. Norms are f32 everywhere.
enum class WeightFormat : uint8_t {
  kCpu,   // matrices: bf16 in the panel order of kernels/cpu/gemm.h; biases: f32
  kCuda,  // matrices: bf16, row-major [out, in] as Hugging Face stores them; biases: bf16
};

// Byte offsets into the weight region; kAbsent where the model has no such tensor.
struct LayerOffsets {
  static constexpr uint64_t kAbsent = ~uint64_t{0};
  uint64_t qkv = kAbsent, o = kAbsent, gate_up = kAbsent, down = kAbsent;
  uint64_t attn_norm = kAbsent, mlp_norm = kAbsent, q_norm = kAbsent, k_norm = kAbsent;
  uint64_t qkv_bias = kAbsent, o_bias = kAbsent, gate_up_bias = kAbsent, down_bias = kAbsent;
};

struct WeightMap {
  WeightFormat format = WeightFormat::kCpu;
  // Matrices gate|up are compressed (kernels/compressed_weights.h). Not with kCpu.
  bool compressed = false;
  // Rows of q, k and v (columns of o) that one head takes: the model's head_dim, or more where the
  // back-end has no kernel for it and the rest is zeros.
  uint32_t head_stride = 0;
  uint64_t embedding = 0;
  uint64_t lm_head = 0;  // == embedding when tied
  uint64_t final_norm = 0;
  std::vector<LayerOffsets> layers;
  WeightLayout layout;

  // Bytes of a matrix of |rows| x |cols|, and of a bias of |n|, in this format.
  uint64_t MatrixBytes(uint64_t rows, uint64_t cols) const;
  // Bytes of a layer's gate|up of |rows| x |cols|.
  uint64_t GateUpBytes(uint64_t rows, uint64_t cols) const;
  uint64_t BiasBytes(uint64_t n) const { return n * (format == WeightFormat::kCpu ? 4 : 2); }

  // With |granule| (bytes; 0: none) the largest segment of each layer holds a whole granule if it
  // is long enough for one: without that nothing could leave, so there a layer begins later.
  static WeightMap Make(const ModelConfig& config, WeightFormat format, uint64_t granule = 0,
                        bool compressed = false);
};

}  // namespace weir
