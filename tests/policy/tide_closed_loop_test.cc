// tide around a simulated server that has more requests than KV, against every fixed border.
#include <cstdio>
#include <string>

#include <gtest/gtest.h>

#include "policy/oneiros.h"
#include "policy/tide.h"
#include "tests/policy/floods.h"

namespace weir {
namespace {

struct Case {
  SimulatedGpu gpu;
  double link = 345;   // GB/s while the GPU works
  double share = 0.8;  // of the memory, for weights
  const char* load_name = "";
  Load load;
  double seconds = 80;  // some hundreds of requests or more
  double itl_ms = 0;
};

std::vector<Case> Grid() {
  // Batches of long prompts take minutes to build, and longer to pay.
  struct Model {
    SimulatedGpu gpu;
    double seconds, four_k_seconds;
  };
  std::vector<Case> cases;
  for (const Model& m : {Model{Llama8bOnH200(), 80, 240},
                         {Qwen32bOnH200(), 180, 1600},
                         {HalfOfLlama70bOnH200(), 180, 2400}}) {
    for (const double link : {50.0, 345.0, 900.0}) {
      for (const double share : {0.73, 0.80, 0.85, 0.90}) {
        cases.push_back({m.gpu, link, share, "chat", kChat, m.seconds});
      }
      cases.push_back({m.gpu, link, 0.85, "long_outputs", kLongOutputs, m.seconds});
      for (const double share : {0.73, 0.85}) {
        cases.push_back({m.gpu, link, share, "4k", kFourK, m.four_k_seconds});
      }
    }
  }
  // And all of them with a target between tokens.
  const size_t free = cases.size();
  for (size_t i = 0; i < free; ++i) {
    Case limited = cases[i];
    limited.itl_ms = 3e-6 * limited.gpu.read / limited.gpu.hbm;  // of reading the weights once
    cases.push_back(limited);
  }
  return cases;
}

constexpr double kSeconds = 80;  // where no case says otherwise

class TideClosedLoop : public testing::TestWithParam<Case> {};

// The queue is never empty. The link's speed under load and the cost of steps are what a cost model
// learns from the server's own steps.
TEST_P(TideClosedLoop, ReachesTheBestFixedBorder) {
  const Case& c = GetParam();
  const ServerShape shape = c.gpu.Behind(c.link).Server(c.share);
  const FixedRate best = BestFixed(shape, c.load, c.seconds, c.itl_ms);
  const double resident = SteadyFixed(shape, 0, c.load, c.seconds).tokens_per_s;
  TidePolicy tide(TideConfig{.itl_ms = c.itl_ms});
  const ServerResult result = Steady(shape, tide, c.load, c.seconds);
  std::printf(
      "resident %6.0f tokens/s, best fixed %.2fx at %2u, tide %.2fx at %.1f: %.1f %% of the best; "
      "%.0f running, %.1f %% standing, %llu moves in %llu steps; 99 %% of %.1f ms, target %.1f\n",
      resident, best.tokens_per_s / resident, best.granules_per_layer,
      result.tokens_per_s / resident, result.mean_away,
      100 * result.tokens_per_s / best.tokens_per_s, result.running, 100 * result.stall_share,
      static_cast<unsigned long long>(result.moves), static_cast<unsigned long long>(result.steps),
      result.p99_step_ms, c.itl_ms);
  EXPECT_GE(result.tokens_per_s, 0.98 * best.tokens_per_s);
  if (c.itl_ms > 0) {
    EXPECT_LE(result.p99_step_ms, 1.05 * c.itl_ms);
  }
  // It does not wander.
  EXPECT_LE(static_cast<double>(result.moves), 2 + static_cast<double>(result.steps) / 1000);
}

INSTANTIATE_TEST_SUITE_P(Floods, TideClosedLoop, testing::ValuesIn(Grid()),
                         [](const auto& instance) {
                           const Case& c = instance.param;
                           return std::string(c.gpu.name) + "_link" +
                                  std::to_string(static_cast<int>(c.link)) + "_share" +
                                  std::to_string(static_cast<int>(c.share * 100 + 0.5)) + "_" +
                                  c.load_name + (c.itl_ms > 0 ? "_itl" : "");
                         });

// --- Targets ------------------------------------------------------------------------------------

TEST(TideClosedLoopTargets, TheTimePerTokenIsKeptAndTheRestIsUsed) {
  const ServerShape shape = Llama8bOnH200().Server(0.85);
  TidePolicy unlimited;
  const ServerResult free = Steady(shape, unlimited, kChat, kSeconds);
  ResidentPolicy home;
  const ServerResult resident = Steady(shape, home, kChat, kSeconds);
  ASSERT_GT(free.mean_step_ms, 1.1 * resident.mean_step_ms);
  const double target = (free.mean_step_ms + resident.mean_step_ms) / 2;
  TidePolicy limited(TideConfig{.tpot_ms = target});
  const ServerResult kept = Steady(shape, limited, kChat, kSeconds);
  std::printf("step ms: resident %.2f, target %.2f, kept %.2f, unlimited %.2f\n",
              resident.mean_step_ms, target, kept.mean_step_ms, free.mean_step_ms);
  EXPECT_LE(kept.mean_step_ms, 1.05 * target);
  EXPECT_GT(kept.tokens_per_s, 1.1 * resident.tokens_per_s);
  EXPECT_LT(kept.mean_away, free.mean_away);
  // A target that nothing can keep leaves the shortest steps there are.
  TidePolicy hopeless(TideConfig{.tpot_ms = 0.1});
  EXPECT_EQ(Steady(shape, hopeless, kChat, kSeconds).mean_away, 0);
}

// --- After another policy ------------------------------------------------------------------------

// What was learnt of steps stays when the policy changes. oneiros, which came before, keeps the
// link waiting for slots; a link believed to be that slow leaves tide with too little away for
// good, for nothing waits for the link any more.
TEST(TideClosedLoopHistory, WhatStepsUnderAnotherPolicyTookDoesNotHoldItBack) {
  for (const double share : {0.80, 0.90}) {
    const ServerShape shape = Llama8bOnH200().Server(share);
    TidePolicy alone;
    const ServerResult expected = Steady(shape, alone, kChat, kSeconds);
    OneirosPolicy layers{OneirosConfig{}};
    SimulatedServer server(shape, layers);
    EXPECT_GT(server.Flood(kChat, 1, 20).stall_share, 0.1);
    TidePolicy tide;
    server.Restart(tide);
    (void)server.Flood(kChat, 1, kSeconds / 4);
    const ServerResult after = server.Flood(kChat, 1, kSeconds * 3 / 4);
    std::printf("W/C %.2f: %.0f tokens/s at %.1f, after oneiros %.0f at %.1f\n", share,
                expected.tokens_per_s, expected.mean_away, after.tokens_per_s, after.mean_away);
    EXPECT_NEAR(after.tokens_per_s / expected.tokens_per_s, 1, 0.01);
  }
}

// Each step stands for a fiftieth at its first gate, whatever is away. That is no slow link: taken
// for one it would send weights home, and what a step with fewer away takes would make it look
// slower still.
TEST(TideClosedLoopHistory, StandingAtTheFirstGateIsNoSlowLink) {
  for (const double share : {0.80, 0.90}) {
    const SimulatedGpu gpu = Llama8bOnH200();
    ServerShape shape = gpu.Server(share);
    shape.truth = [gpu](const StepWork& work) {
      TrueStep step = gpu.Step(work);
      if (work.evicted_bytes == 0 || step.step_ns > 1.02 * step.compute_ns) return step;
      return TrueStep{.compute_ns = step.compute_ns,
                      .step_ns = 1.02 * step.compute_ns,
                      .waited_share = 1.0 / gpu.layers};
    };
    const FixedRate best = BestFixed(shape, kChat, kSeconds);
    TidePolicy tide;
    const ServerResult result = Steady(shape, tide, kChat, kSeconds);
    std::printf("W/C %.2f: %.1f %% of the best fixed, %.1f away of %u\n", share,
                100 * result.tokens_per_s / best.tokens_per_s, result.mean_away,
                best.granules_per_layer);
    EXPECT_GE(result.tokens_per_s, 0.98 * best.tokens_per_s);
  }
}

// --- What the policy is told is wrong ------------------------------------------------------------

TEST(TideClosedLoopErrors, AModelOffByAFifthCostsLittle) {
  const SimulatedGpu gpu = Llama8bOnH200();
  ServerShape shape = gpu.Server(0.85);
  const StepCost truth{.fixed_ns = gpu.overhead_ns + gpu.read / gpu.hbm,
                       .per_token_ns = gpu.token_ns,
                       .per_context_ns = gpu.kv_per_token / gpu.hbm,
                       .link_bytes_per_ns = gpu.link_busy,
                       .copy_interference = 1 / gpu.ring_write,
                       .per_pair_ns = 3e-5 * gpu.token_ns,
                       .free_tokens = gpu.read / gpu.hbm / gpu.token_ns};
  const double best = BestFixed(shape, kChat, kSeconds).tokens_per_s;
  for (const double compute : {0.8, 1.0, 1.25}) {
    for (const double link : {0.8, 1.0, 1.25}) {
      shape.told = truth;
      for (double* v : {&shape.told->fixed_ns, &shape.told->per_token_ns,
                        &shape.told->per_context_ns, &shape.told->copy_interference}) {
        *v *= compute;
      }
      shape.told->link_bytes_per_ns *= link;
      TidePolicy tide;
      const double rate = Steady(shape, tide, kChat, kSeconds).tokens_per_s;
      std::printf("told compute x%.2f, link x%.2f: %.1f %% of best fixed\n", compute, link,
                  100 * rate / best);
      EXPECT_GE(rate, (compute == 1 && link == 1 ? 0.98 : 0.80) * best);
    }
  }
}

}  // namespace
}  // namespace weir
