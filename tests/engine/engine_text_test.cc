// The text of an answer: what the generated tokens add to the text of the prompt, and what ends it.
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "engine/engine.h"

namespace weir {
namespace {

constexpr char kMadeUp[] = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "vocab_size": 1000,
  "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "eos_token_id": 7})";

// A made-up model with a real tokenizer.
std::unique_ptr<Engine> Open(const std::string& family) {
  // As fine-tunes have it: the end of a turn is the tokenizer's, config.json knows another.
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(::testing::TempDir()) / ("weir_engine_text_" + family);
  fs::create_directories(folder);
  std::ofstream(folder / "config.json") << kMadeUp;
  fs::copy_file("tests/fixtures/text/" + family + ".json", folder / "tokenizer.json",
                fs::copy_options::overwrite_existing);
  std::ofstream(folder / "tokenizer_config.json") << R"({"eos_token": "</s>"})";
  EngineOptions options;
  options.model = folder.string();
  options.dummy_weights = true;
  options.device = DeviceKind::kCpu;
  options.threads = 1;
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 64;
  return Engine::Open(options).value();
}

// What follows |prompt| when the one token is |piece|.
std::string TextAfter(Engine& engine, const std::string& prompt, std::string_view piece) {
  GenerationRequest request;
  request.prompt_tokens = engine.Tokenize(prompt, true).value();
  request.sampling.temperature = 0;
  request.sampling.max_tokens = 1;
  request.sampling.ignore_eos = true;
  request.sampling.logit_bias = {{engine.tokenizer()->TokenToId(piece).value(), 100.0F}};
  EXPECT_TRUE(engine.Submit(std::move(request)).ok());
  std::string text;
  while (engine.Step().value()) {
    for (const GenerationOutput& out : engine.TakeOutputs()) text += out.text;
  }
  return text;
}

// A decoder that drops the space in front of a text must not drop it in front of what goes on.
TEST(EngineText, KeepsTheSpaceBetweenThePromptAndItsContinuation) {
  for (const std::string family : {"llama2", "mistral", "metaspace"}) {
    const auto engine = Open(family);
    EXPECT_EQ(TextAfter(*engine, "that is", "▁the"), " the") << family;
  }
  EXPECT_EQ(TextAfter(*Open("smollm"), "that is", "Ġthe"), " the");
}

TEST(EngineText, EndsAtTheTokenizersEndAndAtTheModels) {
  const auto engine = Open("llama2");
  const int32_t end = engine->tokenizer()->TokenToId("</s>").value();
  for (const int32_t forced : {end, 7, 8}) {
    GenerationRequest request;
    request.prompt_tokens = {1, 20, 30};
    request.sampling.temperature = 0;
    request.sampling.max_tokens = 3;
    request.sampling.logit_bias = {{forced, 100.0F}};
    EXPECT_TRUE(engine->Submit(std::move(request)).ok());
    GenerationOutput last;
    while (engine->Step().value()) {
      for (GenerationOutput& out : engine->TakeOutputs()) last = std::move(out);
    }
    ASSERT_EQ(last.tokens.size(), 1U);
    EXPECT_EQ(last.tokens[0].token, forced);
    EXPECT_EQ(last.reason, forced == 8 ? FinishReason::kLength : FinishReason::kStop) << forced;
  }
}

}  // namespace
}  // namespace weir
