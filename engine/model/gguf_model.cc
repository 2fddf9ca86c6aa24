#include "engine/model/gguf_model.h"

#include <algorithm>
#include <cmath>

#include "engine/model/convert.h"

namespace weir {

namespace {

// Represents "{arch}.something" lookups, so that messages and keys agree.
class ArchKeys {
 public:
  ArchKeys(const GgufFile& file, std::string arch) : file_(file), arch_(std::move(arch)) {}
  std::string Key(std::string_view suffix) const { return arch_ + "." + std::string(suffix); }

  Result<std::optional<uint32_t>> Uint(std::string_view suffix) const {
    const std::string key = Key(suffix);
    // Counts may be given per layer; they are accepted if all layers agree.
    const GgufValue* value = file_.FindValue(key);
    if (value == nullptr || value->type != GgufType::kArray) return file_.Uint(key);
    const auto list = WEIR_TRY(file_.Ints(key));
    if (list->empty()) return InvalidArgument("metadata key " + key + " is an empty array");
    for (const int32_t v : *list) {
      if (v != list->front()) return Unsupported("metadata key " + key + " differs between layers");
      if (v < 0) return InvalidArgument("metadata key " + key + " is negative");
    }
    return std::optional<uint32_t>(static_cast<uint32_t>(list->front()));
  }
  Result<uint32_t> Required(std::string_view suffix) const {
    const std::optional<uint32_t> value = WEIR_TRY(Uint(suffix));
    if (!value) return InvalidArgument("metadata key " + Key(suffix) + " is missing");
    return *value;
  }
  Result<std::optional<double>> Float(std::string_view suffix) const {
    return file_.Float(Key(suffix));
  }
  Result<std::optional<std::string>> String(std::string_view suffix) const {
    return file_.String(Key(suffix));
  }

 private:
  const GgufFile& file_;
  std::string arch_;
};

Result<ModelFamily> FamilyOfArch(const std::string& arch) {
  if (arch == "llama") return ModelFamily::kLlama;
  if (arch == "qwen2") return ModelFamily::kQwen2;
  if (arch == "qwen3") return ModelFamily::kQwen3;
  return Unsupported("general.architecture \"" + arch.substr(0, 64) +
                     "\" (accepted: llama, qwen2, qwen3)");
}

Status ReadSizes(const GgufFile& file, const ArchKeys& keys, ModelConfig& config) {
  config.num_layers = WEIR_TRY(keys.Required("block_count"));
  config.hidden_size = WEIR_TRY(keys.Required("embedding_length"));
  config.intermediate_size = WEIR_TRY(keys.Required("feed_forward_length"));
  config.num_heads = WEIR_TRY(keys.Required("attention.head_count"));
  if (config.num_heads == 0) return InvalidArgument(keys.Key("attention.head_count") + " is 0");
  const auto kv_heads = WEIR_TRY(keys.Uint("attention.head_count_kv"));
  config.num_kv_heads = kv_heads.value_or(config.num_heads);
  config.max_position = WEIR_TRY(keys.Required("context_length"));

  const auto key_length = WEIR_TRY(keys.Uint("attention.key_length"));
  if (!key_length && config.hidden_size % config.num_heads != 0) {
    return InvalidArgument(keys.Key("embedding_length") + " is not a multiple of " +
                           keys.Key("attention.head_count"));
  }
  config.head_dim = key_length.value_or(config.hidden_size / config.num_heads);
  for (const char* suffix : {"attention.value_length", "rope.dimension_count"}) {
    const auto length = WEIR_TRY(keys.Uint(suffix));
    if (length && *length != config.head_dim) {
      return Unsupported(keys.Key(suffix) + " is " + std::to_string(*length) +
                         " (accepted: " + std::to_string(config.head_dim) + ", the key length)");
    }
  }
  const auto eps = WEIR_TRY(keys.Float("attention.layer_norm_rms_epsilon"));
  if (!eps) {
    return InvalidArgument(keys.Key("attention.layer_norm_rms_epsilon") + " is missing");
  }
  config.rms_norm_eps = static_cast<float>(*eps);

  const auto experts = WEIR_TRY(keys.Uint("expert_count"));
  if (experts.value_or(0) > 0) return Unsupported("mixture-of-experts models");
  // A window of 0 means none, as in llama.cpp.
  const auto window = WEIR_TRY(keys.Uint("attention.sliding_window"));
  if (window.value_or(0) > 0) config.sliding_window = window;

  const TensorInfo* embedding = file.Find("token_embd.weight");
  if (embedding == nullptr) return NotFound("tensor token_embd.weight is not in the file");
  config.dtype = embedding->dtype;
  const auto vocab = WEIR_TRY(keys.Uint("vocab_size"));
  const auto* tokens = WEIR_TRY(file.Strings("tokenizer.ggml.tokens"));
  if (vocab) {
    config.vocab_size = *vocab;
  } else if (tokens != nullptr && tokens->size() <= 0xffffffffu) {
    config.vocab_size = static_cast<uint32_t>(tokens->size());
  } else {
    return InvalidArgument(keys.Key("vocab_size") + " and tokenizer.ggml.tokens are missing");
  }
  // A token id indexes the embedding.
  if (tokens != nullptr && tokens->size() > config.vocab_size) {
    return InvalidArgument("tokenizer.ggml.tokens has " + std::to_string(tokens->size()) +
                           " entries, the vocabulary " + std::to_string(config.vocab_size));
  }
  return {};
}

Status ReadRope(const ArchKeys& keys, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  const auto theta = WEIR_TRY(keys.Float("rope.freq_base"));
  rope.theta = theta.value_or(10000.0);
  const auto type = WEIR_TRY(keys.String("rope.scaling.type"));
  const auto factor = WEIR_TRY(keys.Float("rope.scaling.factor"));
  const auto old_linear = WEIR_TRY(keys.Float("rope.scale_linear"));
  const std::string name = type.value_or(factor || old_linear ? "linear" : "none");
  if (name == "none") return {};
  rope.factor = factor.value_or(old_linear.value_or(1.0));
  if (rope.factor == 0) rope.factor = 1.0;
  if (name == "linear") {
    rope.kind = rope.factor == 1.0 ? RopeKind::kNone : RopeKind::kLinear;
    return {};
  }
  if (name != "yarn") {
    return Unsupported("rope scaling type \"" + name.substr(0, 64) +
                       "\" (accepted: none, linear, yarn)");
  }
  rope.kind = RopeKind::kYarn;
  const auto original = WEIR_TRY(keys.Uint("rope.scaling.original_context_length"));
  rope.original_max_position = original.value_or(config.max_position);
  const auto fast = WEIR_TRY(keys.Float("rope.scaling.yarn_beta_fast"));
  const auto slow = WEIR_TRY(keys.Float("rope.scaling.yarn_beta_slow"));
  rope.beta_fast = fast.value_or(32.0);
  rope.beta_slow = slow.value_or(1.0);
  // llama.cpp multiplies its attn_factor with yarn's own 1 + 0.1 ln(factor).
  const auto attention = WEIR_TRY(keys.Float("rope.scaling.attn_factor"));
  if (attention && *attention != 1.0) {
    rope.attention_factor = *attention * (1.0 + 0.1 * std::log(std::max(rope.factor, 1.0)));
  }
  return {};
}

Status ReadRopeDivisors(const GgufFile& file, const ByteSource& source, ModelConfig& config) {
  const TensorInfo* info = file.Find("rope_freqs.weight");
  if (info == nullptr) return {};
  if (info->dtype != DType::kF32 || info->shape.size() != 1 ||
      info->shape[0] != config.head_dim / 2) {
    return DataLoss("tensor rope_freqs.weight is " + std::string(DTypeName(info->dtype)) + " " +
                    ShapeString(info->shape) + ", F32 [" + std::to_string(config.head_dim / 2) +
                    "] is expected");
  }
  std::vector<float> divisors(config.head_dim / 2);
  WEIR_TRY(source.ReadAt(info->offset, std::as_writable_bytes(std::span<float>(divisors))));
  config.rope.divisors = std::move(divisors);
  return {};
}

Status ReadTokenIds(const GgufFile& file, ModelConfig& config) {
  const auto read = [&](const char* key, std::vector<int32_t>& ids) -> Status {
    const auto* value = file.FindValue(key);
    if (value == nullptr) return {};
    if (const auto* i = std::get_if<int64_t>(&value->value); i != nullptr && *i == -1) return {};
    const auto id = WEIR_TRY(file.Uint(key));
    if (!id || *id == 0xffffffffu) return {};
    if (*id >= config.vocab_size) {
      return InvalidArgument(std::string(key) + " is " + std::to_string(*id) +
                             ", outside the vocabulary of " + std::to_string(config.vocab_size));
    }
    const auto signed_id = static_cast<int32_t>(*id);
    for (const int32_t known : ids) {
      if (known == signed_id) return {};
    }
    ids.push_back(signed_id);
    return {};
  };
  WEIR_TRY(read("tokenizer.ggml.bos_token_id", config.bos_token_ids));
  WEIR_TRY(read("tokenizer.ggml.eos_token_id", config.eos_token_ids));
  return read("tokenizer.ggml.eot_token_id", config.eos_token_ids);
}

}  // namespace

Result<ModelConfig> ConfigFromGguf(const GgufFile& file, const ByteSource& source) {
  const auto arch = WEIR_TRY(file.String("general.architecture"));
  if (!arch) return InvalidArgument("metadata key general.architecture is missing");
  const auto splits = WEIR_TRY(file.Uint("split.count"));
  if (splits.value_or(0) > 1) {
    return Unsupported("a GGUF file split into " + std::to_string(*splits) +
                       " parts (accepted: one file; merge them first)");
  }
  ModelConfig config;
  config.family = WEIR_TRY(FamilyOfArch(*arch));
  const ArchKeys keys(file, *arch);
  WEIR_TRY(ReadSizes(file, keys, config));
  WEIR_TRY(ReadRope(keys, config));
  config.tie_word_embeddings = file.Find("output.weight") == nullptr;
  config.attention_bias =
      config.family == ModelFamily::kQwen2 || file.Find("blk.0.attn_q.bias") != nullptr;
  config.o_bias = file.Find("blk.0.attn_output.bias") != nullptr;
  config.mlp_bias = file.Find("blk.0.ffn_gate.bias") != nullptr;
  config.qk_norm = config.family == ModelFamily::kQwen3;
  WEIR_TRY(ReadTokenIds(file, config));
  WEIR_TRY(ValidateModelConfig(config));
  WEIR_TRY(ReadRopeDivisors(file, source, config));
  WEIR_TRY(ValidateModelConfig(config));
  return config;
}

}  // namespace weir
