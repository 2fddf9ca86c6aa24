// The CPU back-end against Hugging Face transformers in float32 on the same bf16 weights
// (tests/oracle/model_oracle.py wrote the expectations).
#include <cmath>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "engine/cpu_compute.h"
#include "engine/engine.h"

namespace weir {
namespace {

using nlohmann::json;

constexpr char kFixtures[] = "tests/fixtures/models";
constexpr float kLogitTolerance = 1e-3F;
constexpr float kHiddenTolerance = 2e-2F;  // relative to the vector's largest magnitude
constexpr float kTieGap = 1e-3F;           // a smaller gap between the best two logits is a tie

struct Case {
  std::string name;
  std::string model;
  std::string expected;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const auto& entry : std::filesystem::directory_iterator(kFixtures)) {
    const std::string folder = entry.path().string();
    const std::string name = entry.path().filename().string();
    if (std::filesystem::exists(folder + "/config.json")) {
      cases.push_back({name, folder, folder + "/expected.json"});
      continue;
    }
    for (const auto& file : std::filesystem::directory_iterator(folder)) {
      if (file.path().extension() != ".gguf") continue;
      const std::string stem = file.path().stem().string();
      cases.push_back(
          {name + "_" + stem, file.path().string(), folder + "/expected_" + stem + ".json"});
    }
  }
  return cases;
}

class TransformersTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    std::ifstream in(GetParam().expected);
    ASSERT_TRUE(in) << GetParam().expected;
    expected_ = json::parse(in);
    EngineOptions options;
    options.device = DeviceKind::kCpu;
    options.model = GetParam().model;
    options.threads = 2;
    options.kv_cache_dtype = KvCacheDtype::kF32;
    options.policy = "resident";
    options.max_num_batched_tokens = 48;  // the longer prompts come in chunks
    auto engine = Engine::Open(options);
    ASSERT_TRUE(engine.ok()) << engine.status().ToString();
    engine_ = std::move(*engine);
  }

  json expected_;
  std::unique_ptr<Engine> engine_;
};

TEST_P(TransformersTest, GreedyTokensAreEqual) {
  std::vector<RequestId> ids;
  for (const json& prompt : expected_["prompts"]) {
    GenerationRequest request;
    request.prompt_tokens = prompt["tokens"].get<std::vector<int32_t>>();
    request.sampling.temperature = 0;
    request.sampling.max_tokens = static_cast<uint32_t>(prompt["greedy_tokens"].size());
    request.sampling.ignore_eos = true;
    const auto id = engine_->Submit(std::move(request));
    ASSERT_TRUE(id.ok()) << id.status().ToString();
    ids.push_back(*id);
  }
  std::map<RequestId, std::vector<int32_t>> got;
  for (;;) {
    const auto more = engine_->Step();
    ASSERT_TRUE(more.ok()) << more.status().ToString();
    for (const GenerationOutput& out : engine_->TakeOutputs()) {
      ASSERT_TRUE(out.error.ok()) << out.error.ToString();
      for (const SampledToken& t : out.tokens) got[out.id].push_back(t.token);
    }
    if (!*more) break;
  }
  for (size_t p = 0; p < ids.size(); ++p) {
    const json& prompt = expected_["prompts"][p];
    const auto want = prompt["greedy_tokens"].get<std::vector<int32_t>>();
    const auto gaps = prompt["greedy_gaps"].get<std::vector<float>>();
    const std::vector<int32_t>& have = got[ids[p]];
    ASSERT_EQ(have.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      if (have[i] == want[i]) continue;
      EXPECT_LT(gaps[i], kTieGap) << "prompt " << p << ", token " << i;
      break;  // after a tie the continuations differ
    }
  }
}

TEST_P(TransformersTest, LogitsAndHiddenStatesAreClose) {
  BlockManager& blocks = engine_->core().memory().blocks();
  auto& compute = dynamic_cast<CpuCompute&>(engine_->compute());
  for (const json& prompt : expected_["prompts"]) {
    const auto tokens = prompt["tokens"].get<std::vector<int32_t>>();
    const auto n = static_cast<uint32_t>(tokens.size());
    std::vector<BlockId> held;
    std::vector<std::vector<float>> hidden;
    // The prompt in chunks of a step, each a batch of one.
    for (uint32_t begin = 0; begin < n; begin += 48) {
      const uint32_t end = std::min(n, begin + 48);
      StepBatch batch;
      StepSequence sequence;
      sequence.rows = end - begin;
      sequence.context = end;
      sequence.wants_logits = true;
      while (held.size() * kBlockTokens < end) {
        if (blocks.counts().free == 0) {
          ASSERT_TRUE(engine_->core().memory().GrowKv(1).ok());
        }
        held.push_back(blocks.Allocate(kNobody).value());
      }
      sequence.blocks = held;
      for (uint32_t i = begin; i < end; ++i) {
        batch.tokens.push_back(tokens[i]);
        batch.positions.push_back(static_cast<int32_t>(i));
      }
      batch.sequences.push_back(sequence);
      hidden.clear();
      compute.set_layer_probe([&](uint32_t, std::span<const float> rows) {
        const size_t width = rows.size() / (end - begin);
        hidden.emplace_back(rows.end() - static_cast<std::ptrdiff_t>(width), rows.end());
      });
      WeightPager& weights = engine_->core().memory().weights();
      ASSERT_TRUE(weights.BeginStep().ok());
      ASSERT_TRUE(compute.Submit(batch, weights).ok());
      StepOutcome outcome;
      ASSERT_TRUE(compute.Collect(&outcome).ok());
      ASSERT_TRUE(weights.EndStep().ok());
    }
    const auto want = prompt["last_logits"].get<std::vector<float>>();
    const std::vector<float> have = compute.ReadLogits(0).value();
    ASSERT_EQ(have.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(have[i], want[i], kLogitTolerance);
    ASSERT_EQ(hidden.size(), prompt["layer_hidden"].size());
    for (size_t l = 0; l < hidden.size(); ++l) {
      const auto reference = prompt["layer_hidden"][l].get<std::vector<float>>();
      float largest = 0;
      for (const float v : reference) largest = std::max(largest, std::fabs(v));
      for (size_t i = 0; i < reference.size(); ++i) {
        EXPECT_NEAR(hidden[l][i], reference[i], kHiddenTolerance * largest) << "layer " << l;
      }
    }
    for (const BlockId block : held) blocks.Release(block);
  }
  compute.set_layer_probe({});
}

INSTANTIATE_TEST_SUITE_P(Families, TransformersTest, ::testing::ValuesIn(Cases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace weir
