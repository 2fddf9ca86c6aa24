// tide around a simulated server, against every fixed border under the same model.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "policy/resident.h"
#include "policy/tide.h"
#include "tests/policy/simulated_gpu.h"

namespace weir {
namespace {

constexpr Load kChat{.prompt = {161, 1.2}, .output = {338, 0.8}};  // ShareGPT-like
constexpr Load kFourK{.prompt = {4096, 0.2}, .output = {200, 0.5}};
constexpr Load kLongOutputs{.prompt = {300, 0.5}, .output = {1000, 0.5}};

struct Case {
  const char* model;
  double link;
  double share;  // of the memory, for weights
  const char* load_name;
  Load load;
};

SimulatedGpu Gpu(const Case& c) {
  SimulatedGpu gpu = std::string(c.model) == "8B" ? Llama8bOnH200() : Qwen32bOnH200();
  gpu.link_busy = c.link;
  gpu.link_idle = c.link * 372 / 345;
  return gpu;
}

// Seconds enough for some hundreds of requests.
double Seconds(const Case& c) {
  return (std::string(c.model) == "8B" ? 20 : 80) * (c.load.prompt.mean > 1000 ? 4 : 1);
}

// Every border where one granule matters, and every eighth where it is a small share.
std::vector<uint32_t> Borders(const ServerShape& shape) {
  std::vector<uint32_t> borders;
  for (uint32_t e = 0; e <= shape.granules_per_layer - 2; e += e < 12 ? 1 : 8) borders.push_back(e);
  return borders;
}

double Steady(const ServerShape& shape, Policy& policy, const Case& c, ServerResult* out) {
  SimulatedServer server(shape, policy);
  (void)server.Flood(c.load, 1, Seconds(c));
  *out = server.Flood(c.load, 1, 3 * Seconds(c));
  return out->tokens_per_s;
}

class TideClosedLoop : public testing::TestWithParam<Case> {};

// The queue is never empty. The link's speed under load and the cost of steps are what a cost model
// learns from the server's own steps.
TEST_P(TideClosedLoop, ReachesTheBestFixedBorder) {
  const Case& c = GetParam();
  const ServerShape shape = Gpu(c).Server(c.share);
  double best = 0, resident = 0;
  uint32_t best_evicted = 0;
  ServerResult result;
  for (const uint32_t e : Borders(shape)) {
    FixedPolicy fixed(FixedConfig{.granules_per_layer = e});
    const double rate = Steady(shape, fixed, c, &result);
    if (e == 0) resident = rate;
    if (rate > best) {
      best = rate;
      best_evicted = e;
    }
  }
  TidePolicy tide;
  const double rate = Steady(shape, tide, c, &result);
  std::printf(
      "resident %6.0f tokens/s, best fixed %.2fx at %2u, tide %.2fx at %.1f: %.1f %% of the best; "
      "%.0f running, %.1f %% standing, %llu moves\n",
      resident, best / resident, best_evicted, rate / resident, result.mean_evicted,
      100 * rate / best, result.running, 100 * result.stall_share,
      static_cast<unsigned long long>(result.moves));
  EXPECT_GE(rate, 0.98 * best);
  EXPECT_LE(result.moves, 4u);  // settled
}

std::vector<Case> Grid() {
  std::vector<Case> cases;
  for (const char* model : {"8B", "32B"}) {
    for (const double link : {50.0, 345.0, 900.0}) {
      for (const double share : {0.73, 0.80, 0.85, 0.90}) {
        cases.push_back({model, link, share, "chat", kChat});
      }
      cases.push_back({model, link, 0.85, "long_outputs", kLongOutputs});
      for (const double share : {0.73, 0.85}) cases.push_back({model, link, share, "4k", kFourK});
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Floods, TideClosedLoop, testing::ValuesIn(Grid()),
                         [](const auto& instance) {
                           const Case& c = instance.param;
                           return std::string(c.model) + "_link" +
                                  std::to_string(static_cast<int>(c.link)) + "_share" +
                                  std::to_string(static_cast<int>(c.share * 100 + 0.5)) + "_" +
                                  c.load_name;
                         });

// --- Loads that change --------------------------------------------------------------------------

constexpr Case kSwing{"8B", 345, 0.85, "chat", kChat};

// What |policy| does with light load and flood in turn: output tokens/s of all, and of the light
// phases the mean time to first token and step.
struct Swing {
  double tokens_per_s = 0;
  ServerResult light;
};
Swing RunSwing(Policy& policy, double light_requests_per_s) {
  SimulatedServer server(Gpu(kSwing).Server(kSwing.share), policy);
  Load light = kChat, heavy = kChat;
  light.requests_per_s = light_requests_per_s;
  heavy.requests_per_s = 60;
  Swing swing;
  double tokens = 0, seconds = 0;
  for (uint64_t round = 0; round < 4; ++round) {
    const ServerResult high = server.Stream(heavy, 2 * round, 15);
    (void)server.Stream(light, 2 * round + 1, 60);  // what the flood left is worked off
    swing.light = server.Stream(light, 100 + round, 30);
    tokens += high.tokens_per_s * high.seconds;
    seconds += high.seconds;
  }
  swing.tokens_per_s = tokens / seconds;
  return swing;
}

TEST(TideClosedLoopSwing, BeatsEveryFixedBorder) {
  // About 30 % of what resident weights sustain.
  const double light = 0.3 * 8400 / 338;
  ResidentPolicy home;
  const Swing resident = RunSwing(home, light);
  TidePolicy tide;
  const Swing moving = RunSwing(tide, light);
  std::printf(
      "overload %.0f tokens/s, light: step %.2f ms, first token %.1f ms, away %.2f; resident "
      "%.0f, %.2f ms, %.1f ms\n",
      moving.tokens_per_s, moving.light.mean_step_ms, 1e3 * moving.light.mean_first_token_s,
      moving.light.mean_evicted, resident.tokens_per_s, resident.light.mean_step_ms,
      1e3 * resident.light.mean_first_token_s);
  // As fast as resident while it is quiet: nothing is away, and the same tokens come at the same
  // times.
  EXPECT_EQ(moving.light.mean_evicted, 0);
  EXPECT_NEAR(moving.light.mean_step_ms / resident.light.mean_step_ms, 1, 0.01);
  EXPECT_NEAR(moving.light.mean_first_token_s / resident.light.mean_first_token_s, 1, 0.01);
  // And no fixed border is as good in both: what serves the overload as well pays when it is quiet.
  for (const uint32_t e : Borders(Gpu(kSwing).Server(kSwing.share))) {
    FixedPolicy policy(FixedConfig{.granules_per_layer = e});
    const Swing fixed = RunSwing(policy, light);
    const bool as_fast = fixed.tokens_per_s > 0.99 * moving.tokens_per_s;
    const bool as_quick = fixed.light.mean_step_ms < 1.01 * moving.light.mean_step_ms;
    EXPECT_FALSE(as_fast && as_quick)
        << e << ": " << fixed.tokens_per_s << " tokens/s, " << fixed.light.mean_step_ms << " ms";
  }
}

TEST(TideClosedLoopSwing, ASlowLinkBringsWeightsHome) {
  // Something else takes nine tenths of the link; nobody tells the policy.
  SimulatedGpu gpu = Gpu(kSwing);
  auto slow = std::make_shared<bool>(false);
  ServerShape shape = gpu.Server(kSwing.share);
  shape.truth = [gpu, slow](const StepWork& work) {
    SimulatedGpu now = gpu;
    if (*slow) {
      now.link_busy /= 10;
      now.link_idle /= 10;
    }
    return now.Step(work);
  };
  TidePolicy tide;
  SimulatedServer server(shape, tide);
  const ServerResult before = server.Flood(kChat, 1, 40);
  EXPECT_GT(before.last_evicted, 4u);
  *slow = true;
  const ServerResult after = server.Flood(kChat, 1, 40);
  EXPECT_LE(after.last_evicted, 1u);
  *slow = false;
  ResidentPolicy home;
  SimulatedServer resident(shape, home);
  EXPECT_GT(server.Flood(kChat, 1, 20).tokens_per_s,
            0.9 * resident.Flood(kChat, 1, 20).tokens_per_s);
}

TEST(TideClosedLoopTargets, TheTimePerTokenIsKeptAndTheRestIsUsed) {
  const ServerShape shape = Gpu(kSwing).Server(kSwing.share);
  ServerResult free;
  TidePolicy unlimited;
  (void)Steady(shape, unlimited, kSwing, &free);
  ResidentPolicy home;
  ServerResult resident;
  (void)Steady(shape, home, kSwing, &resident);
  ASSERT_GT(free.mean_step_ms, 1.1 * resident.mean_step_ms);
  const double target = (free.mean_step_ms + resident.mean_step_ms) / 2;
  TidePolicy limited(TideConfig{.tpot_ms = target});
  ServerResult kept;
  (void)Steady(shape, limited, kSwing, &kept);
  std::printf("step ms: resident %.2f, target %.2f, kept %.2f, unlimited %.2f\n",
              resident.mean_step_ms, target, kept.mean_step_ms, free.mean_step_ms);
  EXPECT_LE(kept.mean_step_ms, 1.05 * target);
  EXPECT_GT(kept.tokens_per_s, 1.1 * resident.tokens_per_s);
  EXPECT_LT(kept.mean_evicted, free.mean_evicted);
  // A target that nothing can keep leaves the shortest steps there are.
  TidePolicy hopeless(TideConfig{.tpot_ms = 0.1});
  ServerResult least;
  (void)Steady(shape, hopeless, kSwing, &least);
  EXPECT_EQ(least.mean_evicted, 0);
}

// --- What the policy is told is wrong ------------------------------------------------------------

TEST(TideClosedLoopErrors, AModelOffByAFifthCostsLittle) {
  const SimulatedGpu gpu = Gpu(kSwing);
  ServerShape shape = gpu.Server(kSwing.share);
  const StepCost truth{.fixed_ns = 4.2e6,
                       .per_token_ns = gpu.token_ns,
                       .per_context_ns = 32,
                       .link_bytes_per_ns = 345,
                       .copy_interference = 1 / gpu.hbm,
                       .per_pair_ns = 0.7,
                       .free_tokens = 170};
  double best = 0;
  ServerResult result;
  for (uint32_t e = 0; e <= 20; ++e) {
    FixedPolicy fixed(FixedConfig{.granules_per_layer = e});
    best = std::max(best, Steady(shape, fixed, kSwing, &result));
  }
  for (const double compute : {0.8, 1.0, 1.25}) {
    for (const double link : {0.8, 1.0, 1.25}) {
      shape.told = truth;
      for (double* v : {&shape.told->fixed_ns, &shape.told->per_token_ns,
                        &shape.told->per_context_ns, &shape.told->copy_interference}) {
        *v *= compute;
      }
      shape.told->link_bytes_per_ns *= link;
      TidePolicy tide;
      const double rate = Steady(shape, tide, kSwing, &result);
      std::printf("told compute x%.2f, link x%.2f: %.1f %% of best fixed\n", compute, link,
                  100 * rate / best);
      EXPECT_GE(rate, 0.80 * best);
    }
  }
}

}  // namespace
}  // namespace weir
