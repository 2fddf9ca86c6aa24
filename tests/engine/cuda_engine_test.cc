// The CUDA back-end against itself while weights move. Skipped, with the reason, where there is no
// GPU.
#include <fstream>
#include <map>
#include <random>

#include <gtest/gtest.h>

#include "engine/cuda_compute.h"
#include "engine/engine.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/skinny_gemm.h"
#include "tests/support/cuda_devices.h"

namespace weir {
namespace {

using Tokens = std::map<RequestId, std::vector<int32_t>>;

Tokens Finish(Engine& engine) {
  Tokens got;
  for (;;) {
    const auto more = engine.Step();
    EXPECT_TRUE(more.ok()) << more.status().ToString();
    if (!more.ok()) break;
    for (const GenerationOutput& out : engine.TakeOutputs()) {
      EXPECT_TRUE(out.error.ok()) << out.error.ToString();
      for (const SampledToken& t : out.tokens) got[out.id].push_back(t.token);
    }
    if (!*more) break;
  }
  return got;
}

constexpr char kMadeUp[] = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12,
  "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 8192,
  "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2})";

// Another stripe target at every decision: each step moves the border behind closed gates. A step
// of this model is too short for a whole move, so every 16th target stays until it is reached.
class RandomStripes final : public Policy {
 public:
  std::string_view name() const override { return "random_stripes"; }
  PolicyDecision Decide(const PolicySnapshot& snapshot) override {
    const bool stays = targets_ % 16 == 0 && snapshot.weights.granules_per_layer != target_;
    if (!stays) {
      target_ = static_cast<uint32_t>(random_() % (snapshot.weights.max_granules_per_layer + 1));
      ++targets_;
    }
    return {.granules_per_layer = target_, .ring_slots = snapshot.weights.ring_slots};
  }
  std::vector<std::pair<std::string, std::string>> Parameters() const override { return {}; }

 private:
  std::mt19937 random_{11};
  uint32_t target_ = 0;
  uint64_t targets_ = 0;
};

class CudaSluiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (testing::CudaDevices() == 0) GTEST_SKIP() << "no CUDA device";
    config_ = ::testing::TempDir() + "/weir_cuda_sluice_config.json";
    std::ofstream(config_) << kMadeUp;
  }

  struct Load {
    int requests = 32;
    uint32_t shortest_prompt = 20;  // the others are up to 299 tokens longer
    uint32_t rows = 256;            // of a step, at most
  };
  struct Outcome {
    Tokens tokens;
    CoreStats stats;
    WeightPagerStats pager;
    uint64_t streamed_bytes = 0;  // while serving
    EvictionTarget away;          // at the end
  };

  // The same requests in the same order, with room for all: every policy gives the same schedule.
  // |decide|: instead of the policy; |max_tokens|: of each request, 0: various.
  Outcome Run(const std::string& policy, BackingChoice backing, Policy* decide = nullptr,
              uint32_t max_tokens = 0) {
    EngineOptions options;
    options.model = config_;
    options.dummy_weights = true;
    options.device = DeviceKind::kCuda;
    options.kv_cache_bytes = 512 * kMiB;
    options.max_num_seqs = 24;
    options.max_num_batched_tokens = load_.rows;
    options.max_model_len = load_.shortest_prompt + 1004;
    options.policy = policy;
    options.backing = backing;
    options.gemm_algorithms = algorithms_;
    options.decode_attention = decode_attention_;
    options.compress_weights = compress_weights_;
    auto opened = Engine::Open(options);
    EXPECT_TRUE(opened.ok()) << opened.status().ToString();
    if (!opened.ok()) return {};
    Engine& engine = **opened;
    auto& compute = dynamic_cast<CudaCompute&>(engine.compute());
    if (algorithms_.empty()) algorithms_ = compute.algorithms();
    if (decide != nullptr) engine.core().SetPolicy(*decide);
    Memory& memory = engine.core().memory();
    EXPECT_EQ(memory.blocks().counts().capacity, memory.KvBlocksAt({}))
        << "no step maps granules for KV that weights never ask for";
    const uint64_t pointers = compute.RecordedPointersDigest();
    const uint64_t copied_at_start = engine.core().memory().weights().stats().bytes_copied;
    std::mt19937 random(7);
    for (int i = 0; i < load_.requests; ++i) {
      GenerationRequest request;
      request.prompt_tokens.resize(load_.shortest_prompt + random() % 300);
      for (int32_t& t : request.prompt_tokens) t = static_cast<int32_t>(random() % 8192);
      request.sampling.temperature = i % 3 == 0 ? 0.0 : 0.8;
      request.sampling.top_p = i % 4 == 1 ? 0.9 : 1.0;
      request.sampling.top_k = i % 5 == 2 ? 40 : 0;
      request.sampling.seed = static_cast<uint64_t>(i);
      // One step at a time as long as it is there.
      request.sampling.repetition_penalty = i == 31 && max_tokens == 0 ? 1.1 : 1.0;
      request.sampling.max_tokens = 40 + static_cast<uint32_t>(random() % 60);
      if (max_tokens > 0) request.sampling.max_tokens = max_tokens;
      request.sampling.ignore_eos = true;
      EXPECT_TRUE(engine.Submit(std::move(request)).ok());
    }
    Outcome outcome;
    outcome.tokens = Finish(engine);
    outcome.stats = engine.core().stats();
    const WeightPager& weights = engine.core().memory().weights();
    outcome.pager = weights.stats();
    outcome.streamed_bytes = outcome.pager.bytes_copied - copied_at_start;
    outcome.away = weights.plan().target();
    EXPECT_EQ(compute.recordings(), 1U);
    EXPECT_EQ(compute.RecordedPointersDigest(), pointers);
    EXPECT_EQ(outcome.stats.failed_steps, 0U) << engine.core().last_border_error().ToString();
    const Status sound = engine.core().CheckIntegrity();
    EXPECT_TRUE(sound.ok()) << sound.ToString();
    std::printf("%s: %lu steps, %lu border moves, %lu gates, %lu faults, stall %.1f ms, %.1f MiB\n",
                policy.c_str(), outcome.stats.steps, outcome.stats.border_moves,
                outcome.pager.gate_arrivals, outcome.pager.faults,
                static_cast<double>(outcome.pager.stall_ns) * 1e-6,
                static_cast<double>(outcome.pager.bytes_copied) / (1 << 20));
    return outcome;
  }

  std::string config_;
  Load load_;
  std::string algorithms_;
  DecodeAttentionUse decode_attention_ = DecodeAttentionUse::kAuto;
  bool compress_weights_ = false;
};

TEST_F(CudaSluiceTest, TheSameScheduleGivesTheSameTokensWhateverIsAway) {
  const Outcome resident = Run("resident", BackingChoice::kHost);
  ASSERT_EQ(resident.tokens.size(), 32U);
  std::vector<BackingChoice> backings{BackingChoice::kHost};
  if (testing::CudaDevices() > 1) backings.push_back(BackingChoice::kPeer);
  for (const BackingChoice backing : backings) {
    for (const char* policy : {"fixed{granules_per_layer=1}", "fixed{granules_per_layer=4}",
                               "fixed{granules_per_layer=3; embedding_in_place=1}",
                               "stress_random{hold_steps=0; seed=3}", "zero-inference"}) {
      SCOPED_TRACE(policy);
      const Outcome moved = Run(policy, backing);
      EXPECT_EQ(moved.tokens, resident.tokens);
      EXPECT_EQ(moved.stats.steps, resident.stats.steps);
      EXPECT_GT(moved.stats.border_moves, 0U);
      EXPECT_GT(moved.pager.bytes_copied, 0U);
    }
  }
}

TEST_F(CudaSluiceTest, WeightsReadInPlaceGiveTheSameTokensAndNothingIsCopied) {
  const Outcome resident = Run("resident", BackingChoice::kHost);
  ASSERT_EQ(resident.tokens.size(), 32U);
  std::vector<BackingChoice> backings{BackingChoice::kHost};
  if (testing::CudaDevices() > 1) backings.push_back(BackingChoice::kPeer);
  for (const BackingChoice backing : backings) {
    SCOPED_TRACE(backing == BackingChoice::kPeer ? "peer" : "host");
    for (const char* policy : {"fixed{granules_per_layer=1; placement=in_place}",
                               "fixed{granules_per_layer=4; placement=in_place}",
                               "static{fraction=1; placement=in_place}"}) {
      SCOPED_TRACE(policy);
      const Outcome moved = Run(policy, backing);
      EXPECT_EQ(moved.tokens, resident.tokens);
      EXPECT_EQ(moved.stats.steps, resident.stats.steps);
      EXPECT_EQ(moved.streamed_bytes, 0U);
      EXPECT_EQ(moved.away.placement, Placement::kInPlace);
      EXPECT_GT(moved.away.amount(), 0U);
    }
  }
}

TEST_F(CudaSluiceTest, AThousandMovesBehindClosedGatesChangeNoToken) {
  constexpr uint32_t kTokens = 700;
  const Outcome resident = Run("resident", BackingChoice::kHost, nullptr, kTokens);
  ASSERT_EQ(resident.tokens.size(), 32U);
  std::vector<BackingChoice> backings{BackingChoice::kHost};
  if (testing::CudaDevices() > 1) backings.push_back(BackingChoice::kPeer);
  for (const BackingChoice backing : backings) {
    RandomStripes random;
    const Outcome moved = Run("resident", backing, &random, kTokens);
    EXPECT_EQ(moved.tokens, resident.tokens);
    EXPECT_EQ(moved.stats.steps, resident.stats.steps);
    EXPECT_GE(moved.pager.hidden_transitions + moved.pager.split_transitions, 1000U);
    EXPECT_GE(moved.pager.granules_remapped, 1000U);
    EXPECT_GT(moved.pager.hidden_transitions, 0U);
    std::printf(
        "%lu moves behind closed gates, %lu of them ended on the way, %lu granules remapped "
        "in %.1f us each\n",
        moved.pager.hidden_transitions + moved.pager.split_transitions,
        moved.pager.split_transitions, moved.pager.granules_remapped,
        static_cast<double>(moved.pager.remap_ns) * 1e-3 /
            static_cast<double>(moved.pager.granules_remapped));
  }
}

// What shapes and GPUs without a decode attention of ours get.
TEST_F(CudaSluiceTest, FlashInfersAttentionGivesTheSameTokensWhateverIsAway) {
  decode_attention_ = DecodeAttentionUse::kFlashInfer;
  const Outcome resident = Run("resident", BackingChoice::kHost);
  ASSERT_EQ(resident.tokens.size(), 32U);
  RandomStripes random;
  const Outcome moved = Run("resident", BackingChoice::kHost, &random);
  EXPECT_EQ(moved.tokens, resident.tokens);
  EXPECT_EQ(moved.stats.steps, resident.stats.steps);
  EXPECT_GT(moved.pager.hidden_transitions, 0U);
}

// A long prompt in chunks of few rows, beside sequences that decode: FA2 attends for them (where
// FA3 is there, too).
TEST_F(CudaSluiceTest, FewRowsBehindLongContextsGiveTheSameTokensWhateverIsAway) {
  load_ = {.requests = 12, .shortest_prompt = 1800, .rows = 64};
  const int32_t rows[] = {0, 52}, pages[] = {0, 100}, context[] = {1600};
  EXPECT_EQ(cuda::PrefillKernel({.q_heads = 8, .kv_heads = 2, .head_dim = 128},
                                {rows, pages, context, 1}),
            cuda::AttentionKernel::kFa2);
  // First, so that kernels are used for the first time while weights stream.
  std::vector<Outcome> moved;
  moved.push_back(Run("fixed{granules_per_layer=4}", BackingChoice::kHost));
  const Outcome resident = Run("resident", BackingChoice::kHost);
  ASSERT_EQ(resident.tokens.size(), 12U);
  moved.push_back(Run("stress_random{hold_steps=0; seed=7}", BackingChoice::kHost));
  if (testing::CudaDevices() > 1)
    moved.push_back(Run("fixed{granules_per_layer=4}", BackingChoice::kPeer));
  for (const Outcome& m : moved) {
    EXPECT_EQ(m.tokens, resident.tokens);
    EXPECT_EQ(m.stats.steps, resident.stats.steps);
    EXPECT_GT(m.pager.bytes_copied, 0U);
  }
}

TEST_F(CudaSluiceTest, CompressedWeightsGiveTheSameTokensWhateverIsAway) {
  cuda::SkinnyGemm products;
  if (!cuda::SkinnyGemm::Create(&products).ok()) GTEST_SKIP() << "not a Hopper GPU";
  const Outcome plain = Run("resident", BackingChoice::kHost);
  algorithms_.clear();
  compress_weights_ = true;
  const Outcome resident = Run("resident", BackingChoice::kHost);
  ASSERT_EQ(resident.tokens.size(), 32U);
  EXPECT_EQ(resident.stats.steps, plain.stats.steps);
  std::vector<BackingChoice> backings{BackingChoice::kHost};
  if (testing::CudaDevices() > 1) backings.push_back(BackingChoice::kPeer);
  for (const BackingChoice backing : backings) {
    for (const char* policy :
         {"fixed{granules_per_layer=1}", "stress_random{hold_steps=0; seed=5}", "zero-inference",
          "fixed{granules_per_layer=1; placement=in_place}"}) {
      SCOPED_TRACE(policy);
      const Outcome moved = Run(policy, backing);
      EXPECT_EQ(moved.tokens, resident.tokens);
      EXPECT_GT(moved.stats.border_moves, 0U);
    }
    RandomStripes random;
    const Outcome moved = Run("resident", backing, &random);
    EXPECT_EQ(moved.tokens, resident.tokens);
    EXPECT_GT(moved.pager.hidden_transitions, 0U);
  }
}

TEST_F(CudaSluiceTest, TwoRunsGiveTheSameTokens) {
  const Outcome first = Run("resident", BackingChoice::kNone);
  EXPECT_EQ(Run("resident", BackingChoice::kNone).tokens, first.tokens);
}

}  // namespace
}  // namespace weir
