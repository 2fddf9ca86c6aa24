// The default model, real weights, against transformers in float32 on the same dequantised weights
// (tests/oracle/smollm2_oracle.py wrote the expectations), and under memory pressure.
// WEIR_SMOLLM2_GGUF names the model file; without it these tests are skipped.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "engine/cpu_compute.h"
#include "engine/engine.h"

namespace weir {
namespace {

using nlohmann::json;

constexpr float kTieGap = 1e-3F;
constexpr float kLogitTolerance = 1e-3F;
constexpr float kHiddenTolerance = 2e-2F;

const json& Expected() {
  static const json expected = [] {
    std::ifstream in("tests/fixtures/smollm2/expected.json");
    return json::parse(in);
  }();
  return expected;
}

class SmolLm2Test : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("WEIR_SMOLLM2_GGUF");
    if (path == nullptr) GTEST_SKIP() << "WEIR_SMOLLM2_GGUF is not set: no model to test with";
    options_.model = path;
    options_.device = DeviceKind::kCpu;
    options_.max_model_len = 1024;
    options_.policy = "resident";
  }

  std::unique_ptr<Engine> Open() {
    auto engine = Engine::Open(options_);
    EXPECT_TRUE(engine.ok()) << engine.status().ToString();
    return engine.ok() ? std::move(*engine) : nullptr;
  }

  // Tokens of each prompt, in order of submission.
  static std::vector<std::vector<int32_t>> Generate(
      Engine& engine, const std::vector<GenerationRequest>& requests) {
    std::map<RequestId, size_t> index;
    std::vector<std::vector<int32_t>> tokens(requests.size());
    for (size_t i = 0; i < requests.size(); ++i) {
      const auto id = engine.Submit(requests[i]);
      EXPECT_TRUE(id.ok()) << id.status().ToString();
      if (id.ok()) index[*id] = i;
    }
    for (;;) {
      const auto more = engine.Step();
      EXPECT_TRUE(more.ok()) << more.status().ToString();
      for (const GenerationOutput& out : engine.TakeOutputs()) {
        EXPECT_TRUE(out.error.ok()) << out.error.ToString();
        for (const SampledToken& t : out.tokens) tokens[index.at(out.id)].push_back(t.token);
      }
      if (!more.ok() || !*more) break;
    }
    const Status sound = engine.core().CheckIntegrity();
    EXPECT_TRUE(sound.ok()) << sound.ToString();
    return tokens;
  }

  static GenerationRequest Greedy(std::vector<int32_t> prompt, uint32_t max_tokens) {
    GenerationRequest request;
    request.prompt_tokens = std::move(prompt);
    request.sampling.temperature = 0;
    request.sampling.max_tokens = max_tokens;
    request.sampling.ignore_eos = true;
    return request;
  }

  EngineOptions options_;
};

TEST_F(SmolLm2Test, PromptsTokeniseAsHuggingFaceDoes) {
  const auto engine = Open();
  ASSERT_TRUE(engine);
  for (const json& prompt : Expected()["prompts"]) {
    std::string text = prompt["text"];
    if (prompt["kind"] == "chat") {
      const auto rendered = engine->ApplyChatTemplate(prompt["messages"].dump());
      ASSERT_TRUE(rendered.ok()) << rendered.status().ToString();
      text = *rendered;
    }
    const auto tokens = engine->Tokenize(text, false);
    ASSERT_TRUE(tokens.ok());
    EXPECT_EQ(*tokens, prompt["tokens"].get<std::vector<int32_t>>()) << text;
  }
}

TEST_F(SmolLm2Test, GreedyTokensEqualTransformers) {
  options_.kv_cache_dtype = KvCacheDtype::kF32;
  const auto engine = Open();
  ASSERT_TRUE(engine);
  std::vector<GenerationRequest> requests;
  for (const json& prompt : Expected()["prompts"]) {
    requests.push_back(
        Greedy(prompt["tokens"], static_cast<uint32_t>(prompt["greedy_tokens"].size())));
  }
  const auto tokens = Generate(*engine, requests);
  for (size_t p = 0; p < tokens.size(); ++p) {
    const json& prompt = Expected()["prompts"][p];
    const auto want = prompt["greedy_tokens"].get<std::vector<int32_t>>();
    const auto gaps = prompt["greedy_gaps"].get<std::vector<float>>();
    ASSERT_EQ(tokens[p].size(), want.size());
    const auto [a, b] = std::mismatch(want.begin(), want.end(), tokens[p].begin());
    if (a == want.end()) continue;
    EXPECT_LT(gaps[static_cast<size_t>(a - want.begin())], kTieGap)
        << "prompt " << p << ", token " << a - want.begin();
  }
}

TEST_F(SmolLm2Test, HiddenStatesAndLogitsAreClose) {
  options_.kv_cache_dtype = KvCacheDtype::kF32;
  const auto engine = Open();
  ASSERT_TRUE(engine);
  BlockManager& blocks = engine->core().memory().blocks();
  auto& compute = dynamic_cast<CpuCompute&>(engine->compute());
  for (const json& prompt : Expected()["prompts"]) {
    if (!prompt.contains("detail")) continue;
    const json& detail = prompt["detail"];
    StepBatch batch;
    batch.tokens = prompt["tokens"].get<std::vector<int32_t>>();
    StepSequence sequence;
    sequence.rows = batch.rows();
    sequence.context = batch.rows();
    sequence.wants_logits = true;
    std::vector<BlockId> held;
    while (held.size() * kBlockTokens < batch.rows()) {
      if (blocks.counts().free == 0) {
        ASSERT_TRUE(engine->core().memory().GrowKv(1).ok());
      }
      held.push_back(blocks.Allocate(kNobody).value());
    }
    sequence.blocks = held;
    for (uint32_t i = 0; i < batch.rows(); ++i) batch.positions.push_back(static_cast<int32_t>(i));
    batch.sequences.push_back(sequence);
    compute.set_layer_probe([&](uint32_t layer, std::span<const float> rows) {
      const std::span<const float> last = rows.last(rows.size() / batch.rows());
      double squares = 0;
      for (const float v : last) squares += double{v} * v;
      const double norm = detail["layer_hidden_l2"][layer];
      EXPECT_NEAR(std::sqrt(squares), norm, kHiddenTolerance * norm) << "layer " << layer;
      for (size_t i = 0; i < 16; ++i) {
        const float want = detail["layer_hidden_first16"][layer][i];
        EXPECT_NEAR(last[i], want, kHiddenTolerance * std::max(1.0F, std::fabs(want)));
      }
    });
    WeightPager& weights = engine->core().memory().weights();
    ASSERT_TRUE(weights.BeginStep().ok());
    ASSERT_TRUE(compute.Submit(batch, weights).ok());
    StepOutcome outcome;
    ASSERT_TRUE(compute.Collect(&outcome).ok());
    ASSERT_TRUE(weights.EndStep().ok());
    const std::vector<float> logits = compute.ReadLogits(0).value();
    for (size_t i = 0; i < detail["top_tokens"].size(); ++i) {
      EXPECT_NEAR(logits[detail["top_tokens"][i].get<size_t>()],
                  detail["top_logits"][i].get<float>(), kLogitTolerance);
    }
    for (const BlockId block : held) blocks.Release(block);
  }
  compute.set_layer_probe({});
}

// Budget = weights + step buffers + a tenth of the KV wanted: tide must run at least twice the
// requests of resident at once, and every token must be that of an engine with all the memory.
TEST_F(SmolLm2Test, TideDoublesConcurrencyUnderPressureWithoutChangingAToken) {
  constexpr uint32_t kSequences = 24;
  constexpr uint32_t kTokensEach = 256;
  std::vector<GenerationRequest> requests;
  for (uint32_t i = 0; i < kSequences; ++i) {
    const json& tokens = Expected()["prompts"][i]["tokens"];
    std::vector<int32_t> prompt;
    while (prompt.size() < kTokensEach - 24) {
      prompt.insert(prompt.end(), tokens.begin(), tokens.end());
      prompt.push_back(static_cast<int32_t>(100 + i));
    }
    prompt.resize(kTokensEach - 24);
    requests.push_back(Greedy(std::move(prompt), 24));
  }
  options_.max_num_seqs = kSequences;
  options_.max_model_len = kTokensEach;
  options_.max_num_batched_tokens = 256;
  options_.kv_cache_bytes = 0;

  const auto unconstrained = Open();
  ASSERT_TRUE(unconstrained);
  const auto want = Generate(*unconstrained, requests);
  const EngineInfo info = unconstrained->info();
  const uint64_t kv_wanted = kSequences * (kTokensEach / kBlockTokens) * info.kv_block_bytes;

  std::map<std::string, uint32_t> peak;
  for (const std::string policy : {"resident", "tide"}) {
    options_.policy = policy;
    options_.hbm_budget = info.weight_bytes + info.scratch_bytes + kv_wanted / 10;
    const auto engine = Open();
    ASSERT_TRUE(engine);
    EXPECT_EQ(Generate(*engine, requests), want) << policy;
    peak[policy] = engine->core().stats().peak_running;
    EXPECT_EQ(engine->compute().recordings(), 1U);
    if (policy == "tide") {
      EXPECT_GT(engine->core().stats().border_moves, 0U);
      EXPECT_GT(engine->core().memory().weights().stats().bytes_copied, 0U);
    }
  }
  EXPECT_GE(peak["tide"], 2 * peak["resident"]);
  std::printf("concurrent requests: resident %u, tide %u of %u\n", peak["resident"], peak["tide"],
              kSequences);
}

}  // namespace
}  // namespace weir
