// AsyncEngine over the real engine: a tiny model with made-up weights.
#include <chrono>
#include <thread>

#include <gtest/gtest.h>

#include "engine/server/async_engine.h"
#include "tests/engine/server/fake_engine.h"

namespace weir::server {
namespace {

using testing::Gather;

EngineOptions Tiny() {
  EngineOptions options;
  options.device = DeviceKind::kCpu;
  options.model = "tests/fixtures/models/smollm2_gqa3/config.json";
  options.dummy_weights = true;
  options.threads = 1;
  options.max_num_seqs = 8;
  options.max_num_batched_tokens = 64;
  return options;
}

GenerationRequest RequestOf(int32_t first, uint32_t output) {
  GenerationRequest request;
  for (int32_t i = 0; i < 20; ++i) request.prompt_tokens.push_back((first * 31 + i * 7) % 300 + 3);
  request.sampling.temperature = 0;
  request.sampling.max_tokens = output;
  request.sampling.ignore_eos = true;
  return request;
}

std::vector<int32_t> Alone(const EngineOptions& options, GenerationRequest request) {
  const auto engine = Engine::Open(options).value();
  EXPECT_TRUE(engine->Submit(std::move(request)).ok());
  std::vector<int32_t> tokens;
  while (*engine->Step()) {
    for (const GenerationOutput& out : engine->TakeOutputs()) {
      for (const SampledToken& t : out.tokens) tokens.push_back(t.token);
    }
  }
  return tokens;
}

TEST(RealEngine, RequestsOfManyThreadsGetTheirSoloTokensAndLeaveNoBlock) {
  const EngineOptions options = Tiny();
  const auto engine = AsyncEngine::Start(Engine::Open(options).value(), {}).value();
  constexpr int kThreads = 3;
  constexpr int kEach = 12;
  std::vector<std::vector<std::shared_ptr<Gather>>> sinks(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        auto sink = std::make_shared<Gather>();
        auto admission = engine->Admit("t" + std::to_string(t)).value();
        AsyncRequest request{.request = RequestOf(i % 4, 24)};
        const uint64_t ticket =
            engine->Submit(std::move(admission), std::move(request), sink).value();
        if (i % 3 == 2) engine->Cancel(ticket);
        sinks[static_cast<size_t>(t)].push_back(std::move(sink));
      }
    });
  }
  for (std::thread& t : threads) t.join();
  std::vector<std::vector<int32_t>> solo;
  for (int i = 0; i < 4; ++i) solo.push_back(Alone(options, RequestOf(i, 24)));
  for (const auto& list : sinks) {
    for (int i = 0; i < kEach; ++i) {
      const GenerationOutput last = list[static_cast<size_t>(i)]->AwaitEnd();
      const std::vector<int32_t> tokens = list[static_cast<size_t>(i)]->tokens();
      const std::vector<int32_t>& want = solo[static_cast<size_t>(i % 4)];
      ASSERT_LE(tokens.size(), want.size());
      EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), want.begin()));
      EXPECT_EQ(tokens.size() == want.size(), last.reason == FinishReason::kLength);
    }
  }
  EXPECT_TRUE(engine->Drain(1'000'000'000));
  const AsyncStats stats = engine->stats();
  EXPECT_NE(stats.health, Health::kFailed) << stats.failure.ToString();
  EXPECT_EQ(stats.blocks.used, 0U);
  EXPECT_EQ(stats.leaked_blocks, 0U);
  EXPECT_EQ(stats.blocks.free + stats.blocks.cached, stats.blocks.capacity);
}

// A burst in a tight budget sends weights away; when it is over they come home without a request.
// One of its requests cannot run otherwise: how slow the link is beside the compute, which differs
// with what else runs here, does not matter.
TEST(RealEngine, WeightsComeHomeWhileNothingRuns) {
  EngineOptions options = Tiny();
  options.granule = 4096;
  options.max_num_seqs = 16;
  options.policy = "oneiros{hold_steps=8; cap=1}";
  const auto everything = Engine::Open(options).value();
  const EngineInfo& info = everything->info();
  constexpr uint64_t kBlocks = 12;
  options.hbm_budget = info.weight_bytes + info.scratch_bytes + kBlocks * info.kv_block_bytes;
  Result<std::unique_ptr<Engine>> tight = Engine::Open(options);
  ASSERT_TRUE(tight.ok()) << tight.status().ToString();
  const auto engine = AsyncEngine::Start(std::move(*tight), {}).value();
  std::vector<std::shared_ptr<Gather>> sinks;
  for (int32_t i = 0; i < 60; ++i) {
    sinks.push_back(std::make_shared<Gather>());
    AsyncRequest request{.request = RequestOf(i, 40)};
    if (i == 0) request.request.prompt_tokens.resize((kBlocks + 1) * kBlockTokens, 5);
    ASSERT_TRUE(engine->Submit(engine->Admit("t").value(), std::move(request), sinks.back()).ok());
  }
  for (const auto& sink : sinks) EXPECT_EQ(sink->AwaitEnd().reason, FinishReason::kLength);
  ASSERT_GT(engine->stats().core.border_moves, 0U) << "the burst moved no border";
  bool home = false;
  for (int i = 0; i < 3000 && !home; ++i) {
    home = engine->stats().evicted_bytes == 0;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_TRUE(home);
}

}  // namespace
}  // namespace weir::server
