#include "engine/model/model_config.h"

#include "engine/model/json.h"
#include "tests/engine/model/model_file_builder.h"

namespace weir {
namespace {

using nlohmann::json;

// The published configuration of SmolLM2-135M, what matters of it.
json SmolLm() {
  return json::parse(R"({"model_type":"llama","vocab_size":49152,"hidden_size":576,
    "intermediate_size":1536,"num_hidden_layers":30,"num_attention_heads":9,
    "num_key_value_heads":3,"max_position_embeddings":8192,"rms_norm_eps":1e-5,
    "rope_theta":100000,"rope_scaling":null,"tie_word_embeddings":true,"hidden_act":"silu",
    "attention_bias":false,"bos_token_id":1,"eos_token_id":2,"torch_dtype":"bfloat16",
    "architectures":["LlamaForCausalLM"],"pad_token_id":2})");
}

json With(json config, const char* key, json value) {
  config[key] = std::move(value);
  return config;
}
json Without(json config, const char* key) {
  config.erase(key);
  return config;
}
json OfType(const char* type) {
  return With(SmolLm(), "model_type", type);
}

Result<ModelConfig> Parse(const json& config) {
  return ParseModelConfig(config.dump());
}

TEST(ModelConfig, SmolLm2IsReadAsWritten) {
  const auto config = Parse(SmolLm());
  ASSERT_TRUE(config.ok()) << config.status().ToString();
  EXPECT_EQ(config->family, ModelFamily::kLlama);
  EXPECT_EQ(config->vocab_size, 49152u);
  EXPECT_EQ(config->hidden_size, 576u);
  EXPECT_EQ(config->num_layers, 30u);
  EXPECT_EQ(config->num_heads, 9u);
  EXPECT_EQ(config->num_kv_heads, 3u);
  EXPECT_EQ(config->head_dim, 64u);
  EXPECT_EQ(config->intermediate_size, 1536u);
  EXPECT_EQ(config->max_position, 8192u);
  EXPECT_FLOAT_EQ(config->rms_norm_eps, 1e-5f);
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_FALSE(config->attention_bias || config->o_bias || config->mlp_bias || config->qk_norm);
  EXPECT_EQ(config->rope.theta, 100000.0);
  EXPECT_EQ(config->rope.kind, RopeKind::kNone);
  EXPECT_EQ(config->bos_token_ids, std::vector<int32_t>{1});
  EXPECT_EQ(config->eos_token_ids, std::vector<int32_t>{2});
  EXPECT_EQ(config->dtype, DType::kBF16);
}

TEST(ModelConfig, FamiliesDifferInBiasesAndNorms) {
  const auto llama = Parse(With(With(SmolLm(), "attention_bias", true), "mlp_bias", true));
  EXPECT_TRUE(llama->attention_bias && llama->o_bias && llama->mlp_bias);
  const auto qwen2 = Parse(OfType("qwen2"));
  EXPECT_TRUE(qwen2->attention_bias);
  EXPECT_FALSE(qwen2->o_bias || qwen2->qk_norm || qwen2->mlp_bias);
  const auto qwen3 = Parse(With(OfType("qwen3"), "head_dim", 128));
  EXPECT_TRUE(qwen3->qk_norm);
  EXPECT_FALSE(qwen3->attention_bias || qwen3->o_bias);
  EXPECT_EQ(qwen3->q_size(), 9u * 128u);
  EXPECT_EQ(Parse(OfType("qwen3"))->head_dim, 128u) << "transformers' default for the family";
}

TEST(ModelConfig, AbsentOptionalKeysTakeTheFamilysDefault) {
  EXPECT_EQ(Parse(Without(SmolLm(), "num_key_value_heads"))->num_kv_heads, 9u);
  EXPECT_EQ(Parse(With(SmolLm(), "num_key_value_heads", nullptr))->num_kv_heads, 9u);
  EXPECT_EQ(Parse(Without(SmolLm(), "max_position_embeddings"))->max_position, 2048u);
  EXPECT_EQ(Parse(Without(SmolLm(), "rope_theta"))->rope.theta, 10000.0);
  EXPECT_FALSE(Parse(Without(SmolLm(), "tie_word_embeddings"))->tie_word_embeddings);
  EXPECT_FLOAT_EQ(Parse(Without(SmolLm(), "rms_norm_eps"))->rms_norm_eps, 1e-6f);
}

TEST(ModelConfig, UnknownModelTypeNamesTheAcceptedAndTheNearest) {
  EXPECT_FAILS(Parse(OfType("qwen33")), StatusCode::kUnsupported,
               "accepted: llama, mistral, qwen2, qwen3); the nearest is \"qwen3\"");
  const auto far = Parse(OfType("deepseek_v3"));
  EXPECT_FAILS(far, StatusCode::kUnsupported, "accepted: llama");
  EXPECT_EQ(far.status().message().find("nearest"), std::string::npos);
  EXPECT_FAILS(Parse(Without(SmolLm(), "model_type")), StatusCode::kInvalidArgument, "missing");
}

TEST(ModelConfig, EveryHyperParameterIsRangeChecked) {
  const struct {
    const char* key;
    json value;
  } cases[] = {{"vocab_size", 0},
               {"vocab_size", 1u << 30},
               {"hidden_size", 0},
               {"hidden_size", 1u << 30},
               {"hidden_size", 577},  // not a multiple of the heads
               {"intermediate_size", 0},
               {"num_hidden_layers", 0},
               {"num_hidden_layers", 100000},
               {"num_attention_heads", 0},
               {"num_attention_heads", 100000},
               {"num_key_value_heads", 0},
               {"num_key_value_heads", 2},   // 9 % 2
               {"num_key_value_heads", 18},  // more than query heads
               {"head_dim", 0},
               {"head_dim", 65},
               {"head_dim", 512},
               {"max_position_embeddings", 0},
               {"max_position_embeddings", 4000000000u},
               {"rms_norm_eps", -1e-5},
               {"rms_norm_eps", 1.0},
               {"rope_theta", 0},
               {"rope_theta", 1.0},
               {"rope_theta", -5},
               {"bos_token_id", 49152},
               {"eos_token_id", json::array({2, 70000})},
               {"vocab_size", -1},
               {"vocab_size", 1.5},
               {"vocab_size", "49152"},
               {"vocab_size", 18446744073709551615u},
               {"tie_word_embeddings", 1},
               {"rope_theta", "10000"},
               {"rope_scaling", "yarn"},
               {"eos_token_id", "</s>"},
               {"hidden_size", nullptr}};
  for (const auto& entry : cases) {
    SCOPED_TRACE(std::string(entry.key) + " = " + entry.value.dump());
    EXPECT_FAILS(Parse(With(SmolLm(), entry.key, entry.value)), StatusCode::kInvalidArgument, "");
  }
}

TEST(ModelConfig, WhatTheEngineCannotRunIsUnsupported) {
  EXPECT_FAILS(Parse(With(SmolLm(), "hidden_act", "gelu")), StatusCode::kUnsupported, "gelu");
  EXPECT_FAILS(Parse(With(SmolLm(), "quantization_config", {{"quant_method", "awq"}})),
               StatusCode::kUnsupported, "awq");
  EXPECT_FAILS(Parse(With(SmolLm(), "partial_rotary_factor", 0.5)), StatusCode::kUnsupported,
               "partial_rotary_factor");
  EXPECT_FAILS(Parse(With(SmolLm(), "torch_dtype", "float8_e4m3fn")), StatusCode::kUnsupported,
               "bfloat16");
  for (const char* type : {"dynamic", "longrope", "mrope"}) {
    EXPECT_FAILS(Parse(With(SmolLm(), "rope_scaling", {{"type", type}, {"factor", 2.0}})),
                 StatusCode::kUnsupported, "accepted: default, linear, llama3, yarn");
  }
}

TEST(ModelConfig, ActiveWindowShorterThanTheContextIsUnsupported) {
  EXPECT_FAILS(Parse(With(OfType("mistral"), "sliding_window", 4096)), StatusCode::kUnsupported,
               "sliding window of 4096");
  EXPECT_FAILS(Parse(OfType("mistral")), StatusCode::kUnsupported, "sliding window of 4096");
  EXPECT_TRUE(Parse(With(OfType("mistral"), "sliding_window", nullptr)).ok());
  EXPECT_EQ(Parse(With(OfType("mistral"), "sliding_window", 8192))->sliding_window, 8192u);
  EXPECT_TRUE(Parse(With(SmolLm(), "sliding_window", 16)).ok()) << "llama ignores the key";

  const json off = With(With(OfType("qwen2"), "sliding_window", 1024), "use_sliding_window", false);
  EXPECT_TRUE(Parse(off).ok());
  const json on = With(off, "use_sliding_window", true);
  EXPECT_FAILS(Parse(on), StatusCode::kUnsupported, "sliding window of 1024");
  EXPECT_TRUE(Parse(With(on, "max_window_layers", 30)).ok()) << "no layer is that high";
  EXPECT_FAILS(Parse(With(on, "layer_types", json::array({"sliding_attention"}))),
               StatusCode::kUnsupported, "sliding window");
}

TEST(ModelConfig, RopeIsReadFromEveryPlaceTransformersReadsItFrom) {
  const json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 4096}};
  const auto old_form = Parse(With(SmolLm(), "rope_scaling", llama3));
  ASSERT_TRUE(old_form.ok()) << old_form.status().ToString();
  EXPECT_EQ(old_form->rope.kind, RopeKind::kLlama3);
  EXPECT_EQ(old_form->rope.theta, 100000.0);
  EXPECT_EQ(old_form->rope.original_max_position, 4096u);

  json flat = llama3;
  flat["rope_theta"] = 5e5;
  const auto new_form = Parse(With(Without(SmolLm(), "rope_theta"), "rope_parameters", flat));
  ASSERT_TRUE(new_form.ok()) << new_form.status().ToString();
  EXPECT_EQ(new_form->rope.kind, RopeKind::kLlama3);
  EXPECT_EQ(new_form->rope.theta, 5e5);

  const auto nested = Parse(With(SmolLm(), "rope_parameters", {{"full_attention", flat}}));
  EXPECT_EQ(nested->rope.theta, 5e5);

  // rope_scaling wins, "type" is the old spelling, the original length defaults to the context.
  const json linear = {{"type", "linear"}, {"factor", 2}};
  EXPECT_EQ(Parse(With(With(SmolLm(), "rope_scaling", linear), "rope_parameters", flat))->rope.kind,
            RopeKind::kLinear);
  const auto yarn = Parse(With(SmolLm(), "rope_scaling", {{"type", "yarn"}, {"factor", 4}}));
  EXPECT_EQ(yarn->rope.original_max_position, 8192u);
  EXPECT_EQ(yarn->rope.beta_fast, 32.0);
}

TEST(ModelConfig, IncompleteOrAbsurdRopeScalingIsRefused) {
  const json bad[] = {
      {{"type", "linear"}},
      {{"type", "linear"}, {"factor", 0}},
      {{"type", "linear"}, {"factor", "2"}},
      {{"type", "llama3"}, {"factor", 8.0}},
      {{"type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 4.0}, {"high_freq_factor", 4.0}},
      {{"type", "yarn"}, {"factor", 4}, {"original_max_position_embeddings", 0}},
      {{"type", "yarn"}, {"factor", 4}, {"beta_fast", 1}, {"beta_slow", 2}},
      {{"type", "yarn"}, {"factor", 4}, {"attention_factor", -1}},
      {{"type", 3}, {"factor", 4}}};
  for (const json& scaling : bad) {
    SCOPED_TRACE(scaling.dump());
    EXPECT_FAILS(Parse(With(SmolLm(), "rope_scaling", scaling)), StatusCode::kInvalidArgument, "");
  }
}

TEST(ModelConfig, GenerationConfigsTokenIdsWin) {
  const auto config = ParseModelConfig(
      SmolLm().dump(), R"({"bos_token_id":5,"eos_token_id":[7,8],"temperature":0.6})");
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->bos_token_ids, std::vector<int32_t>{5});
  EXPECT_EQ(config->eos_token_ids, (std::vector<int32_t>{7, 8}));
  EXPECT_EQ(ParseModelConfig(SmolLm().dump(), "{}")->eos_token_ids, std::vector<int32_t>{2});
  EXPECT_FAILS(ParseModelConfig(SmolLm().dump(), "[]"), StatusCode::kDataLoss,
               "generation_config.json");
}

TEST(ModelConfig, MalformedJsonIsDataLossWithAPosition) {
  EXPECT_FAILS(ParseModelConfig("{\"model_type\":\"llama\",}"), StatusCode::kDataLoss,
               "config.json: JSON, byte 23");
  EXPECT_FAILS(ParseModelConfig("[]"), StatusCode::kDataLoss, "not a JSON object");
  EXPECT_FAILS(ParseModelConfig(""), StatusCode::kDataLoss, "config.json");
  EXPECT_FAILS(ParseModelConfig(std::string(5 << 20, ' ')), StatusCode::kInvalidArgument, "4 MiB");
}

}  // namespace
}  // namespace weir
