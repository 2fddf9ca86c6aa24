#include "engine/model/model_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "engine/model/json.h"
#include "engine/model/no_throw.h"

namespace weir {

namespace {

using nlohmann::json;

constexpr std::array<ModelFamily, 4> kFamilies = {ModelFamily::kLlama, ModelFamily::kMistral,
                                                  ModelFamily::kQwen2, ModelFamily::kQwen3};

// Caps: an order of magnitude above published models, and small enough that products of two fit in
// 48 bits. A file beyond them is taken to be broken or hostile.
constexpr uint32_t kMaxVocab = 1u << 22;
constexpr uint32_t kMaxHidden = 1u << 17;
constexpr uint32_t kMaxLayers = 1024;
constexpr uint32_t kMaxHeads = 2048;
constexpr uint32_t kMaxHeadDim = 256;
constexpr uint32_t kMaxIntermediate = 1u << 20;
constexpr uint32_t kMaxPosition = 1u << 27;

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0u : 1u)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

std::string Quoted(const json& value) {
  return value.dump(-1, ' ', true, json::error_handler_t::replace).substr(0, 128);
}

const json* FindKey(const json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

Result<uint32_t> ToUint(const json& value, const std::string& key) {
  // 4096.0 is a legal way to write an integer and some tools do.
  if (value.is_number_unsigned() && value.get<uint64_t>() <= std::numeric_limits<uint32_t>::max()) {
    return static_cast<uint32_t>(value.get<uint64_t>());
  }
  if (value.is_number_float()) {
    const double d = value.get<double>();
    if (d >= 0 && d <= 4294967295.0 && d == std::floor(d)) return static_cast<uint32_t>(d);
  }
  return InvalidArgument(key + " is " + Quoted(value) +
                         ", a whole number in [0, 2^32) is accepted");
}

Result<uint32_t> RequiredUint(const json& object, const char* key) {
  const json* value = FindKey(object, key);
  if (value == nullptr) return InvalidArgument(std::string(key) + " is missing");
  return ToUint(*value, key);
}

Result<uint32_t> UintOr(const json& object, const char* key, uint32_t fallback) {
  const json* value = FindKey(object, key);
  if (value == nullptr) return fallback;
  return ToUint(*value, key);
}

Result<bool> BoolOr(const json& object, const char* key, bool fallback) {
  const json* value = FindKey(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    return InvalidArgument(std::string(key) + " is " + Quoted(*value) +
                           ", true or false is accepted");
  }
  return value->get<bool>();
}

Result<std::optional<double>> OptionalDouble(const json& object, const char* key) {
  const json* value = FindKey(object, key);
  if (value == nullptr) return std::optional<double>();
  if (!value->is_number()) {
    return InvalidArgument(std::string(key) + " is " + Quoted(*value) + ", a number is accepted");
  }
  return std::optional<double>(value->get<double>());
}

Result<double> DoubleOr(const json& object, const char* key, double fallback) {
  return WEIR_TRY(OptionalDouble(object, key)).value_or(fallback);
}

Result<std::string> StringOr(const json& object, const char* key, const std::string& fallback) {
  const json* value = FindKey(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_string()) {
    return InvalidArgument(std::string(key) + " is " + Quoted(*value) + ", a string is accepted");
  }
  return value->get<std::string>();
}

// null, one id or a list of ids.
Result<std::vector<int32_t>> TokenIds(const json& object, const char* key) {
  std::vector<int32_t> ids;
  const json* value = FindKey(object, key);
  if (value == nullptr) return ids;
  const json list = value->is_array() ? *value : json::array({*value});
  if (list.size() > 256) return InvalidArgument(std::string(key) + " lists more than 256 ids");
  for (const json& item : list) {
    const uint32_t id = WEIR_TRY(ToUint(item, key));
    if (id >= kMaxVocab) {
      return InvalidArgument(std::string(key) + " " + std::to_string(id) + " is no token id");
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

Result<json> ParseObject(std::string_view text, std::string_view what) {
  constexpr size_t kMaxConfigBytes = 4u << 20;
  if (text.size() > kMaxConfigBytes) {
    return InvalidArgument(std::string(what) + " is larger than 4 MiB");
  }
  Result<json> parsed = ParseJson(text);
  if (!parsed.ok()) return parsed.status().WithContext(what);
  if (!parsed->is_object()) return DataLoss(std::string(what) + " is not a JSON object");
  return parsed;
}

Result<RopeKind> ParseRopeKind(const std::string& name) {
  if (name == "default") return RopeKind::kNone;
  if (name == "linear") return RopeKind::kLinear;
  if (name == "llama3") return RopeKind::kLlama3;
  if (name == "yarn") return RopeKind::kYarn;
  return Unsupported("rope type \"" + name.substr(0, 64) +
                     "\" (accepted: default, linear, llama3, yarn)");
}

// The one dictionary of rope parameters, and whether there is one. transformers: rope_scaling wins
// over rope_parameters unless it is empty; newer files may nest the dictionary under a layer type.
Result<json> RopeDictionary(const json& config) {
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const json* value = FindKey(config, key);
    if (value == nullptr) continue;
    if (!value->is_object()) return InvalidArgument(std::string(key) + " is not an object");
    if (value->empty()) continue;
    const json* nested = FindKey(*value, "full_attention");
    if (nested == nullptr) return *value;
    if (!nested->is_object()) {
      return InvalidArgument(std::string(key) + ".full_attention is not an object");
    }
    return *nested;
  }
  return json::object();
}

Result<RopeConfig> ParseRope(const json& config, uint32_t max_position) {
  const json dictionary = WEIR_TRY(RopeDictionary(config));
  RopeConfig rope;
  const double outer_theta = WEIR_TRY(DoubleOr(config, "rope_theta", 10000.0));
  rope.theta = WEIR_TRY(DoubleOr(dictionary, "rope_theta", outer_theta));
  const double outer_partial = WEIR_TRY(DoubleOr(config, "partial_rotary_factor", 1.0));
  const double partial = WEIR_TRY(DoubleOr(dictionary, "partial_rotary_factor", outer_partial));
  if (partial != 1.0) return Unsupported("partial_rotary_factor other than 1");
  const std::string old_name = WEIR_TRY(StringOr(dictionary, "type", "default"));
  const std::string kind_name = WEIR_TRY(StringOr(dictionary, "rope_type", old_name));
  rope.kind = WEIR_TRY(ParseRopeKind(kind_name));
  if (rope.kind == RopeKind::kNone) return rope;

  const std::optional<double> factor = WEIR_TRY(OptionalDouble(dictionary, "factor"));
  if (rope.kind != RopeKind::kLinear) {
    rope.original_max_position =
        WEIR_TRY(UintOr(dictionary, "original_max_position_embeddings", max_position));
    rope.original_max_position =
        WEIR_TRY(UintOr(config, "original_max_position_embeddings", rope.original_max_position));
  }
  if (factor) {
    rope.factor = *factor;
  } else if (rope.kind == RopeKind::kYarn && rope.original_max_position != 0) {
    rope.factor = static_cast<double>(max_position) / rope.original_max_position;
  } else {
    return InvalidArgument("rope factor is missing");
  }
  if (rope.kind == RopeKind::kLlama3) {
    const auto low = WEIR_TRY(OptionalDouble(dictionary, "low_freq_factor"));
    const auto high = WEIR_TRY(OptionalDouble(dictionary, "high_freq_factor"));
    if (!low || !high) {
      return InvalidArgument("rope type llama3 needs low_freq_factor and high_freq_factor");
    }
    rope.low_freq_factor = *low;
    rope.high_freq_factor = *high;
  }
  if (rope.kind == RopeKind::kYarn) {
    // transformers: "or 32", so 0 counts as absent.
    const double fast = WEIR_TRY(DoubleOr(dictionary, "beta_fast", 0));
    const double slow = WEIR_TRY(DoubleOr(dictionary, "beta_slow", 0));
    rope.beta_fast = fast == 0 ? 32.0 : fast;
    rope.beta_slow = slow == 0 ? 1.0 : slow;
    rope.truncate = WEIR_TRY(BoolOr(dictionary, "truncate", true));
    rope.attention_factor = WEIR_TRY(OptionalDouble(dictionary, "attention_factor"));
    rope.mscale = WEIR_TRY(OptionalDouble(dictionary, "mscale"));
    rope.mscale_all_dim = WEIR_TRY(OptionalDouble(dictionary, "mscale_all_dim"));
  }
  return rope;
}

// The window the model attends through, if it has one; transformers' default for Mistral is 4096.
Result<std::optional<uint32_t>> ActiveWindow(const json& config, const ModelConfig& model) {
  std::optional<uint32_t> window;
  if (model.family == ModelFamily::kMistral) {
    if (!config.contains("sliding_window")) {
      window = 4096;
    } else if (FindKey(config, "sliding_window") != nullptr) {
      window = WEIR_TRY(RequiredUint(config, "sliding_window"));
    }
  } else if (model.family == ModelFamily::kQwen2 || model.family == ModelFamily::kQwen3) {
    const bool use = WEIR_TRY(BoolOr(config, "use_sliding_window", false));
    const uint32_t first = WEIR_TRY(UintOr(config, "max_window_layers", 28));
    const json* value =
        config.contains("sliding_window") ? FindKey(config, "sliding_window") : nullptr;
    const bool null_window = config.contains("sliding_window") && value == nullptr;
    bool some_layer = first < model.num_layers;
    if (const json* types = FindKey(config, "layer_types")) {
      some_layer = types->is_array() &&
                   std::any_of(types->begin(), types->end(),
                               [](const json& type) { return type != "full_attention"; });
    }
    if (use && some_layer && !null_window) {
      window = WEIR_TRY(UintOr(config, "sliding_window", 4096));
    }
  }
  return window;
}

// What can be seen at a glance to be beyond this engine.
Status CheckSupported(const json& config) {
  const std::string activation = WEIR_TRY(StringOr(config, "hidden_act", "silu"));
  if (activation != "silu" && activation != "swish") {
    return Unsupported("hidden_act \"" + activation.substr(0, 64) + "\" (accepted: silu)");
  }
  if (const json* quantization = FindKey(config, "quantization_config")) {
    std::string method = "unnamed";
    if (quantization->is_object()) {
      method = WEIR_TRY(StringOr(*quantization, "quant_method", method));
    }
    return Unsupported("quantization_config of method \"" + method.substr(0, 64) +
                       "\" (accepted: unquantised safetensors, or a GGUF file)");
  }
  return {};
}

Result<DType> SavedDType(const json& config) {
  const std::string older = WEIR_TRY(StringOr(config, "torch_dtype", "float32"));
  const std::string name = WEIR_TRY(StringOr(config, "dtype", older));
  if (name == "float32") return DType::kF32;
  if (name == "float16") return DType::kF16;
  if (name == "bfloat16") return DType::kBF16;
  return Unsupported("dtype \"" + name.substr(0, 64) + "\" (accepted: float32, float16, bfloat16)");
}

struct FamilyDefaults {
  std::optional<uint32_t> kv_heads;  // nullopt: as many as query heads
  uint32_t max_position;
  std::optional<uint32_t> head_dim;  // nullopt: hidden_size / heads
};

FamilyDefaults DefaultsOf(ModelFamily family) {
  switch (family) {
    case ModelFamily::kLlama: return {std::nullopt, 2048, std::nullopt};
    case ModelFamily::kMistral: return {8, 131072, std::nullopt};
    case ModelFamily::kQwen2: return {32, 32768, std::nullopt};
    case ModelFamily::kQwen3: return {32, 32768, 128};
  }
  return {std::nullopt, 2048, std::nullopt};
}

Status ParseSizes(const json& config, ModelConfig& model) {
  const FamilyDefaults defaults = DefaultsOf(model.family);
  model.vocab_size = WEIR_TRY(RequiredUint(config, "vocab_size"));
  model.hidden_size = WEIR_TRY(RequiredUint(config, "hidden_size"));
  model.intermediate_size = WEIR_TRY(RequiredUint(config, "intermediate_size"));
  model.num_layers = WEIR_TRY(RequiredUint(config, "num_hidden_layers"));
  model.num_heads = WEIR_TRY(RequiredUint(config, "num_attention_heads"));
  if (model.num_heads == 0) return InvalidArgument("num_attention_heads is 0");
  // An explicit null means "as many as query heads"; an absent key means the family's default.
  const uint32_t kv_fallback = config.contains("num_key_value_heads")
                                   ? model.num_heads
                                   : defaults.kv_heads.value_or(model.num_heads);
  model.num_kv_heads = WEIR_TRY(UintOr(config, "num_key_value_heads", kv_fallback));
  model.max_position = WEIR_TRY(UintOr(config, "max_position_embeddings", defaults.max_position));
  if (FindKey(config, "head_dim") != nullptr) {
    model.head_dim = WEIR_TRY(RequiredUint(config, "head_dim"));
  } else if (defaults.head_dim && !config.contains("head_dim")) {
    model.head_dim = *defaults.head_dim;
  } else if (model.hidden_size % model.num_heads != 0) {
    return InvalidArgument("hidden_size " + std::to_string(model.hidden_size) +
                           " is not a multiple of num_attention_heads " +
                           std::to_string(model.num_heads) + ", and head_dim is not given");
  } else {
    model.head_dim = model.hidden_size / model.num_heads;
  }
  const double eps = WEIR_TRY(DoubleOr(config, "rms_norm_eps", 1e-6));
  model.rms_norm_eps = static_cast<float>(eps);
  return {};
}

Status ParseFlags(const json& config, ModelConfig& model) {
  model.tie_word_embeddings = WEIR_TRY(BoolOr(config, "tie_word_embeddings", false));
  const bool bias = WEIR_TRY(BoolOr(config, "attention_bias", false));
  switch (model.family) {
    case ModelFamily::kLlama:
      model.attention_bias = model.o_bias = bias;
      model.mlp_bias = WEIR_TRY(BoolOr(config, "mlp_bias", false));
      break;
    case ModelFamily::kMistral: break;
    case ModelFamily::kQwen2: model.attention_bias = true; break;
    case ModelFamily::kQwen3:
      model.attention_bias = model.o_bias = bias;
      model.qk_norm = true;
      break;
  }
  return {};
}

Status InRange(const char* name, uint32_t value, uint32_t low, uint32_t high) {
  if (value >= low && value <= high) return {};
  return InvalidArgument(std::string(name) + " is " + std::to_string(value) + ", " +
                         std::to_string(low) + " to " + std::to_string(high) + " is accepted");
}

Status InRange(const char* name, double value, double low, double high) {
  if (value >= low && value <= high) return {};  // false for NaN
  return InvalidArgument(std::string(name) + " is " + std::to_string(value) + ", " +
                         std::to_string(low) + " to " + std::to_string(high) + " is accepted");
}

Status ValidateRope(const ModelConfig& config) {
  const RopeConfig& rope = config.rope;
  WEIR_TRY(InRange("rope_theta", rope.theta, 1.000001, 1e15));
  if (!rope.divisors.empty()) {
    if (rope.divisors.size() != config.head_dim / 2) {
      return InvalidArgument("rope divisors: " + std::to_string(rope.divisors.size()) +
                             " values, head_dim/2 = " + std::to_string(config.head_dim / 2) +
                             " are accepted");
    }
    for (const float d : rope.divisors) WEIR_TRY(InRange("rope divisor", d, 1e-6, 1e6));
  }
  if (rope.kind == RopeKind::kNone) return {};
  WEIR_TRY(InRange("rope factor", rope.factor, 1e-3, 1e6));
  if (rope.kind == RopeKind::kLinear) return {};
  WEIR_TRY(InRange("rope original_max_position_embeddings", rope.original_max_position, 1u,
                   kMaxPosition));
  if (rope.kind == RopeKind::kLlama3) {
    WEIR_TRY(InRange("rope low_freq_factor", rope.low_freq_factor, 1e-6, 1e6));
    WEIR_TRY(InRange("rope high_freq_factor", rope.high_freq_factor, 1e-6, 1e6));
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      return InvalidArgument("rope high_freq_factor is not above low_freq_factor");
    }
    return {};
  }
  WEIR_TRY(InRange("rope beta_fast", rope.beta_fast, 1e-6, 1e6));
  WEIR_TRY(InRange("rope beta_slow", rope.beta_slow, 1e-6, 1e6));
  if (rope.beta_fast < rope.beta_slow) {
    return InvalidArgument("rope beta_fast is below beta_slow");
  }
  if (rope.attention_factor) {
    WEIR_TRY(InRange("rope attention_factor", *rope.attention_factor, 1e-6, 1e6));
  }
  WEIR_TRY(InRange("rope mscale", rope.mscale.value_or(0), 0.0, 1e3));
  return InRange("rope mscale_all_dim", rope.mscale_all_dim.value_or(0), 0.0, 1e3);
}

Result<ModelConfig> ParseConfig(std::string_view config_json,
                                std::string_view generation_config_json) {
  const json config = WEIR_TRY(ParseObject(config_json, "config.json"));
  ModelConfig model;
  const std::string type = WEIR_TRY(StringOr(config, "model_type", ""));
  if (type.empty()) return InvalidArgument("model_type is missing");
  model.family = WEIR_TRY(ParseModelFamily(type));
  WEIR_TRY(CheckSupported(config));
  WEIR_TRY(ParseSizes(config, model));
  WEIR_TRY(ParseFlags(config, model));
  model.rope = WEIR_TRY(ParseRope(config, model.max_position));
  model.sliding_window = WEIR_TRY(ActiveWindow(config, model));
  model.dtype = WEIR_TRY(SavedDType(config));
  model.bos_token_ids = WEIR_TRY(TokenIds(config, "bos_token_id"));
  model.eos_token_ids = WEIR_TRY(TokenIds(config, "eos_token_id"));
  if (!generation_config_json.empty()) {
    const json generation = WEIR_TRY(ParseObject(generation_config_json, "generation_config.json"));
    auto bos = WEIR_TRY(TokenIds(generation, "bos_token_id"));
    auto eos = WEIR_TRY(TokenIds(generation, "eos_token_id"));
    if (!bos.empty()) model.bos_token_ids = std::move(bos);
    if (!eos.empty()) model.eos_token_ids = std::move(eos);
  }
  WEIR_TRY(ValidateModelConfig(model));
  return model;
}

}  // namespace

std::string_view ModelFamilyName(ModelFamily family) {
  switch (family) {
    case ModelFamily::kLlama: return "llama";
    case ModelFamily::kMistral: return "mistral";
    case ModelFamily::kQwen2: return "qwen2";
    case ModelFamily::kQwen3: return "qwen3";
  }
  return "?";
}

Result<ModelFamily> ParseModelFamily(std::string_view name) {
  name = name.substr(0, 64);
  std::string accepted;
  std::string_view nearest;
  size_t best = 4;  // further away it is no typing error
  for (const ModelFamily family : kFamilies) {
    const std::string_view candidate = ModelFamilyName(family);
    if (candidate == name) return family;
    accepted += (accepted.empty() ? "" : ", ") + std::string(candidate);
    const size_t distance = EditDistance(name, candidate);
    if (distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  std::string message = "model type \"" + std::string(name) + "\" (accepted: " + accepted + ")";
  if (!nearest.empty()) message += "; the nearest is \"" + std::string(nearest) + "\"";
  return Unsupported(std::move(message));
}

Status ValidateModelConfig(const ModelConfig& config) {
  WEIR_TRY(InRange("vocab_size", config.vocab_size, 1u, kMaxVocab));
  WEIR_TRY(InRange("hidden_size", config.hidden_size, 1u, kMaxHidden));
  WEIR_TRY(InRange("number of layers", config.num_layers, 1u, kMaxLayers));
  WEIR_TRY(InRange("number of attention heads", config.num_heads, 1u, kMaxHeads));
  WEIR_TRY(InRange("number of key-value heads", config.num_kv_heads, 1u, config.num_heads));
  WEIR_TRY(InRange("head_dim", config.head_dim, 2u, kMaxHeadDim));
  WEIR_TRY(InRange("intermediate_size", config.intermediate_size, 1u, kMaxIntermediate));
  WEIR_TRY(InRange("max_position_embeddings", config.max_position, 1u, kMaxPosition));
  WEIR_TRY(InRange("rms_norm_eps", static_cast<double>(config.rms_norm_eps), 0.0, 0.1));
  if (config.num_heads % config.num_kv_heads != 0) {
    return InvalidArgument("number of attention heads " + std::to_string(config.num_heads) +
                           " is not a multiple of the number of key-value heads " +
                           std::to_string(config.num_kv_heads));
  }
  if (config.head_dim % 2 != 0) {
    return InvalidArgument("head_dim is " + std::to_string(config.head_dim) +
                           ", an even number is accepted");
  }
  for (const auto* ids : {&config.bos_token_ids, &config.eos_token_ids}) {
    for (const int32_t id : *ids) {
      if (id < 0 || static_cast<uint32_t>(id) >= config.vocab_size) {
        return InvalidArgument("BOS or EOS token id " + std::to_string(id) +
                               " is outside the vocabulary of " +
                               std::to_string(config.vocab_size));
      }
    }
  }
  if (config.sliding_window && *config.sliding_window < config.max_position) {
    return Unsupported("sliding window of " + std::to_string(*config.sliding_window) +
                       " tokens, shorter than max_position_embeddings " +
                       std::to_string(config.max_position) +
                       " (accepted: none, or one that never cuts)");
  }
  return ValidateRope(config);
}

Result<ModelConfig> ParseModelConfig(std::string_view config_json,
                                     std::string_view generation_config_json) {
  return NoThrow([&] { return ParseConfig(config_json, generation_config_json); });
}

}  // namespace weir
