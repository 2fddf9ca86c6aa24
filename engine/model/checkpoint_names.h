// The parts of a decoder and what each container calls them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/model_config.h"

namespace weir {

// The first three exist once, the others once a layer.
enum class TensorRole : uint8_t {
  kEmbedding,  // [vocab, hidden]
  kFinalNorm,  // [hidden]
  kLmHead,     // [vocab, hidden]
  kAttnNorm,   // [hidden]
  kQ,          // [heads * head_dim, hidden]
  kK,          // [kv_heads * head_dim, hidden]
  kV,          // [kv_heads * head_dim, hidden]
  kO,          // [hidden, heads * head_dim]
  kQBias,
  kKBias,
  kVBias,
  kOBias,
  kQNorm,    // [head_dim]
  kKNorm,    // [head_dim]
  kMlpNorm,  // [hidden]
  kGate,     // [intermediate, hidden]
  kUp,       // [intermediate, hidden]
  kDown,     // [hidden, intermediate]
  kGateBias,
  kUpBias,
  kDownBias,
};
inline constexpr uint32_t kTensorRoleCount = 21;
inline constexpr uint32_t kModelRoleCount = 3;

constexpr bool IsLayerRole(TensorRole role) {
  return static_cast<uint32_t>(role) >= kModelRoleCount;
}

// Whether a model of |config| has |role|. kLmHead of a tied model: yes, it is the embedding.
bool HasRole(const ModelConfig& config, TensorRole role);
// Row-major, outermost first.
std::vector<uint64_t> ShapeOfRole(const ModelConfig& config, TensorRole role);
// "model.layers.3.self_attn.q_proj.weight"; |layer| is ignored for model roles.
std::string HfTensorName(TensorRole role, uint32_t layer);
// "blk.3.attn_q.weight".
std::string GgufTensorName(TensorRole role, uint32_t layer);
// Standard deviation of the made-up tensor: activations stay of order one at any depth and width.
// 0 for norms, whose made-up weights are all one.
float DummyScale(const ModelConfig& config, TensorRole role);

}  // namespace weir
