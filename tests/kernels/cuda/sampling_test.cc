#include "kernels/cuda/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "tests/kernels/cuda/sampling_testing.h"

namespace weir::cuda {
namespace {

using testing::RunSample;
using testing::SampleBatch;
using testing::SampleCase;
using testing::SampledRows;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

enum class Kind { kNormal, kPeaked, kTied, kMasked };

std::vector<float> RandomLogits(size_t vocab, Kind kind, float spread, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(vocab);
  for (float& v : logits) {
    v = normal(random);
    if (kind == Kind::kTied) v = std::nearbyint(v * 2) / 2;
    if (kind == Kind::kMasked && random() % 3 != 0) v = -kInfinity;
  }
  if (kind == Kind::kMasked) logits[random() % vocab] = 0.5f;
  if (kind == Kind::kPeaked) {
    for (int i = 0; i < 20; ++i) logits[random() % vocab] += 6 * spread;
  }
  return logits;
}

SamplingParams With(double temperature, int32_t top_k, double top_p, double min_p) {
  SamplingParams p;
  p.temperature = temperature;
  p.top_k = top_k;
  p.top_p = top_p;
  p.min_p = min_p;
  return p;
}

std::vector<TokenProbability> DistributionOf(const SampleCase& c) {
  Sampler sampler;
  std::vector<float> scratch = c.logits;
  auto distribution = sampler.Distribution(scratch, c.params, c.history, c.eos);
  EXPECT_TRUE(distribution.ok()) << distribution.status().ToString();
  return distribution.ok() ? *distribution : std::vector<TokenProbability>{};
}

// Every bit of a row's outcome.
bool SameRow(const SampledRows& a, size_t i, const SampledRows& b, size_t j) {
  return a.tokens[i] == b.tokens[j] &&
         std::memcmp(&a.results[i], &b.results[j], sizeof(SampleResult)) == 0 &&
         std::memcmp(&a.top_tokens[i * kMaxTopLogprobs], &b.top_tokens[j * kMaxTopLogprobs],
                     kMaxTopLogprobs * sizeof(int32_t)) == 0 &&
         std::memcmp(&a.top_logprobs[i * kMaxTopLogprobs], &b.top_logprobs[j * kMaxTopLogprobs],
                     kMaxTopLogprobs * sizeof(float)) == 0;
}

class CudaSampling : public testing::GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped() && DeviceArchitecture() < 90) GTEST_SKIP() << "needs compute capability 9.0";
  }

  // A draw in the middle of each token's share of the CDF must give that token, which also compares
  // the sets of tokens that can be drawn. Shares too narrow for float weights are left out, and of
  // many only some are tried.
  void ExpectDrawsMatch(const SampleCase& request, size_t most) {
    const std::vector<TokenProbability> distribution = DistributionOf(request);
    ASSERT_FALSE(distribution.empty());
    std::vector<SampleCase> cases;
    std::vector<int32_t> expected;
    const size_t stride = distribution.size() / most + 1;
    double sum = 0;
    for (size_t i = 0; i < distribution.size(); ++i) {
      const TokenProbability& t = distribution[i];
      const double middle = sum + t.probability / 2;
      sum += t.probability;
      const bool end = i == 0 || i + 1 == distribution.size();
      if (t.probability < 1e-5 || (!end && i % stride != 0)) continue;
      expected.push_back(t.token);
      cases.push_back(request);
      cases.back().uniform = i == 0 ? 0.0 : i + 1 == distribution.size() ? 1 - 0x1p-53 : middle;
    }
    if (cases.empty()) return;
    const SampledRows rows = RunSample(cases, stream_);
    for (size_t i = 0; i < cases.size(); ++i) {
      ASSERT_EQ(rows.results[i].error, SampleError::kNone);
      ASSERT_EQ(rows.tokens[i], expected[i]) << "at " << cases[i].uniform << ", draw " << i
                                             << " of " << distribution.size() << " tokens";
      ASSERT_EQ(rows.results[i].token, rows.tokens[i]);
      ASSERT_EQ(rows.results[i].logprob, 0.0f);
      ASSERT_EQ(rows.results[i].reserved, 0);
    }
  }

  // Against Sampler::Sample with the same draw, log-probabilities included.
  void ExpectSameAsCpu(std::vector<SampleCase> cases) {
    for (size_t i = 0; i < cases.size(); ++i) cases[i].uniform = SamplingUniform({}, 7, i);
    const SampledRows rows = RunSample(cases, stream_);
    Sampler sampler;
    size_t differing = 0;
    for (size_t i = 0; i < cases.size(); ++i) {
      SCOPED_TRACE(i);
      const SampleCase& c = cases[i];
      std::vector<float> scratch = c.logits;
      const auto want = sampler.Sample(scratch, c.params, c.history, 7, i, c.eos);
      ASSERT_TRUE(want.ok()) << want.status().ToString();
      ASSERT_EQ(rows.results[i].error, SampleError::kNone);
      ASSERT_EQ(rows.results[i].token, rows.tokens[i]);
      if (rows.tokens[i] != want->token) {
        ++differing;
        ExpectNearBoundary(c, rows.tokens[i]);
      } else {
        EXPECT_NEAR(rows.results[i].logprob, want->logprob, 2e-5f);
      }
      for (size_t n = 0; n < want->top.size(); ++n) {
        EXPECT_EQ(rows.top_tokens[i * kMaxTopLogprobs + n], want->top[n].token) << n;
        const float logprob = rows.top_logprobs[i * kMaxTopLogprobs + n];
        if (std::isinf(want->top[n].logprob)) {
          EXPECT_EQ(logprob, want->top[n].logprob) << n;
        } else {
          EXPECT_NEAR(logprob, want->top[n].logprob, 2e-5f) << n;
        }
      }
      for (size_t n = want->top.size(); c.params.logprobs > 0 && n < kMaxTopLogprobs; ++n) {
        EXPECT_EQ(rows.top_tokens[i * kMaxTopLogprobs + n], -1);
        EXPECT_EQ(rows.top_logprobs[i * kMaxTopLogprobs + n], 0.0f);
      }
    }
    EXPECT_LE(differing, 1 + cases.size() / 50);
  }

  void ExpectNearBoundary(const SampleCase& c, int32_t token) {
    ASSERT_FALSE(c.params.greedy());
    double sum = 0;
    for (const TokenProbability& t : DistributionOf(c)) {
      if (t.token == token) {
        EXPECT_GE(c.uniform, sum - 1e-4);
        EXPECT_LE(c.uniform, sum + t.probability + 1e-4);
        return;
      }
      sum += t.probability;
    }
    SampleCase wider = c;  // the last candidate may be one more
    if (wider.params.top_p < 1) wider.params.top_p = std::min(1.0, wider.params.top_p + 1e-5);
    wider.params.min_p *= 1 - 1e-5;
    const auto candidates = DistributionOf(wider);
    EXPECT_TRUE(std::any_of(candidates.begin(), candidates.end(),
                            [&](const TokenProbability& t) { return t.token == token; }))
        << token << " cannot be drawn";
  }
};

TEST_F(CudaSampling, GreedyIsTheFirstOfTheLargest) {
  for (const size_t vocab : {1u, 7u, 2048u, 2049u, 50257u, 128256u, 151936u, 262144u, 425984u}) {
    SCOPED_TRACE(vocab);
    std::vector<SampleCase> cases;
    std::vector<int32_t> expected;
    std::mt19937 random(static_cast<uint32_t>(vocab));
    for (uint32_t i = 0; i < 9; ++i) {
      const Kind kind = i % 2 == 0 ? Kind::kTied : Kind::kNormal;
      SampleCase c{RandomLogits(vocab, kind, i < 7 ? 2.0f : 0.1f, i), With(0, 0, 1, 0)};
      for (int n = 0; i < 4 && n < 3; ++n) c.logits[random() % vocab] = 100;
      if (i == 4) c.logits.assign(vocab, -3.0f);
      if (i == 5) c.logits.back() = 200;
      if (i == 6) {  // both zeros are the largest
        for (float& v : c.logits) v = -std::abs(v);
        c.logits[vocab / 2] = -0.0f;
        c.logits[vocab - 1] = 0.0f;
      }
      const auto max = std::max_element(c.logits.begin(), c.logits.end());
      expected.push_back(static_cast<int32_t>(max - c.logits.begin()));
      cases.push_back(std::move(c));
    }
    const SampledRows rows = RunSample(cases, stream_);
    EXPECT_EQ(rows.tokens, expected);
    for (size_t i = 0; i < cases.size(); ++i) {
      EXPECT_EQ(rows.results[i].token, expected[i]);
      EXPECT_EQ(rows.results[i].error, SampleError::kNone);
      EXPECT_EQ(rows.results[i].logprob, 0.0f);
    }
  }
}

TEST_F(CudaSampling, SaysWhatIsWrongWithARow) {
  constexpr size_t kVocab = 5000;
  for (const double temperature : {0.0, 1.0}) {
    for (const int32_t logprobs : {-1, 3}) {
      const SampleCase good{RandomLogits(kVocab, Kind::kNormal, 2, 1), With(temperature, 0, 1, 0)};
      std::vector<SampleCase> cases(7, good);
      cases[1].logits[4999] = std::numeric_limits<float>::quiet_NaN();
      cases[2].logits[0] = kInfinity;
      cases[3].logits.assign(kVocab, -kInfinity);
      cases[4].logits[17] = -std::numeric_limits<float>::quiet_NaN();
      cases[4].logits[3000] = kInfinity;  // not a number is said first
      cases[5].logits.assign(kVocab, -kInfinity);
      cases[5].logits[123] = 1;  // the only possible token, which is masked
      cases[5].params.min_tokens = 1;
      cases[5].eos = {123};
      cases[6].logits[123] = std::numeric_limits<float>::quiet_NaN();  // hidden by the mask
      cases[6].params.min_tokens = 1;
      cases[6].eos = {123};
      for (SampleCase& c : cases) c.params.logprobs = logprobs;
      const SampledRows rows = RunSample(cases, stream_);
      const std::vector<SampleError> expected = {
          SampleError::kNone,
          SampleError::kNan,
          SampleError::kInfinite,
          SampleError::kNothingPossible,
          SampleError::kNan,
          SampleError::kNothingPossible,
          logprobs < 0 ? SampleError::kNone : SampleError::kNan};
      Sampler sampler;
      for (size_t i = 0; i < cases.size(); ++i) {
        SCOPED_TRACE(i);
        EXPECT_EQ(rows.results[i].error, expected[i]);
        std::vector<float> scratch = cases[i].logits;
        EXPECT_EQ(sampler.Sample(scratch, cases[i].params, {}, 1, 1, cases[i].eos).ok(),
                  expected[i] == SampleError::kNone);
        if (expected[i] == SampleError::kNone) continue;
        EXPECT_EQ(rows.tokens[i], 0);
        EXPECT_EQ(rows.results[i].token, 0);
        EXPECT_EQ(rows.results[i].logprob, 0.0f);
      }
    }
  }
}

TEST_F(CudaSampling, DrawsWhatTheCpuWouldOverTheWholeCdf) {
  const std::vector<SamplingParams> params = {
      With(1, 0, 1, 0),      With(0.7, 0, 1, 0),     With(2, 0, 1, 0),      With(1, 1, 1, 0),
      With(1, 5, 1, 0),      With(1.3, 50, 1, 0),    With(1, 2000, 1, 0),   With(1, 0, 0.9, 0),
      With(1, 0, 0.5, 0),    With(1, 0, 1e-9, 0),    With(1, 0, 0.9999, 0), With(1, 0, 1, 0.05),
      With(0.8, 0, 1, 1),    With(0.6, 20, 0.95, 0), With(1, 40, 0.9, 0.1), With(2, 300, 0.3, 0),
      With(0.05, 3, 0.9, 0), With(1, 0, 0.8, 0.001), With(1, 5000, 0.7, 0), With(1e-4, 0, 0.9, 0)};
  for (const size_t vocab : {3u, 1000u, 6007u, 32000u}) {
    for (const Kind kind : {Kind::kNormal, Kind::kPeaked, Kind::kTied, Kind::kMasked}) {
      const std::vector<float> logits = RandomLogits(vocab, kind, 2.5f, 11);
      for (size_t i = 0; i < params.size(); ++i) {
        SCOPED_TRACE(::testing::Message() << "vocabulary " << vocab << ", kind "
                                          << static_cast<int>(kind) << ", parameters " << i);
        ExpectDrawsMatch({logits, params[i]}, vocab > 2000 ? 24 : 64);
      }
    }
  }
}

// Which of equal tokens stay.
TEST_F(CudaSampling, TopKKeepsTiesAndTopPKeepsTheLowerIds) {
  constexpr size_t kVocab = 3000;
  std::vector<float> logits(kVocab, -5.0f);
  for (const size_t at : {2900u, 40u, 1500u, 2u, 700u, 2047u, 2048u}) logits[at] = 1.0f;
  logits[1000] = 2.0f;
  ExpectDrawsMatch({logits, With(1, 2, 1, 0)}, 64);     // 8 tokens
  ExpectDrawsMatch({logits, With(1, 2, 0.6, 0)}, 64);   // some of the ties
  ExpectDrawsMatch({logits, With(1, 2, 0.95, 0)}, 64);  // all but the last
  ExpectDrawsMatch({std::vector<float>(kVocab, 1.0f), With(1, 0, 0.013, 0)}, 64);
  ExpectDrawsMatch({std::vector<float>(kVocab, 1.0f), With(1, 7, 1, 0)}, 64);
}

TEST_F(CudaSampling, TopKOfEverySizeIsTheCpus) {
  constexpr size_t kVocab = 9001;
  for (const Kind kind : {Kind::kNormal, Kind::kTied, Kind::kMasked}) {
    const std::vector<float> logits = RandomLogits(kVocab, kind, 0.5f, 3);
    for (const int32_t k : {1, 2, 3, 10, 100, 1000, 2999, 3001, 4095, 4096, 4097, 8999, 9000}) {
      SCOPED_TRACE(k);
      ExpectDrawsMatch({logits, With(1, k, 1, 0)}, 16);
      ExpectDrawsMatch({logits, With(1, k, 0.37, 0)}, 16);
    }
  }
}

TEST_F(CudaSampling, SamplesAndReportsAsTheCpuDoes) {
  std::mt19937 random(42);
  for (const size_t vocab : {5u, 2050u, 128256u, 151936u}) {
    SCOPED_TRACE(vocab);
    std::vector<SampleCase> cases;
    for (uint32_t i = 0; i < 48; ++i) {
      SampleCase c{RandomLogits(vocab, static_cast<Kind>(i % 4), 3, i)};
      c.params = With(i % 5 == 0 ? 0.0 : 0.3 + 0.1 * (i % 12), i % 3 == 0 ? 40 : 0,
                      i % 2 == 0 ? 0.9 : 1.0, i % 7 == 0 ? 0.02 : 0.0);
      c.params.logprobs = static_cast<int32_t>(i % 22) - 1;
      const auto token = [&] { return static_cast<int32_t>(random() % vocab); };
      if (i % 4 == 1) {
        for (int n = 0; n < 8; ++n) {
          c.params.logit_bias[token()] = static_cast<float>(random() % 200) / 10.0f - 10.0f;
        }
      }
      if (i % 4 >= 2) {
        c.params.repetition_penalty = 1.3;
        c.params.presence_penalty = 0.7;
        c.params.frequency_penalty = i % 8 == 2 ? -0.3 : 0.4;
        c.params.logit_bias[token()] = 5;
        std::vector<int32_t> prompt;
        for (int n = 0; n < 1500; ++n) prompt.push_back(token());
        c.history.AddPrompt(prompt);
        for (int n = 0; n < 600; ++n) c.history.AddOutput(prompt[random() % prompt.size()]);
        const auto best = std::max_element(c.logits.begin(), c.logits.end()) - c.logits.begin();
        c.history.AddOutput(static_cast<int32_t>(best));
      }
      if (i % 6 == 5 && vocab > 5) {
        c.params.min_tokens = 1'000'000;
        const auto best = std::max_element(c.logits.begin(), c.logits.end()) - c.logits.begin();
        c.eos = {static_cast<int32_t>(best)};
        c.params.stop_token_ids = {token(), token()};
      }
      cases.push_back(std::move(c));
    }
    ExpectSameAsCpu(std::move(cases));
  }
}

// Pearson's statistic against the CPU's distribution; the bound is the 1 - 1e-4 quantile by the
// Wilson-Hilferty approximation. Seeds are fixed, so this cannot flake.
TEST_F(CudaSampling, DrawsFollowTheDistribution) {
  constexpr size_t kVocab = 512, kDraws = 4096;
  for (const SamplingParams& params : {With(1, 0, 1, 0), With(0.8, 30, 0.9, 0)}) {
    SampleCase request{RandomLogits(kVocab, Kind::kNormal, 2, 5), params};
    std::vector<SampleCase> cases(kDraws, request);
    for (size_t i = 0; i < kDraws; ++i) cases[i].uniform = SamplingUniform({}, 99, i);
    const SampledRows rows = RunSample(cases, stream_);
    std::vector<double> probability(kVocab, 0), count(kVocab, 0);
    for (const auto& t : DistributionOf(request)) {
      probability[static_cast<size_t>(t.token)] = t.probability;
    }
    for (const int32_t token : rows.tokens) {
      ASSERT_GE(token, 0);
      ASSERT_LT(token, static_cast<int32_t>(kVocab));
      count[static_cast<size_t>(token)] += 1;
    }
    double statistic = 0, rare_expected = 0, rare_count = 0, cells = 0;
    for (size_t t = 0; t < kVocab; ++t) {
      const double expected = probability[t] * kDraws;
      if (expected == 0) {
        ASSERT_EQ(count[t], 0) << t;
      }
      if (expected < 8) {
        rare_expected += expected;
        rare_count += count[t];
        continue;
      }
      statistic += (count[t] - expected) * (count[t] - expected) / expected;
      ++cells;
    }
    if (rare_expected > 0) {
      statistic += (rare_count - rare_expected) * (rare_count - rare_expected) / rare_expected;
      ++cells;
    }
    const double freedom = cells - 1, v = 2 / (9 * freedom);
    EXPECT_LT(statistic, freedom * std::pow(1 - v + 3.719 * std::sqrt(v), 3)) << cells;
  }
}

std::vector<SampleCase> MixedCases(size_t vocab, size_t count) {
  std::vector<SampleCase> cases;
  for (uint32_t i = 0; i < count; ++i) {
    SampleCase c{RandomLogits(vocab, static_cast<Kind>(i % 4), 2.5f, 100 + i)};
    c.params = With(i % 3 == 0 ? 0.0 : 0.9, i % 4 == 1 ? 50 : 0, i % 5 == 1 ? 1.0 : 0.9,
                    i % 6 == 5 ? 0.01 : 0.0);
    c.params.logprobs = i % 2 == 0 ? 20 : -1;
    c.params.logit_bias[static_cast<int32_t>(i % vocab)] = 3;
    c.uniform = SamplingUniform({}, 3, i);
    cases.push_back(std::move(c));
  }
  return cases;
}

TEST_F(CudaSampling, ARowDependsNeitherOnItsIndexNorOnItsNeighbours) {
  for (const size_t vocab : {4001u, 128256u}) {
    const std::vector<SampleCase> cases = MixedCases(vocab, 13);
    const SampledRows together = RunSample(cases, stream_);
    std::vector<SampleCase> reversed(cases.rbegin(), cases.rend());
    reversed.insert(reversed.begin(), cases[5]);
    const SampledRows moved = RunSample(reversed, stream_);
    for (size_t i = 0; i < cases.size(); ++i) {
      SCOPED_TRACE(i);
      const SampledRows alone = RunSample({cases[i]}, stream_);
      EXPECT_TRUE(SameRow(together, i, alone, 0));
      EXPECT_TRUE(SameRow(together, i, moved, cases.size() - i));
      EXPECT_TRUE(SameRow(alone, 0, RunSample({cases[i]}, stream_, Overlap::kPrologue), 0));
    }
  }
}

TEST_F(CudaSampling, PaddingRowsGiveTokenZeroWhateverTheirLogitsAre) {
  std::vector<SampleCase> cases = MixedCases(3000, 5);
  const SampledRows before = RunSample(cases, stream_);
  for (const size_t i : {1u, 4u}) {
    cases[i].active = false;
    cases[i].logits.assign(3000, std::numeric_limits<float>::quiet_NaN());
  }
  const SampledRows rows = RunSample(cases, stream_);
  for (const size_t i : {0u, 2u, 3u}) EXPECT_TRUE(SameRow(before, i, rows, i));
  for (const size_t i : {1u, 4u}) {
    EXPECT_EQ(rows.tokens[i], 0);
    EXPECT_EQ(rows.results[i].token, 0);
    EXPECT_EQ(rows.results[i].logprob, 0.0f);
    EXPECT_EQ(rows.results[i].error, SampleError::kNone);
  }
}

TEST_F(CudaSampling, ACapturedLaunchIsReplayedWithOtherRequests) {
  const std::vector<SampleCase> cases = MixedCases(2500, 12);
  const std::vector<SampleCase> first(cases.begin(), cases.begin() + 6),
      second(cases.begin() + 6, cases.end());
  SampleBatch batch(first);
  (void)RunSample(first, stream_);  // nothing is loaded during the capture
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  const LaunchStatus status = Sample(batch.params(), {stream_});
  EXPECT_TRUE(status.ok()) << status.message();
  ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  for (const auto* requests : {&first, &second, &first}) {
    batch.Replace(*requests);
    ASSERT_EQ(cudaGraphLaunch(executable, stream_), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    const SampledRows replayed = batch.Download();
    const SampledRows expected = RunSample(*requests, stream_);
    for (size_t i = 0; i < requests->size(); ++i) {
      EXPECT_EQ(replayed.tokens[i], expected.tokens[i]);
      EXPECT_EQ(std::memcmp(&replayed.results[i], &expected.results[i], sizeof(SampleResult)), 0);
    }
  }
  (void)cudaGraphExecDestroy(executable);
  (void)cudaGraphDestroy(graph);
}

TEST_F(CudaSampling, RefusesWhatItCannotRun) {
  const SampleBatch batch(MixedCases(100, 2));
  const auto refused = [&](auto change) {
    SampleParams p = batch.params();
    change(p);
    return Sample(p, {stream_}).message();
  };
  EXPECT_NE(refused([](SampleParams& p) { p.rows = -1; }).find("rows"), std::string::npos);
  EXPECT_NE(refused([](SampleParams& p) { p.vocab = 0; }).find("vocab"), std::string::npos);
  EXPECT_NE(refused([](SampleParams& p) { p.vocab = kMaxSampleVocab + 1; }).find("vocab"),
            std::string::npos);
  EXPECT_NE(refused([](SampleParams& p) { p.tokens = nullptr; }).find("tokens"), std::string::npos);
  EXPECT_EQ(refused([](SampleParams& p) { p.rows = 0; }), "");
}

}  // namespace
}  // namespace weir::cuda
