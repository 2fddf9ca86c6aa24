// What a decoder model is: its hyper-parameters, validated, whatever file they came from.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/dtype.h"
#include "vmm/status.h"

namespace weir {

// Decoder families of one shape: RMSNorm, rotary attention with grouped KV heads, SwiGLU.
// SmolLM2 and Llama 2/3 are kLlama.
enum class ModelFamily : uint8_t { kLlama, kMistral, kQwen2, kQwen3 };
std::string_view ModelFamilyName(ModelFamily family);  // "llama", ...

// How inverse frequencies depart from theta^(-2i/head_dim).
enum class RopeKind : uint8_t { kNone, kLinear, kLlama3, kYarn };

struct RopeConfig {
  double theta = 10000.0;
  RopeKind kind = RopeKind::kNone;
  double factor = 1.0;                     // kLinear, kLlama3, kYarn
  double low_freq_factor = 1.0;            // kLlama3
  double high_freq_factor = 4.0;           // kLlama3
  uint32_t original_max_position = 0;      // kLlama3, kYarn
  double beta_fast = 32.0;                 // kYarn
  double beta_slow = 1.0;                  // kYarn
  bool truncate = true;                    // kYarn: ramp ends on whole dimensions
  std::optional<double> attention_factor;  // kYarn; absent: derived from factor and mscale
  std::optional<double> mscale;            // kYarn
  std::optional<double> mscale_all_dim;    // kYarn
  // GGUF rope_freqs.weight: head_dim/2 numbers that divide the inverse frequencies; empty: none.
  std::vector<float> divisors;
};

// Represents one decoder's hyper-parameters. A value made by ParseModelConfig or a Checkpoint has
// passed ValidateModelConfig; sizes then fit in 32 bits in every product a layer needs.
struct ModelConfig {
  ModelFamily family = ModelFamily::kLlama;
  uint32_t vocab_size = 0;
  uint32_t hidden_size = 0;
  uint32_t num_layers = 0;
  uint32_t num_heads = 0;
  uint32_t num_kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t intermediate_size = 0;
  uint32_t max_position = 0;  // positions [0, max_position) are what the model was made for
  float rms_norm_eps = 1e-6f;
  bool tie_word_embeddings = false;  // the output matrix is the embedding
  bool attention_bias = false;       // q, k and v have a bias
  bool o_bias = false;
  bool mlp_bias = false;  // gate, up and down have a bias
  bool qk_norm = false;   // RMSNorm of each q and k head before rope
  RopeConfig rope;
  // Empty when the model has none. The first EOS is the one to append, all of them stop.
  std::vector<int32_t> bos_token_ids;
  std::vector<int32_t> eos_token_ids;
  // Set when the file names a window that never cuts (>= max_position); smaller ones are refused.
  std::optional<uint32_t> sliding_window;
  DType dtype = DType::kF32;  // what the weights were saved as; of GGUF files: the embedding's

  uint32_t q_size() const { return num_heads * head_dim; }
  uint32_t kv_size() const { return num_kv_heads * head_dim; }
};

// Reads Hugging Face config.json and, where given, generation_config.json, whose token ids win as
// in transformers. Missing optional keys take transformers' default for the family. kDataLoss: not
// strict JSON. kInvalidArgument: a value is missing, of the wrong type or out of range.
// kUnsupported: a family, activation, rope type, quantisation or window weir cannot run.
Result<ModelConfig> ParseModelConfig(std::string_view config_json,
                                     std::string_view generation_config_json = "");

// Every rule about single values and their relations. kInvalidArgument names the value and its
// range.
Status ValidateModelConfig(const ModelConfig& config);

// The family called |name|, or kUnsupported with the accepted names and the nearest one.
Result<ModelFamily> ParseModelFamily(std::string_view name);

// The head_dim/2 angular steps per position, bit for bit in float32 as transformers computes them
// up to the C library's powf (modeling_rope_utils.py: default, linear, llama3, yarn [Peng 2023]).
std::vector<float> RopeInverseFrequencies(const ModelConfig& config);
// The factor on cos and sin: 1 except for yarn.
float RopeAttentionScale(const ModelConfig& config);

}  // namespace weir
