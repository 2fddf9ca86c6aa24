// How long a request may be: what is admitted is served to its end, what is longer is refused.
#include <fstream>

#include <gtest/gtest.h>

#include "engine/engine.h"

namespace weir {
namespace {

constexpr uint32_t kContext = 1024;
constexpr char kMadeUp[] = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
  "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "vocab_size": 64,
  "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16"})";

EngineOptions Options(const std::string& policy, uint64_t budget) {
  EngineOptions options;
  options.model = ::testing::TempDir() + "/weir_request_limit_config.json";
  std::ofstream(options.model) << kMadeUp;
  options.dummy_weights = true;
  options.device = DeviceKind::kCpu;
  options.threads = 1;
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 128;
  options.max_model_len = kContext;
  options.granule = 4096;
  options.hbm_budget = budget;
  options.policy = policy;
  return options;
}

// The least budget that holds everything, and so much less KV than the context wants.
uint64_t TightBudget() {
  const auto whole = Engine::Open(Options("resident", 0)).value();
  const EngineInfo& info = whole->info();
  return info.weight_bytes + info.scratch_bytes + 20 * info.kv_block_bytes + 2 * info.granule_bytes;
}

GenerationRequest Request(uint64_t prompt, uint64_t output) {
  GenerationRequest request;
  request.prompt_tokens.assign(prompt, 3);
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  request.sampling.max_tokens = static_cast<uint32_t>(output);
  return request;
}

GenerationOutput RunOne(Engine& engine) {
  GenerationOutput last;
  size_t tokens = 0;
  while (engine.Step().value()) {
    for (GenerationOutput& out : engine.TakeOutputs()) {
      tokens += out.tokens.size();
      last = std::move(out);
    }
  }
  last.tokens.resize(tokens);  // of the whole request
  return last;
}

TEST(RequestLimit, WhatABorderThatNeverMovesCanHoldIsServedAndNoMoreIsTaken) {
  const uint64_t budget = TightBudget();
  uint64_t before = 0;
  for (const char* policy : {"resident", "static{fraction=0.5; placement=stripe}",
                             "static{fraction=1; placement=stripe}"}) {
    SCOPED_TRACE(policy);
    const auto engine = Engine::Open(Options(policy, budget)).value();
    const uint64_t most = engine->info().max_request_tokens;
    EXPECT_GT(most, before) << "the more is away the more KV there is";
    before = most;
    ASSERT_LT(most, kContext);
    EXPECT_LE((most - 1) / kBlockTokens, engine->info().most_kv_blocks);
    for (const uint64_t prompt : {uint64_t{1}, most / 2, most - 1}) {
      SCOPED_TRACE(prompt);
      ASSERT_TRUE(engine->Submit(Request(prompt, most - prompt)).ok());
      const GenerationOutput out = RunOne(*engine);
      EXPECT_EQ(out.reason, FinishReason::kLength) << out.error.ToString();
      EXPECT_EQ(out.tokens.size(), most - prompt);
      const auto refused = engine->Submit(Request(prompt, most - prompt + 1));
      EXPECT_EQ(refused.status().code(), StatusCode::kNoMemory);
      EXPECT_NE(refused.status().message().find(std::to_string(most)), std::string::npos)
          << refused.status().ToString();
      ASSERT_TRUE(engine->Submit(Request(prompt, 0)).ok()) << "not given: what there is room for";
      EXPECT_EQ(RunOne(*engine).tokens.size(), most - prompt);
    }
    EXPECT_FALSE(engine->Submit(Request(most, 0)).ok());
  }
}

// Under a policy that follows the load, its widest border: whatever is admitted is served, alone or
// beside others, and what is refused is refused when it comes.
TEST(RequestLimit, WhatTheWidestBorderOfALoadFollowingPolicyHoldsIsServed) {
  const uint64_t budget = TightBudget();
  for (const char* policy : {"tide", "tide{hold_steps=100000}", "oneiros", "oneiros{slots=2}"}) {
    SCOPED_TRACE(policy);
    const auto engine = Engine::Open(Options(policy, budget)).value();
    const uint64_t most = engine->info().max_request_tokens;
    ASSERT_LT(most, kContext);
    EXPECT_GT(most, 20 * kBlockTokens + 1) << "more than with all weights at home";
    for (const uint64_t prompt : {uint64_t{1}, most / 2, most - 40, most - 1}) {
      SCOPED_TRACE(prompt);
      ASSERT_TRUE(engine->Submit(Request(prompt, most - prompt)).ok());
      const GenerationOutput out = RunOne(*engine);
      EXPECT_EQ(out.reason, FinishReason::kLength) << out.error.ToString();
      EXPECT_EQ(out.tokens.size(), most - prompt);
      EXPECT_EQ(engine->Submit(Request(prompt, most - prompt + 1)).status().code(),
                StatusCode::kNoMemory);
    }
    // Others come and go, and the border with them.
    for (uint64_t i = 0; i < 12; ++i) {
      const uint64_t prompt = 1 + i * 37 % (most - 20);
      ASSERT_TRUE(engine->Submit(Request(prompt, i % 2 == 0 ? 8 : most - prompt)).ok());
    }
    while (engine->Step().value()) {
      for (const GenerationOutput& out : engine->TakeOutputs()) {
        EXPECT_TRUE(out.error.ok()) << out.error.ToString();
      }
    }
  }
}

TEST(RequestLimit, WithRoomForTheContextItIsTheLimit) {
  const auto engine = Engine::Open(Options("resident", 0)).value();
  EXPECT_EQ(engine->info().max_request_tokens, kContext);
}

}  // namespace
}  // namespace weir
