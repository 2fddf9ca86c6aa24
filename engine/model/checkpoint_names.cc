#include "engine/model/checkpoint_names.h"

#include <cmath>

namespace weir {

namespace {

struct RoleNames {
  std::string_view hf;
  std::string_view gguf;
};

constexpr RoleNames kNames[kTensorRoleCount] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
    {"input_layernorm.weight", "attn_norm.weight"},
    {"self_attn.q_proj.weight", "attn_q.weight"},
    {"self_attn.k_proj.weight", "attn_k.weight"},
    {"self_attn.v_proj.weight", "attn_v.weight"},
    {"self_attn.o_proj.weight", "attn_output.weight"},
    {"self_attn.q_proj.bias", "attn_q.bias"},
    {"self_attn.k_proj.bias", "attn_k.bias"},
    {"self_attn.v_proj.bias", "attn_v.bias"},
    {"self_attn.o_proj.bias", "attn_output.bias"},
    {"self_attn.q_norm.weight", "attn_q_norm.weight"},
    {"self_attn.k_norm.weight", "attn_k_norm.weight"},
    {"post_attention_layernorm.weight", "ffn_norm.weight"},
    {"mlp.gate_proj.weight", "ffn_gate.weight"},
    {"mlp.up_proj.weight", "ffn_up.weight"},
    {"mlp.down_proj.weight", "ffn_down.weight"},
    {"mlp.gate_proj.bias", "ffn_gate.bias"},
    {"mlp.up_proj.bias", "ffn_up.bias"},
    {"mlp.down_proj.bias", "ffn_down.bias"},
};

std::string Name(std::string_view prefix, TensorRole role, uint32_t layer, std::string_view name) {
  if (!IsLayerRole(role)) return std::string(name);
  return std::string(prefix) + std::to_string(layer) + "." + std::string(name);
}

}  // namespace

bool HasRole(const ModelConfig& config, TensorRole role) {
  switch (role) {
    case TensorRole::kQBias:
    case TensorRole::kKBias:
    case TensorRole::kVBias: return config.attention_bias;
    case TensorRole::kOBias: return config.o_bias;
    case TensorRole::kQNorm:
    case TensorRole::kKNorm: return config.qk_norm;
    case TensorRole::kGateBias:
    case TensorRole::kUpBias:
    case TensorRole::kDownBias: return config.mlp_bias;
    default: return true;
  }
}

std::vector<uint64_t> ShapeOfRole(const ModelConfig& config, TensorRole role) {
  const uint64_t hidden = config.hidden_size;
  const uint64_t q = config.q_size();
  const uint64_t kv = config.kv_size();
  const uint64_t mlp = config.intermediate_size;
  switch (role) {
    case TensorRole::kEmbedding:
    case TensorRole::kLmHead: return {config.vocab_size, hidden};
    case TensorRole::kFinalNorm:
    case TensorRole::kAttnNorm:
    case TensorRole::kMlpNorm:
    case TensorRole::kOBias:
    case TensorRole::kDownBias: return {hidden};
    case TensorRole::kQ: return {q, hidden};
    case TensorRole::kK:
    case TensorRole::kV: return {kv, hidden};
    case TensorRole::kO: return {hidden, q};
    case TensorRole::kQBias: return {q};
    case TensorRole::kKBias:
    case TensorRole::kVBias: return {kv};
    case TensorRole::kQNorm:
    case TensorRole::kKNorm: return {config.head_dim};
    case TensorRole::kGate:
    case TensorRole::kUp: return {mlp, hidden};
    case TensorRole::kDown: return {hidden, mlp};
    case TensorRole::kGateBias:
    case TensorRole::kUpBias: return {mlp};
  }
  return {};
}

std::string HfTensorName(TensorRole role, uint32_t layer) {
  return Name("model.layers.", role, layer, kNames[static_cast<size_t>(role)].hf);
}

std::string GgufTensorName(TensorRole role, uint32_t layer) {
  return Name("blk.", role, layer, kNames[static_cast<size_t>(role)].gguf);
}

float DummyScale(const ModelConfig& config, TensorRole role) {
  const auto inverse_root = [](double n) { return static_cast<float>(1.0 / std::sqrt(n)); };
  switch (role) {
    case TensorRole::kEmbedding:
    case TensorRole::kLmHead:
      // Logits of a normalised state then have a standard deviation of 3: clear winners, no
      // overflow.
      return 3.0f * inverse_root(config.hidden_size);
    case TensorRole::kQ:
    case TensorRole::kK:
    case TensorRole::kV:
    case TensorRole::kGate:
    case TensorRole::kUp: return inverse_root(config.hidden_size);
    // The two writers into the residual stream share one unit of variance over all layers (GPT-2).
    case TensorRole::kO:
      return inverse_root(static_cast<double>(config.q_size()) * 2.0 * config.num_layers);
    case TensorRole::kDown:
      return inverse_root(static_cast<double>(config.intermediate_size) * 2.0 * config.num_layers);
    case TensorRole::kQBias:
    case TensorRole::kKBias:
    case TensorRole::kVBias:
    case TensorRole::kOBias:
    case TensorRole::kGateBias:
    case TensorRole::kUpBias:
    case TensorRole::kDownBias: return 0.02f;
    default: return 0.0f;
  }
}

}  // namespace weir
