// tide around a simulated server, against every fixed border.
#include <cstdio>

#include <gtest/gtest.h>

#include "policy/resident.h"
#include "policy/tide.h"
#include "tests/policy/simulated_server.h"

namespace weir {
namespace {

// 24 GiB of weights; W:C gives what is left for KV. HBM of 4 TB/s, 128 KiB of KV a token.
ServerShape Shape(double weights_share, double link_bytes_per_ns) {
  ServerShape shape;
  shape.kv_granules = static_cast<uint32_t>(768 * (1 / weights_share - 1));
  shape.cost = {6.4e6, 2e4, 33, link_bytes_per_ns, 0};
  shape.told = shape.cost;
  return shape;
}

double BestFixed(const ServerShape& shape, const Load& load, uint32_t* best_evicted) {
  double best = 0;
  for (uint32_t e = 0; e <= shape.granules_per_layer - 2; ++e) {
    FixedPolicy fixed(FixedConfig{.granules_per_layer = e});
    SimulatedServer server(shape, fixed);
    const double rate = server.Serve(load, 1).tokens_per_s;
    if (rate > best) {
      best = rate;
      *best_evicted = e;
    }
  }
  return best;
}

struct Case {
  const char* name;
  double weights_share;
  double link_bytes_per_ns;
  Load load;
};

class TideClosedLoop : public testing::TestWithParam<Case> {};

TEST_P(TideClosedLoop, ReachesTheBestFixedBorder) {
  const Case& c = GetParam();
  const ServerShape shape = Shape(c.weights_share, c.link_bytes_per_ns);
  uint32_t best_evicted = 0;
  const double best = BestFixed(shape, c.load, &best_evicted);
  ResidentPolicy resident;
  const double base = SimulatedServer(shape, resident).Serve(c.load, 1).tokens_per_s;
  TidePolicy tide;
  SimulatedServer server(shape, tide);
  const ServerResult result = server.Serve(c.load, 1);
  std::printf(
      "%-18s resident %6.0f, best fixed %6.0f tokens/s at %2u, tide %6.0f (%.1f %%), "
      "%llu moves, %llu preemptions\n",
      c.name, base, best, best_evicted, result.tokens_per_s, 100 * result.tokens_per_s / best,
      static_cast<unsigned long long>(result.moves),
      static_cast<unsigned long long>(result.preemptions));
  EXPECT_GE(result.tokens_per_s, 0.95 * best);
  EXPECT_GE(result.tokens_per_s, 0.98 * base);
}

constexpr Load kFlood{.requests_per_s = 1e9, .requests = 1500};
constexpr Load kLong{
    .requests_per_s = 1e9, .requests = 600, .prompt_tokens = 1500, .output_tokens = 600};
constexpr Load kSteady{.requests_per_s = 14, .requests = 1000};
constexpr Load kLight{.requests_per_s = 2, .requests = 200};

INSTANTIATE_TEST_SUITE_P(
    Loads, TideClosedLoop,
    testing::Values(Case{"flood_half", 0.5, 380, kFlood}, Case{"flood_73", 0.73, 380, kFlood},
                    Case{"flood_85", 0.85, 380, kFlood}, Case{"flood_90", 0.90, 380, kFlood},
                    Case{"long_73", 0.73, 380, kLong}, Case{"long_85", 0.85, 380, kLong},
                    Case{"steady_73", 0.73, 380, kSteady}, Case{"steady_85", 0.85, 380, kSteady},
                    Case{"light_85", 0.85, 380, kLight}, Case{"flood_85_pcie", 0.85, 50, kFlood},
                    Case{"flood_85_fast", 0.85, 2000, kFlood}),
    [](const auto& param) { return std::string(param.param.name); });

// The policy is told a step cost and a link speed that are off by a fifth.
TEST(TideClosedLoopErrors, AModelOffByAFifthCostsLittle) {
  const ServerShape truth = Shape(0.85, 380);
  uint32_t best_evicted = 0;
  const double best = BestFixed(truth, kFlood, &best_evicted);
  for (double compute : {0.8, 1.0, 1.25}) {
    for (double link : {0.8, 1.0, 1.25}) {
      ServerShape shape = truth;
      shape.told = truth.cost;
      shape.told.fixed_ns *= compute;
      shape.told.per_token_ns *= compute;
      shape.told.per_context_ns *= compute;
      shape.told.link_bytes_per_ns *= link;
      TidePolicy tide;
      const double rate = SimulatedServer(shape, tide).Serve(kFlood, 1).tokens_per_s;
      std::printf("told compute x%.2f, link x%.2f: %.1f %% of best fixed\n", compute, link,
                  100 * rate / best);
      EXPECT_GE(rate, 0.80 * best);
    }
  }
}

TEST(TideClosedLoopReturn, ComesHomeAtLowLoad) {
  TidePolicy tide;
  SimulatedServer server(Shape(0.85, 380), tide);
  const ServerResult busy = server.Serve({.requests_per_s = 1e9, .requests = 600}, 2, 1500);
  ASSERT_GT(busy.last_evicted, 0u);
  const ServerResult quiet = server.Serve({.requests_per_s = 1, .requests = 20}, 3);
  EXPECT_EQ(quiet.last_evicted, 0u);
  // And stays there, soon after the load fell.
  for (size_t i = 200; i < quiet.evicted_at_step.size(); ++i) {
    ASSERT_EQ(quiet.evicted_at_step[i], 0u) << i;
  }
}

TEST(TideClosedLoopReturn, ASteadyLoadIsNotAnsweredByJitter) {
  TidePolicy tide;
  SimulatedServer server(Shape(0.85, 380), tide);
  const ServerResult result = server.Serve(kFlood, 4);
  EXPECT_LE(static_cast<double>(result.moves),
            2 + 0.01 * static_cast<double>(result.evicted_at_step.size()));
}

}  // namespace
}  // namespace weir
