#include "policy/cost_model.h"

#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

namespace weir {
namespace {

// A GPU-like truth: 5 ms fixed, 20 us a token, 10 ns per context token.
StepCost Truth() {
  StepCost cost;
  cost.fixed_ns = 5e6;
  cost.per_token_ns = 2e4;
  cost.per_context_ns = 10;
  return cost;
}

StepSample Measure(const StepCost& truth, double tokens, double context, double bytes,
                   double relative_noise, std::mt19937_64& random) {
  std::normal_distribution<double> normal(0, relative_noise);
  const double compute = truth.fixed_ns + truth.per_token_ns * tokens +
                         truth.per_context_ns * context + truth.copy_interference * bytes;
  StepSample s;
  s.tokens = tokens;
  s.context = context;
  s.evicted_bytes = bytes;
  s.step_ns = compute * std::max(0.1, 1 + normal(random));
  return s;
}

std::vector<StepSample> Grid(const StepCost& truth, double noise, std::mt19937_64& random) {
  std::vector<StepSample> samples;
  for (double tokens : {1.0, 8.0, 32.0, 128.0, 256.0}) {
    for (double context : {64.0, 1024.0, 8192.0}) {
      samples.push_back(Measure(truth, tokens, tokens * context, 0, noise, random));
    }
  }
  return samples;
}

void ExpectSane(const StepCost& c) {
  for (double v : {c.fixed_ns, c.per_token_ns, c.per_context_ns, c.link_bytes_per_ns,
                   c.copy_interference, c.per_pair_ns, c.free_tokens}) {
    EXPECT_TRUE(std::isfinite(v)) << v;
    EXPECT_GE(v, 0);
  }
}

bool Sane(const StepCost& c) {
  for (double v : {c.fixed_ns, c.per_token_ns, c.per_context_ns, c.link_bytes_per_ns,
                   c.copy_interference, c.per_pair_ns, c.free_tokens}) {
    if (!std::isfinite(v) || v < 0) return false;
  }
  return true;
}

TEST(CostModel, CalibrationRecoversExactCoefficients) {
  std::mt19937_64 random(1);
  CostModel model;
  ASSERT_TRUE(model.Calibrate(Grid(Truth(), 0, random)).ok());
  EXPECT_NEAR(model.cost().fixed_ns / Truth().fixed_ns, 1, 1e-4);
  EXPECT_NEAR(model.cost().per_token_ns / Truth().per_token_ns, 1, 1e-4);
  EXPECT_NEAR(model.cost().per_context_ns / Truth().per_context_ns, 1, 1e-4);
  EXPECT_EQ(model.cost().copy_interference, 0);
}

TEST(CostModel, CalibrationRecoversCoefficientsFromNoisySamples) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    std::vector<StepSample> samples;
    for (int repeat = 0; repeat < 4; ++repeat) {
      const auto grid = Grid(Truth(), 0.03, random);
      samples.insert(samples.end(), grid.begin(), grid.end());
    }
    CostModel model;
    ASSERT_TRUE(model.Calibrate(samples).ok());
    EXPECT_NEAR(model.cost().fixed_ns / Truth().fixed_ns, 1, 0.05);
    EXPECT_NEAR(model.cost().per_token_ns / Truth().per_token_ns, 1, 0.25);
    EXPECT_NEAR(model.cost().per_context_ns / Truth().per_context_ns, 1, 0.10);
  }
}

TEST(CostModel, OneDisturbedSampleDoesNotBendTheCalibration) {
  std::mt19937_64 random(3);
  std::vector<StepSample> samples = Grid(Truth(), 0.01, random);
  samples[4].step_ns *= 20;  // a page fault, a clock ramp
  CostModel model;
  ASSERT_TRUE(model.Calibrate(samples).ok());
  EXPECT_NEAR(model.cost().fixed_ns / Truth().fixed_ns, 1, 0.05);
  EXPECT_NEAR(model.cost().per_context_ns / Truth().per_context_ns, 1, 0.05);
}

TEST(CostModel, StallsAreNotCompute) {
  std::mt19937_64 random(4);
  std::vector<StepSample> samples = Grid(Truth(), 0, random);
  for (StepSample& s : samples) {
    s.stall_ns = 3e6;
    s.step_ns += 3e6;
  }
  CostModel model;
  ASSERT_TRUE(model.Calibrate(samples).ok());
  EXPECT_NEAR(model.cost().fixed_ns / Truth().fixed_ns, 1, 1e-3);
}

TEST(CostModel, ASingleSampleIsPredictedAndSharedEvenly) {
  CostModel model;
  const StepSample s{
      .tokens = 16, .context = 1600, .evicted_bytes = 0, .stall_ns = 0, .step_ns = 9e6};
  ASSERT_TRUE(model.Calibrate({&s, 1}).ok());
  EXPECT_NEAR(model.cost().StepNs(16, 1600, 0, 0), 9e6, 1e3);
  EXPECT_NEAR(model.cost().fixed_ns, 3e6, 1e4);
  EXPECT_NEAR(model.cost().per_token_ns * 16, 3e6, 1e4);
}

TEST(CostModel, CollinearSamplesArePredicted) {
  CostModel model;
  std::vector<StepSample> samples;
  for (double tokens : {4.0, 8.0, 16.0}) {  // context always 100 a token: indistinguishable
    samples.push_back({tokens, tokens * 100, 0, 0, 1e6 + 5e4 * tokens});
  }
  ASSERT_TRUE(model.Calibrate(samples).ok());
  EXPECT_NEAR(model.cost().StepNs(12, 1200, 0, 0), 1.6e6, 1e3);
  EXPECT_NEAR(model.cost().fixed_ns, 1e6, 2e3);
}

TEST(CostModel, CalibratingWithoutAUsableSampleSaysSoAndChangesNothing) {
  CostModel model;
  EXPECT_EQ(model.Calibrate({}).code(), StatusCode::kInvalidArgument);
  const StepSample bad{.tokens = 1, .context = 1, .evicted_bytes = 0, .stall_ns = 5, .step_ns = 5};
  EXPECT_FALSE(model.Calibrate({&bad, 1}).ok());
  EXPECT_FALSE(model.calibrated());
  EXPECT_EQ(model.cost().fixed_ns, 0);
}

TEST(CostModel, ObservingFollowsALastingChange) {
  std::mt19937_64 random(5);
  CostModel model;
  ASSERT_TRUE(model.Calibrate(Grid(Truth(), 0.02, random)).ok());
  StepCost slower = Truth();
  slower.fixed_ns *= 2;  // clocks dropped
  slower.per_token_ns *= 2;
  slower.per_context_ns *= 2;
  std::uniform_real_distribution<double> batch(1, 200), context(100, 4000);
  for (int i = 0; i < 2000; ++i) {
    const double tokens = std::floor(batch(random));
    model.Observe(Measure(slower, tokens, tokens * context(random), 0, 0.02, random));
  }
  for (double tokens : {1.0, 32.0, 200.0}) {
    const double expected = slower.StepNs(tokens, tokens * 1000, 0, 0);
    EXPECT_NEAR(model.cost().StepNs(tokens, tokens * 1000, 0, 0) / expected, 1, 0.08) << tokens;
  }
}

TEST(CostModel, ASpikeMovesThePredictionLittle) {
  std::mt19937_64 random(6);
  CostModel model;
  ASSERT_TRUE(model.Calibrate(Grid(Truth(), 0.02, random)).ok());
  for (int i = 0; i < 300; ++i) model.Observe(Measure(Truth(), 64, 64e3, 0, 0.02, random));
  const double before = model.cost().StepNs(64, 64e3, 0, 0);
  StepSample spike = Measure(Truth(), 64, 64e3, 0, 0, random);
  spike.step_ns *= 100;
  model.Observe(spike);
  EXPECT_NEAR(model.cost().StepNs(64, 64e3, 0, 0) / before, 1, 0.02);
  EXPECT_GE(model.counters().clipped, 1u);
}

TEST(CostModel, ALongSteadyLoadDoesNotForgetWhatItDoesNotExcite) {
  std::mt19937_64 random(7);
  CostModel model;
  ASSERT_TRUE(model.Calibrate(Grid(Truth(), 0.01, random)).ok());
  for (int i = 0; i < 20000; ++i) model.Observe(Measure(Truth(), 64, 64e3, 0, 0.02, random));
  for (double tokens : {1.0, 256.0}) {
    const double expected = Truth().StepNs(tokens, tokens * 1000, 0, 0);
    EXPECT_NEAR(model.cost().StepNs(tokens, tokens * 1000, 0, 0) / expected, 1, 0.25) << tokens;
  }
}

TEST(CostModel, InterferenceIsLearntFromStepsWithEviction) {
  std::mt19937_64 random(8);
  StepCost truth = Truth();
  truth.copy_interference = 0.004;  // ns per byte
  CostModel model;
  ASSERT_TRUE(model.Calibrate(Grid(truth, 0.01, random)).ok());
  std::uniform_real_distribution<double> batch(8, 200);
  for (int i = 0; i < 400; ++i) {
    const double tokens = std::floor(batch(random));
    const double bytes = i % 2 == 0 ? 1e9 : 0;
    model.Observe(Measure(truth, tokens, tokens * 1000, bytes, 0.01, random));
  }
  EXPECT_NEAR(model.cost().copy_interference / 0.004, 1, 0.1);
  EXPECT_NEAR(model.cost().fixed_ns / truth.fixed_ns, 1, 0.05);
}

TEST(CostModel, InterferenceIsLearntDuringCalibrationToo) {
  std::mt19937_64 random(9);
  StepCost truth = Truth();
  truth.copy_interference = 0.002;
  std::vector<StepSample> samples = Grid(truth, 0.005, random);
  for (double tokens : {1.0, 64.0, 256.0}) {
    samples.push_back(Measure(truth, tokens, tokens * 1000, 2e9, 0.005, random));
  }
  CostModel model;
  ASSERT_TRUE(model.Calibrate(samples).ok());
  EXPECT_NEAR(model.cost().copy_interference / 0.002, 1, 0.1);
}

// A GPU: the weights' read hides the products of the first 176 tokens; decoding reads KV, a
// prompt's attention is arithmetic.
TEST(CostModel, LearnsWhatTokensAreFreeAndWhatAPromptsContextCosts) {
  std::mt19937_64 random(21);
  std::normal_distribution<double> noise(1, 0.005);
  const auto step = [&](double sequences, double rows, double context) {
    StepSample s;
    s.tokens = sequences * rows;
    s.context = sequences * context;
    s.pairs = rows > 1 ? s.tokens * (context - (rows - 1) / 2) : 0;
    s.step_ns = (4e6 + std::max(0.0, s.tokens - 176) * 23e3 + s.context * 32 + s.pairs * 0.7) *
                noise(random);
    return s;
  };
  std::vector<StepSample> samples;
  for (const auto& [sequences, rows, context] : {std::array{1.0, 1.0, 16.0},
                                                 {4, 1, 16},
                                                 {16, 1, 16},
                                                 {64, 1, 16},
                                                 {1, 1, 512},
                                                 {8, 1, 512},
                                                 {64, 1, 512},
                                                 {1, 64, 64},
                                                 {1, 256, 256},
                                                 {1, 1024, 1024},
                                                 {4, 256, 256}}) {
    samples.push_back(step(sequences, rows, context));
  }
  CostModel model;
  ASSERT_TRUE(model.Calibrate(samples).ok());
  EXPECT_NEAR(model.cost().free_tokens, 176, 32);
  for (int i = 0; i < 500; ++i) {
    model.Observe(step(64, 1, 600));
    model.Observe(step(1, 1984, 4000));
  }
  for (const StepSample& s : {step(1, 1, 16), step(128, 1, 1000), step(1, 2000, 2000)}) {
    EXPECT_NEAR(model.cost().StepNs(s.tokens, s.context, s.pairs, 0) / s.step_ns, 1, 0.06)
        << s.tokens;
  }
}

TEST(StepCost, FewTokensHideBehindTheReadAndManyDoNot) {
  const StepCost cost{.per_token_ns = 1, .free_tokens = 160};
  EXPECT_LT(cost.DearTokens(40), 0.2);
  EXPECT_NEAR(cost.DearTokens(160), 160 * (std::pow(2, 0.25) - 1), 1e-9);
  EXPECT_NEAR(cost.DearTokens(2048), 2048 - 160, 0.1);
  for (double tokens = 0; tokens < 1000; ++tokens) {
    EXPECT_GE(cost.DearTokens(tokens), 0);
    EXPECT_GT(cost.DearTokens(tokens + 1), cost.DearTokens(tokens));
  }
  const StepCost dear{.per_token_ns = 1};
  EXPECT_EQ(dear.DearTokens(0), 0);
  EXPECT_EQ(dear.DearTokens(17), 17);
  EXPECT_EQ(dear.DearTokens(1e200), 1e200);
}

TEST(CostModel, LearnsTheLinkFromStepsThatStoodAtGates) {
  CostModel model;
  model.SetLinkSpeed(372);
  ASSERT_TRUE(model.Calibrate(std::vector<StepSample>{{.tokens = 1, .step_ns = 9e6}}).ok());
  // Beside a GPU that reads its memory the link gives less than alone.
  const StepSample busy{
      .tokens = 64, .evicted_bytes = 345 * 10e6, .stall_ns = 0.3e6, .step_ns = 10e6};
  for (int i = 0; i < 200; ++i) model.Observe(busy);
  EXPECT_NEAR(model.cost().link_bytes_per_ns, 345, 1);
  // The first step after a move waits for the latency of one stripe, on an idle link.
  const StepSample first{
      .tokens = 64, .evicted_bytes = 100 * 10e6, .stall_ns = 0.3e6, .step_ns = 10e6};
  for (int i = 0; i < 200; ++i) model.Observe(first);
  EXPECT_NEAR(model.cost().link_bytes_per_ns, 345, 1);
  // Between the copies of whole layers, or of a border that moves, the link rests as well.
  const StepSample layers{.tokens = 64,
                          .evicted_bytes = 270 * 10e6,
                          .stall_ns = 4e6,
                          .step_ns = 10e6,
                          .streamed_evenly = false};
  for (int i = 0; i < 200; ++i) model.Observe(layers);
  EXPECT_NEAR(model.cost().link_bytes_per_ns, 345, 1);
  // Or a step stood at its first gate, and the compute took the rest of it.
  const StepSample first_gate{.tokens = 64,
                              .evicted_bytes = 300 * 10e6,
                              .stall_ns = 0.3e6,
                              .step_ns = 10e6,
                              .waited_share = 0.03};
  for (int i = 0; i < 200; ++i) model.Observe(first_gate);
  EXPECT_NEAR(model.cost().link_bytes_per_ns, 345, 1);
  // A link that slows to a tenth makes steps stand nearly all the time.
  const StepSample slow{
      .tokens = 64, .evicted_bytes = 34.5 * 100e6, .stall_ns = 90e6, .step_ns = 100e6};
  for (int i = 0; i < 300; ++i) model.Observe(slow);
  EXPECT_NEAR(model.cost().link_bytes_per_ns, 34.5, 1);
  // And what hides at twice the known speed proves the link to be faster.
  const StepSample fast{.tokens = 64, .evicted_bytes = 300 * 10e6, .stall_ns = 0, .step_ns = 10e6};
  for (int i = 0; i < 1000; ++i) model.Observe(fast);
  EXPECT_NEAR(model.cost().link_bytes_per_ns, 300, 5);
}

// A link of 345 bytes/ns, and steps with and without prompts in turn. While the longer one runs the
// link goes on with the next pass, as far as there are ring slots for it.
TEST(CostModel, WhatWasCopiedAheadDoesNotMakeTheLinkFaster) {
  CostModel model;
  model.SetLinkSpeed(345);
  ASSERT_TRUE(model.Calibrate(std::vector<StepSample>{{.tokens = 1, .step_ns = 9e6}}).ok());
  const double bytes = 345 * 10e6 / 0.94;
  const double ahead = 0.06 * bytes;
  const StepSample prompt{
      .tokens = 400, .evicted_bytes = bytes, .step_ns = 14e6, .ahead_bytes = ahead};
  const StepSample decode{.tokens = 64,
                          .evicted_bytes = bytes,
                          .stall_ns = 0.3e6,
                          .step_ns = 10e6,
                          .ahead_bytes = ahead};
  for (int i = 0; i < 200; ++i) {
    model.Observe(prompt);
    model.Observe(decode);
  }
  EXPECT_NEAR(model.cost().link_bytes_per_ns, 345, 1);
  // Nor does a step that only just hides.
  StepSample hidden = decode;
  hidden.stall_ns = 0;
  for (int i = 0; i < 200; ++i) {
    model.Observe(prompt);
    model.Observe(hidden);
  }
  EXPECT_NEAR(model.cost().link_bytes_per_ns, 345, 1);
  // One decode step after the other has nothing ahead.
  StepSample bound = decode;
  bound.step_ns = bytes / 345;
  for (int i = 0; i < 200; ++i) model.Observe(bound);
  EXPECT_NEAR(model.cost().link_bytes_per_ns, 345, 1);
}

TEST(CostModel, LinkSpeedIsTheRatioOfBytesToTime) {
  CostModel model;
  EXPECT_EQ(model.cost().link_bytes_per_ns, 0);
  for (int i = 0; i < 100; ++i) model.ObserveCopy(32 << 20, 88'000);
  EXPECT_NEAR(model.cost().link_bytes_per_ns, (32 << 20) / 88'000.0, 1e-6);
  model.ObserveCopy(32 << 20, 88'000'000);  // a thousand times slower: counts as four times
  EXPECT_GT(model.cost().link_bytes_per_ns, 0.9 * (32 << 20) / 88'000.0);
  for (int i = 0; i < 1000; ++i) model.ObserveCopy(32 << 20, 880'000);  // lastingly slower
  EXPECT_NEAR(model.cost().link_bytes_per_ns, (32 << 20) / 880'000.0, 0.2);
  model.ObserveCopy(0, 0);
  EXPECT_GE(model.counters().dropped, 1u);
}

double AnyNumber() {
  const double scale = *rc::gen::element(1e-3, 1.0, 1e3, 1e6, 1e9, 1e12, 1e17, 1e300);
  const double value = static_cast<double>(*rc::gen::inRange(-20, 1000)) * scale / 100;
  return *rc::gen::weightedElement<double>({{40, value},
                                            {4, 0.0},
                                            {1, std::numeric_limits<double>::quiet_NaN()},
                                            {1, std::numeric_limits<double>::infinity()}});
}

StepSample AnySample() {
  return {AnyNumber(), AnyNumber(), AnyNumber(), AnyNumber(), AnyNumber(), AnyNumber()};
}

RC_GTEST_PROP(CostModel, CoefficientsAreNeverNegativeNorNan, ()) {
  CostModel model;
  const int calibration = *rc::gen::inRange(0, 8);
  std::vector<StepSample> samples;
  for (int i = 0; i < calibration; ++i) samples.push_back(AnySample());
  (void)model.Calibrate(samples);
  RC_ASSERT(Sane(model.cost()));
  const int steps = *rc::gen::inRange(0, 60);
  for (int i = 0; i < steps; ++i) {
    model.Observe(AnySample());
    model.ObserveCopy(*rc::gen::arbitrary<uint64_t>(), *rc::gen::arbitrary<uint64_t>());
    RC_ASSERT(Sane(model.cost()));
    RC_ASSERT(std::isfinite(model.cost().StepNs(1, 1, 1, 1)));
  }
}

TEST(CostModel, StaysSaneOverManyRandomSteps) {
  std::mt19937_64 random(10);
  std::lognormal_distribution<double> wide(10, 4);
  CostModel model;
  for (int i = 0; i < 200'000; ++i) {
    StepSample s{wide(random), wide(random), i % 3 == 0 ? wide(random) : 0, 0, wide(random) + 1};
    model.Observe(s);
  }
  ExpectSane(model.cost());
}

}  // namespace
}  // namespace weir
