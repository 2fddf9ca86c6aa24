// The backing copy dies under a running engine: weights are read anew from where they were loaded,
// whatever that is, and no token changes.
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <thread>

#include <gtest/gtest.h>

#include "engine/engine.h"
#include "engine/model/checkpoint_names.h"
#include "policy/policy.h"
#include "tests/engine/model/model_file_builder.h"

namespace weir {
namespace {

namespace fs = std::filesystem;

constexpr uint32_t kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8;  // GGML's numbers

constexpr char kMadeUp[] = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 5,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64,
  "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16"})";

// Keeps the same away whatever happens, in any placement.
class Keeps final : public Policy {
 public:
  explicit Keeps(PolicyDecision decision) : decision_(std::move(decision)) {}
  std::string_view name() const override { return "keeps"; }
  PolicyDecision Decide(const PolicySnapshot&) override { return decision_; }
  bool follows_load() const override { return false; }
  std::vector<std::pair<std::string, std::string>> Parameters() const override { return {}; }

 private:
  PolicyDecision decision_;
};

PolicyDecision Stripes(uint32_t granules) {
  return {.granules_per_layer = granules};
}
PolicyDecision Layers(uint32_t layers, uint32_t slots) {
  return {.placement = Placement::kLayer, .layers = layers, .ring_slots = slots};
}

struct Case {
  std::string name;
  std::string model;  // of the fixtures; "": made up
  PolicyDecision away = Stripes(3);
  uint32_t ggml_type = 0;  // not 0: a GGUF file of it
};

// kMadeUp's shape, its matrices in blocks of |ggml_type| of any content.
std::string GgufBytes(const ModelConfig& config, uint32_t ggml_type) {
  GgufBuilder b;
  b.String("general.architecture", "llama");
  b.U32("llama.block_count", config.num_layers).U32("llama.context_length", config.max_position);
  b.U32("llama.embedding_length", config.hidden_size);
  b.U32("llama.feed_forward_length", config.intermediate_size);
  b.U32("llama.attention.head_count", config.num_heads);
  b.U32("llama.attention.head_count_kv", config.num_kv_heads);
  b.U32("llama.attention.key_length", config.head_dim).U32("llama.vocab_size", config.vocab_size);
  b.F32("llama.attention.layer_norm_rms_epsilon", 1e-5F);
  std::mt19937 random(ggml_type);
  const auto blocks = [&](uint64_t count) {
    constexpr uint16_t kScale = 0x2a66;  // 0.05, and an offset of that for Q4_1
    std::string bytes;
    for (uint64_t i = 0; i < count; ++i) {
      AppendValue(bytes, kScale);
      if (ggml_type == kQ4_1) AppendValue(bytes, kScale);
      for (int n = ggml_type == kQ8_0 ? 32 : 16; n > 0; --n) {
        bytes.push_back(static_cast<char>(ggml_type == kQ8_0 ? random() % 9 : random()));
      }
    }
    return bytes;
  };
  const auto add = [&](TensorRole role, uint32_t layer) {
    if (!HasRole(config, role) || role == TensorRole::kLmHead) return;  // tied
    const std::vector<uint64_t> shape = ShapeOfRole(config, role);
    if (shape.size() == 1) {
      b.Tensor(GgufTensorName(role, layer), shape, 0,
               FloatBytes(std::vector<float>(shape[0], 1.0F)));
    } else {
      b.Tensor(GgufTensorName(role, layer), shape, ggml_type, blocks(shape[0] * shape[1] / 32));
    }
  };
  for (uint32_t role = 0; role < kTensorRoleCount; ++role) {
    const bool of_layer = IsLayerRole(static_cast<TensorRole>(role));
    for (uint32_t l = 0; l < (of_layer ? config.num_layers : 1); ++l) {
      add(static_cast<TensorRole>(role), l);
    }
  }
  return b.Build();
}

class LostBacking : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    directory_ = fs::path(testing::TempDir()) / ("weir_lost_backing_" + GetParam().name);
    fs::remove_all(directory_);
    fs::create_directories(directory_);
    const std::string& model = GetParam().model;
    const fs::path from = fs::path("tests/fixtures/models") / model;
    if (GetParam().ggml_type != 0) {
      model_ = weights_ = directory_ / "model.gguf";
      std::ofstream(model_, std::ios::binary)
          << GgufBytes(ParseModelConfig(kMadeUp).value(), GetParam().ggml_type);
    } else if (model.empty()) {
      model_ = directory_ / "config.json";
      std::ofstream(model_) << kMadeUp;
    } else {
      fs::copy(from, directory_);
      model_ = directory_;
      weights_ = directory_ / "model.safetensors";
    }
  }
  void TearDown() override { fs::remove_all(directory_); }

  std::unique_ptr<Engine> Open(const PolicyDecision& away) {
    EngineOptions options;
    options.model = model_;
    options.dummy_weights = weights_.empty();
    options.device = DeviceKind::kCpu;
    options.threads = 2;
    options.granule = 4096;
    options.max_num_seqs = 8;
    options.max_num_batched_tokens = 48;
    options.max_model_len = 128;
    options.policy = "resident";
    auto engine = Engine::Open(options);
    EXPECT_TRUE(engine.ok()) << engine.status().ToString();
    if (!engine.ok()) return nullptr;
    policy_ = std::make_unique<Keeps>(away);
    (*engine)->core().SetPolicy(*policy_);
    for (int32_t n = 0; n < kRequests; ++n) Ask(**engine, n);
    return std::move(*engine);
  }
  void Ask(Engine& engine, int32_t n) {
    GenerationRequest request;
    for (int32_t i = 0; i < 10 + n; ++i) request.prompt_tokens.push_back((i * 7 + n * 3) % 60);
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = 60;
    const auto id = engine.Submit(std::move(request));
    ASSERT_TRUE(id.ok()) << id.status().ToString();
  }
  void Steps(Engine& engine, int most = 1'000'000) {
    for (int i = 0; i < most; ++i) {
      const Result<bool> more = engine.Step();
      ASSERT_TRUE(more.ok()) << more.status().ToString();
      for (const GenerationOutput& out : engine.TakeOutputs()) {
        for (const SampledToken& t : out.tokens) tokens_[out.id].push_back(t.token);
        if (!out.error.ok()) errors_.push_back(out.error);
      }
      if (!*more) break;
    }
  }
  // Nobody can reach the pages of the host tier any more: what is mapped of it when nothing is
  // being loaded is the backing copy.
  static void KillBacking(Engine& engine) {
    // Copies made ahead for the next step have been admitted already; they end by themselves.
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    uint32_t killed = 0;
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      if (line.find("memfd:weir-host") == std::string::npos) continue;
      VirtAddr begin = 0, end = 0;
      ASSERT_EQ(std::sscanf(line.c_str(), "%lx-%lx", &begin, &end), 2);
      const Status cut = engine.driver().SetAccess(begin, end - begin, Access::kNone);
      ASSERT_TRUE(cut.ok()) << cut.ToString();
      ++killed;
    }
    ASSERT_GE(killed, 1U);
  }
  static uint32_t Away(Engine& engine) {
    return engine.core().memory().weights().plan().evicted_granules();
  }

  static constexpr int32_t kRequests = 6;
  fs::path directory_, model_, weights_;
  std::unique_ptr<Policy> policy_;
  std::map<RequestId, std::vector<int32_t>> tokens_;
  std::vector<Status> errors_;
};

TEST_P(LostBacking, TokensAreThoseOfARunWithoutTheFault) {
  auto engine = Open(Stripes(0));
  ASSERT_NE(engine, nullptr);
  Steps(*engine);
  const auto want = std::exchange(tokens_, {});
  ASSERT_EQ(want.size(), size_t{kRequests});
  engine = Open(GetParam().away);
  ASSERT_NE(engine, nullptr);
  Steps(*engine, 20);
  const uint32_t away = Away(*engine);
  ASSERT_GT(away, 0U);
  KillBacking(*engine);
  Steps(*engine);
  EXPECT_EQ(tokens_, want);
  EXPECT_TRUE(errors_.empty()) << errors_[0].ToString();
  const LinkReport& link = engine->core().link();
  EXPECT_EQ(link.state, LinkState::kHeld) << link.cause;
  EXPECT_EQ(link.reread, 1U);
  EXPECT_EQ(Away(*engine), 0U);
  EXPECT_EQ(engine->core().memory().weights().stats().bytes_from_source, uint64_t{away} * 4096);
  // And whoever comes later is served.
  tokens_.clear();
  for (int32_t n = 0; n < kRequests; ++n) Ask(*engine, n);
  Steps(*engine);
  std::vector<std::vector<int32_t>> later, before;
  for (const auto& [id, tokens] : tokens_) later.push_back(tokens);
  for (const auto& [id, tokens] : want) before.push_back(tokens);
  EXPECT_EQ(later, before);
}

TEST_P(LostBacking, ACheckpointThatIsNotTheOneLoadedIsNamedAndNotUsed) {
  if (weights_.empty()) GTEST_SKIP() << "made-up weights have no file";
  for (const bool gone : {true, false}) {
    SCOPED_TRACE(gone ? "gone" : "changed");
    const auto engine = Open(GetParam().away);
    ASSERT_NE(engine, nullptr);
    tokens_.clear();
    errors_.clear();
    Steps(*engine, 20);
    ASSERT_GT(Away(*engine), 0U);
    KillBacking(*engine);
    const fs::path aside = directory_ / "aside";
    if (gone) {
      fs::rename(weights_, aside);
    } else {
      fs::last_write_time(weights_, fs::last_write_time(weights_) + std::chrono::seconds(1));
    }
    Steps(*engine, 10);
    EXPECT_EQ(engine->core().link().state, LinkState::kLost);
    ASSERT_EQ(errors_.size(), size_t{kRequests});
    EXPECT_NE(errors_[0].message().find(weights_.filename()), std::string::npos)
        << errors_[0].ToString();
    EXPECT_NE(errors_[0].message().find(gone ? "cannot be found" : "has changed"),
              std::string::npos)
        << errors_[0].ToString();
    if (!gone) continue;
    // It is back before one of the next attempts: so are the weights.
    fs::rename(aside, weights_);
    for (int i = 0; i < 300 && engine->core().link().state == LinkState::kLost; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      Steps(*engine, 1);
    }
    EXPECT_EQ(engine->core().link().state, LinkState::kHeld);
    EXPECT_EQ(Away(*engine), 0U);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, LostBacking,
                         testing::Values(Case{"safetensors", "smollm2_gqa3"}, Case{"dummy", ""},
                                         Case{"safetensors_layers", "smollm2_gqa3", Layers(4, 2)},
                                         Case{"gguf_q8_0", "", Stripes(3), kQ8_0},
                                         Case{"gguf_q4_0", "", Stripes(3), kQ4_0},
                                         Case{"gguf_q4_1", "", Layers(5, 2), kQ4_1}),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace weir
