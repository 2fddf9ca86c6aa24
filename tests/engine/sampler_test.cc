#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <random>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace weir {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The oracle's formula.
std::vector<float> LogitsOf(uint64_t seed, size_t vocab, double scale, double ties) {
  std::vector<float> logits(vocab);
  for (uint64_t i = 0; i < vocab; ++i) {
    uint64_t x = (i + seed * 1000003u) * 0x9E3779B97F4A7C15ull;
    x ^= x >> 29;
    x *= 0xBF58476D1CE4E5B9ull;
    x ^= x >> 32;
    const double unit = static_cast<double>(x >> 40) / 8388608.0 - 1.0;
    logits[i] = static_cast<float>(scale * unit * unit * unit);
    if (ties > 0) {
      logits[i] = std::nearbyint(logits[i] * static_cast<float>(ties)) / static_cast<float>(ties);
    }
  }
  return logits;
}

std::vector<float> RandomLogits(size_t vocab, float spread, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(vocab);
  for (float& v : logits) v = normal(random);
  return logits;
}

SampledToken MustSample(Sampler& sampler, std::vector<float> logits, const SamplingParams& params,
                        const TokenHistory& history = {}, uint64_t key = 1, uint64_t position = 0,
                        std::vector<int32_t> eos = {}) {
  auto result = sampler.Sample(logits, params, history, key, position, eos);
  EXPECT_TRUE(result.ok()) << result.status().ToString();
  return result.ok() ? *result : SampledToken{};
}

SamplingParams ParamsOf(const nlohmann::json& j) {
  SamplingParams p;
  p.temperature = j.value("temperature", p.temperature);
  p.top_k = j.value("top_k", p.top_k);
  p.top_p = j.value("top_p", p.top_p);
  p.min_p = j.value("min_p", p.min_p);
  p.repetition_penalty = j.value("repetition_penalty", p.repetition_penalty);
  p.presence_penalty = j.value("presence_penalty", p.presence_penalty);
  p.frequency_penalty = j.value("frequency_penalty", p.frequency_penalty);
  if (j.contains("seed")) p.seed = j["seed"].get<uint64_t>();
  p.min_tokens = j.value("min_tokens", p.min_tokens);
  p.stop_token_ids = j.value("stop_token_ids", p.stop_token_ids);
  p.logprobs = j.value("logprobs", p.logprobs);
  if (j.contains("logit_bias")) {
    for (const auto& pair : j["logit_bias"]) p.logit_bias[pair[0]] = pair[1];
  }
  return p;
}

TEST(Sampler, AgreesWithTheNumpyOracle) {
  std::ifstream file("tests/fixtures/sampler.json");
  ASSERT_TRUE(file.is_open()) << "run from the root of the source tree";
  const nlohmann::json fixture = nlohmann::json::parse(file);
  Sampler sampler;
  int draws = 0;
  for (const auto& c : fixture["cases"]) {
    SCOPED_TRACE(c["name"].get<std::string>());
    const SamplingParams params = ParamsOf(c["params"]);
    const std::vector<float> logits = LogitsOf(c["logit_seed"], c["vocab"], c["scale"], c["ties"]);
    ASSERT_TRUE(ValidateSampling(params, c["vocab"]).ok());
    const std::vector<int32_t> eos = c["eos"];
    TokenHistory history;
    history.AddPrompt(c["prompt"].get<std::vector<int32_t>>());
    for (const int32_t token : c["output"].get<std::vector<int32_t>>()) history.AddOutput(token);

    std::vector<float> scratch = logits;
    const auto distribution = sampler.Distribution(scratch, params, history, eos);
    ASSERT_TRUE(distribution.ok());
    double entropy = 0;
    for (const TokenProbability& t : *distribution) {
      entropy -= t.probability * std::log(t.probability);
    }
    EXPECT_NEAR(entropy, c["entropy"].get<double>(), 1e-5 * (1 + std::abs(entropy)));
    if (c["kept"] >= 0) {
      EXPECT_EQ(distribution->size(), c["kept"].get<size_t>());
    }
    if (c.contains("tokens")) {
      ASSERT_EQ(distribution->size(), c["tokens"].size());
      for (size_t i = 0; i < distribution->size(); ++i) {
        EXPECT_EQ((*distribution)[i].token, c["tokens"][i].get<int32_t>());
        const double expected = c["probabilities"][i];
        EXPECT_NEAR((*distribution)[i].probability, expected, 2e-6 + 1e-5 * expected);
      }
    }
    for (size_t position = 0; position < c["draws"].size(); ++position) {
      const int32_t expected = c["draws"][position];
      const SampledToken sampled = MustSample(sampler, logits, params, history, 77, position, eos);
      if (expected < 0) continue;  // too near a boundary to demand
      ++draws;
      EXPECT_EQ(sampled.token, expected) << position;
      if (params.logprobs < 0) continue;
      EXPECT_NEAR(static_cast<double>(sampled.logprob), c["draw_logprobs"][position].get<double>(),
                  2e-5);
      ASSERT_EQ(sampled.top.size(), c["top_tokens"].size());
      for (size_t i = 0; i < sampled.top.size(); ++i) {
        EXPECT_EQ(sampled.top[i].token, c["top_tokens"][i].get<int32_t>());
        EXPECT_NEAR(static_cast<double>(sampled.top[i].logprob), c["top_logprobs"][i].get<double>(),
                    2e-5);
      }
    }
  }
  EXPECT_GT(draws, 1000);
}

// Pearson's statistic over 40'000 draws against the stated distribution; the bound is the 1 - 1e-4
// quantile by the Wilson-Hilferty approximation. Seeds are fixed, so this cannot flake.
void ExpectDrawsFollowDistribution(const SamplingParams& params, size_t vocab, float spread) {
  Sampler sampler;
  const std::vector<float> logits = RandomLogits(vocab, spread, 5);
  std::vector<float> scratch = logits;
  const auto distribution = sampler.Distribution(scratch, params, {}, {});
  ASSERT_TRUE(distribution.ok());
  std::vector<double> probability(vocab, 0), count(vocab, 0);
  for (const TokenProbability& t : *distribution) {
    probability[static_cast<size_t>(t.token)] = t.probability;
  }
  constexpr int kDraws = 40000;
  for (int i = 0; i < kDraws; ++i) {
    scratch = logits;
    const auto sampled = sampler.Sample(scratch, params, {}, 99, static_cast<uint64_t>(i), {});
    ASSERT_TRUE(sampled.ok());
    count[static_cast<size_t>(sampled->token)] += 1;
  }
  double statistic = 0, rare_expected = 0, rare_count = 0;
  int cells = 0;
  for (size_t t = 0; t < vocab; ++t) {
    if (probability[t] == 0) {
      ASSERT_EQ(count[t], 0) << "drew a token that cannot be drawn: " << t;
    }
    const double expected = probability[t] * kDraws;
    if (expected < 8) {
      rare_expected += expected;
      rare_count += count[t];
      continue;
    }
    statistic += (count[t] - expected) * (count[t] - expected) / expected;
    ++cells;
  }
  if (rare_expected > 0) {
    statistic +=
        (rare_count - rare_expected) * (rare_count - rare_expected) / std::max(rare_expected, 1.0);
    ++cells;
  }
  const double freedom = std::max(1, cells - 1);
  const double z = 3.719;  // 1 - 1e-4
  const double bound =
      freedom * std::pow(1 - 2 / (9 * freedom) + z * std::sqrt(2 / (9 * freedom)), 3);
  EXPECT_LT(statistic, bound) << "with " << freedom << " degrees of freedom";
}

TEST(Sampler, DrawsFollowThePlainDistribution) {
  ExpectDrawsFollowDistribution({}, 1000, 2);
}
TEST(Sampler, DrawsFollowAHotDistribution) {
  ExpectDrawsFollowDistribution({.temperature = 2}, 300, 2);
}
TEST(Sampler, DrawsFollowTopK) {
  ExpectDrawsFollowDistribution({.top_k = 12}, 1000, 2);
}
TEST(Sampler, DrawsFollowTopP) {
  ExpectDrawsFollowDistribution({.top_p = 0.7}, 1000, 2);
}
TEST(Sampler, DrawsFollowMinP) {
  ExpectDrawsFollowDistribution({.min_p = 0.02}, 1000, 2);
}
TEST(Sampler, DrawsOfASeededRequestFollowItsDistribution) {
  ExpectDrawsFollowDistribution({.top_k = 40, .top_p = 0.9, .seed = 3}, 1000, 2);
}

TEST(Sampler, ADrawDependsOnSeedAndPositionOnly) {
  const size_t vocab = 2000;
  struct Job {
    uint64_t key, position;
    SamplingParams params;
    int32_t token = -1;
  };
  std::vector<Job> jobs;
  for (uint64_t i = 0; i < 200; ++i) {
    SamplingParams p;
    if (i % 3 == 0) p.seed = i / 6;
    if (i % 4 == 0) p.top_p = 0.9;
    if (i % 5 == 0) p.top_k = 30;
    if (i % 7 == 0) p.logprobs = 3;
    jobs.push_back({.key = i % 17, .position = i / 3, .params = p});
  }
  const std::vector<float> logits = RandomLogits(vocab, 2, 6);
  Sampler first;
  for (Job& job : jobs) {
    job.token = MustSample(first, logits, job.params, {}, job.key, job.position).token;
  }
  std::mt19937_64 random(7);
  std::shuffle(jobs.begin(), jobs.end(), random);
  Sampler second;
  for (const Job& job : jobs) {
    EXPECT_EQ(MustSample(second, logits, job.params, {}, job.key, job.position).token, job.token);
  }
}

TEST(Sampler, AskingForLogprobsDoesNotChangeTheToken) {
  Sampler sampler;
  for (uint64_t i = 0; i < 100; ++i) {
    const std::vector<float> logits = RandomLogits(777, 3, i);
    TokenHistory history;
    history.AddOutput(static_cast<int32_t>(i));
    SamplingParams p{.top_p = i % 2 ? 0.8 : 1.0, .repetition_penalty = 1.2};
    const int32_t token = MustSample(sampler, logits, p, history, 1, i).token;
    p.logprobs = 5;
    EXPECT_EQ(MustSample(sampler, logits, p, history, 1, i).token, token);
  }
}

TEST(Sampler, ASeedReplacesTheRequestKey) {
  const std::vector<float> logits = RandomLogits(5000, 1, 8);
  Sampler sampler;
  const SamplingParams seeded{.seed = 42};
  int differing = 0;
  for (uint64_t position = 0; position < 50; ++position) {
    EXPECT_EQ(MustSample(sampler, logits, seeded, {}, 1, position).token,
              MustSample(sampler, logits, seeded, {}, 2, position).token);
    differing += MustSample(sampler, logits, {}, {}, 1, position).token !=
                 MustSample(sampler, logits, {}, {}, 2, position).token;
  }
  EXPECT_GT(differing, 40);
  EXPECT_NE(SamplingUniform(7, 0, 0), SamplingUniform(std::nullopt, 7, 0));
}

TEST(Sampler, PhiloxGivesTheReferenceAnswer) {
  // Random123's known answer for counter 0 and key 0: 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
  const uint64_t bits = (uint64_t{0x6627e8d5} << 32) | 0xe169c58d;
  EXPECT_EQ(SamplingUniform(std::nullopt, 0, 0), static_cast<double>(bits >> 11) * 0x1p-53);
}

TEST(Sampler, GreedyTakesTheFirstOfEqualMaxima) {
  Sampler sampler;
  for (const size_t vocab : {1u, 5u, 127u, 128u, 129u, 1000u}) {
    std::vector<float> logits(vocab, 1.5f);
    EXPECT_EQ(MustSample(sampler, logits, {.temperature = 0}).token, 0);
    for (size_t at = 0; at < vocab; at += 37) {
      std::vector<float> one(vocab, -2.0f);
      one[at] = 3;
      one[vocab - 1] = 3;
      EXPECT_EQ(MustSample(sampler, one, {.temperature = 0}).token, static_cast<int32_t>(at));
    }
  }
}

TEST(Sampler, TopPAgreesWithAFullSort) {
  // Shapes that take every path: few and many candidates, flat, peaked, tied, low temperature.
  Sampler sampler;
  for (const size_t vocab : {50u, 3000u, 20000u}) {
    for (const float spread : {0.0f, 0.01f, 1.0f, 6.0f}) {
      for (const double top_p : {1e-9, 0.3, 0.9, 0.99999}) {
        for (const double temperature : {0.1, 2.0}) {
          const SamplingParams params{.temperature = temperature, .top_p = top_p};
          std::vector<float> logits = RandomLogits(vocab, 1, vocab);
          for (float& v : logits) v *= spread;
          std::vector<size_t> order(vocab);
          for (size_t i = 0; i < vocab; ++i) order[i] = i;
          std::stable_sort(order.begin(), order.end(),
                           [&](size_t a, size_t b) { return logits[a] > logits[b]; });
          const double max = static_cast<double>(logits[order[0]]);
          double total = 0, mass = 0;
          const auto weight = [&](size_t i) {
            return std::exp((static_cast<double>(logits[i]) - max) / temperature);
          };
          for (const size_t i : order) total += weight(i);
          size_t kept = 0;
          while (kept < vocab && (kept == 0 || mass < top_p * total)) mass += weight(order[kept++]);
          const auto distribution = sampler.Distribution(logits, params, {}, {});
          ASSERT_TRUE(distribution.ok());
          // Single precision may place the cut a few unlikely tokens off.
          EXPECT_NEAR(static_cast<double>(distribution->size()), static_cast<double>(kept),
                      1 + 2e-4 * static_cast<double>(vocab))
              << vocab << " " << spread << " " << top_p << " " << temperature;
          std::vector<size_t> best(order.begin(), order.begin() + static_cast<ptrdiff_t>(std::min(
                                                                      kept, distribution->size())));
          if (distribution->size() == kept) {
            std::sort(best.begin(), best.end());
            for (size_t i = 0; i < kept; ++i) {
              ASSERT_EQ(static_cast<size_t>((*distribution)[i].token), best[i]);
            }
          }
        }
      }
    }
  }
}

TEST(Sampler, TopKAgreesWithAFullSort) {
  Sampler sampler;
  for (const size_t vocab : {50u, 3000u, 20000u}) {
    for (const size_t k : {1u, 2u, 24u, 49u, 200u, 2999u}) {
      if (k >= vocab) continue;
      const std::vector<float> logits = RandomLogits(vocab, 2, k);
      std::vector<float> sorted = logits, scratch = logits;
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      const auto distribution =
          sampler.Distribution(scratch, {.top_k = static_cast<int32_t>(k)}, {}, {});
      ASSERT_TRUE(distribution.ok());
      const auto expected =
          std::count_if(logits.begin(), logits.end(), [&](float v) { return v >= sorted[k - 1]; });
      EXPECT_EQ(distribution->size(), static_cast<size_t>(expected)) << vocab << " " << k;
    }
  }
}

TEST(Sampler, BadLogitsAreAnErrorNotGarbage) {
  Sampler sampler;
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity}) {
    for (const size_t at : {0u, 130u, 998u, 999u}) {
      for (const SamplingParams& params :
           {SamplingParams{.temperature = 0}, SamplingParams{}, SamplingParams{.top_k = 5},
            SamplingParams{.top_p = 0.5}, SamplingParams{.logprobs = 2}}) {
        std::vector<float> logits = RandomLogits(1000, 1, 9);
        logits[at] = bad;
        EXPECT_EQ(sampler.Sample(logits, params, {}, 1, 1, {}).status().code(),
                  StatusCode::kDataLoss);
      }
    }
  }
  std::vector<float> none(64, -kInfinity), empty;
  EXPECT_EQ(sampler.Sample(none, {}, {}, 1, 1, {}).status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(sampler.Sample(empty, {}, {}, 1, 1, {}).status().code(), StatusCode::kDataLoss);
}

TEST(Sampler, ImpossibleTokensAreNeverDrawn) {
  Sampler sampler;
  std::vector<float> logits(5000, -kInfinity);
  logits[17] = -3;
  logits[4321] = -3.5f;
  for (const SamplingParams& params :
       {SamplingParams{}, SamplingParams{.top_k = 4000}, SamplingParams{.top_p = 0.99},
        SamplingParams{.top_k = 4000, .top_p = 0.99}, SamplingParams{.min_p = 0.001},
        SamplingParams{.temperature = 2, .top_k = 100}}) {
    for (uint64_t position = 0; position < 100; ++position) {
      const int32_t token = MustSample(sampler, logits, params, {}, 3, position).token;
      EXPECT_TRUE(token == 17 || token == 4321) << token;
    }
  }
}

TEST(Sampler, AnEndTokenIsMaskedBelowTheMinimumLength) {
  Sampler sampler;
  std::vector<float> logits(100, 0.0f);
  logits[5] = 50;
  logits[6] = 40;
  SamplingParams params{.temperature = 0, .min_tokens = 2, .stop_token_ids = {6}};
  TokenHistory history;
  history.AddPrompt(std::vector<int32_t>{1, 2, 3});
  EXPECT_EQ(MustSample(sampler, logits, params, history, 1, 0, {5}).token, 0);
  history.AddOutput(7);
  history.AddOutput(7);
  EXPECT_EQ(MustSample(sampler, logits, params, history, 1, 2, {5}).token, 5);
}

TEST(Sampler, AHistoryThatKeepsTheirNumberKnowsNoTokens) {
  TokenHistory tokens;
  TokenHistory number(TokenHistory::Keep::kNumber);
  for (TokenHistory* history : {&tokens, &number}) {
    history->AddPrompt(std::vector<int32_t>{1, 2, 3});
    history->AddOutput(7);
    history->AddOutput(7);
    EXPECT_EQ(history->output_tokens(), 2U);
  }
  EXPECT_EQ(tokens.entries().size(), 4U);
  EXPECT_TRUE(number.entries().empty());
  // Without penalties the same tokens come of it.
  const SamplingParams params{.min_tokens = 3};
  Sampler sampler;
  for (uint64_t position = 0; position < 50; ++position) {
    const std::vector<float> logits = RandomLogits(50, 1, 1);
    EXPECT_EQ(MustSample(sampler, logits, params, tokens, 1, position, {5}).token,
              MustSample(sampler, logits, params, number, 1, position, {5}).token);
  }
}

TEST(Sampler, TokensOutsideTheVocabularyAreIgnored) {
  Sampler sampler;
  TokenHistory history;
  history.AddPrompt(std::vector<int32_t>{-5, 100000});
  const SamplingParams params{.repetition_penalty = 1.5, .min_tokens = 3};
  EXPECT_GE(MustSample(sampler, RandomLogits(50, 1, 1), params, history, 1, 0, {-1, 70}).token, 0);
}

TEST(TokenHistory, CountsPromptAndOutputApart) {
  TokenHistory history;
  history.AddPrompt(std::vector<int32_t>{4, 4, 9});
  history.AddOutput(9);
  history.AddOutput(2);
  history.AddOutput(9);
  ASSERT_EQ(history.entries().size(), 3u);
  EXPECT_EQ(history.output_tokens(), 3u);
  EXPECT_TRUE(history.entries()[0].in_prompt);
  EXPECT_EQ(history.entries()[0].output_count, 0u);
  EXPECT_EQ(history.entries()[1].output_count, 2u);
  EXPECT_FALSE(history.entries()[2].in_prompt);
}

std::string Complaint(const SamplingParams& params) {
  const Status status = ValidateSampling(params, 1000);
  EXPECT_TRUE(status.ok() || status.code() == StatusCode::kInvalidArgument);
  return status.message();
}

TEST(ValidateSampling, AcceptsDefaultsAndTheEndsOfEveryRange) {
  EXPECT_EQ(Complaint({}), "");
  EXPECT_EQ(Complaint({.temperature = 0,
                       .top_k = -1,
                       .top_p = 1,
                       .min_p = 0,
                       .repetition_penalty = 2,
                       .presence_penalty = -2,
                       .frequency_penalty = 2}),
            "");
  EXPECT_EQ(Complaint({.temperature = 2,
                       .top_k = 1,
                       .top_p = 1e-9,
                       .min_p = 1,
                       .max_tokens = 5,
                       .min_tokens = 5,
                       .stop = {"x"},
                       .stop_token_ids = {0, 999},
                       .logprobs = 20,
                       .logit_bias = {{0, -100.0f}, {999, 100.0f}}}),
            "");
}

TEST(ValidateSampling, NamesWhatIsWrongAndWhatIsAccepted) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(Complaint({.temperature = 2.5}), "temperature must be between 0 and 2, got 2.5");
  EXPECT_EQ(Complaint({.temperature = -1}), "temperature must be between 0 and 2, got -1");
  EXPECT_EQ(Complaint({.temperature = nan}), "temperature must be between 0 and 2, got nan");
  EXPECT_EQ(Complaint({.top_p = 0}), "top_p must be above 0 and at most 1, got 0");
  EXPECT_EQ(Complaint({.top_p = 1.1}), "top_p must be above 0 and at most 1, got 1.1");
  EXPECT_EQ(Complaint({.min_p = -0.1}), "min_p must be between 0 and 1, got -0.1");
  EXPECT_EQ(Complaint({.top_k = -2}), "top_k must be -1 or 0 (off) or at least 1, got -2");
  EXPECT_EQ(Complaint({.repetition_penalty = 0}),
            "repetition_penalty must be above 0 and at most 2, got 0");
  EXPECT_EQ(Complaint({.presence_penalty = 3}), "presence_penalty must be between -2 and 2, got 3");
  EXPECT_EQ(Complaint({.frequency_penalty = nan}),
            "frequency_penalty must be between -2 and 2, got nan");
  EXPECT_EQ(Complaint({.logprobs = 21}), "logprobs must be -1 (off) or between 0 and 20, got 21");
  EXPECT_EQ(Complaint({.max_tokens = 4, .min_tokens = 5}),
            "min_tokens must be at most max_tokens (4), got 5");
  EXPECT_EQ(Complaint({.stop = std::vector<std::string>(17, "x")}),
            "stop must hold at most 16 strings, got 17");
  EXPECT_EQ(Complaint({.stop = {""}}), "stop must hold strings of 1 to 256 bytes, got one of 0");
  EXPECT_NE(Complaint({.stop = {std::string(257, 'x')}}), "");
  EXPECT_EQ(Complaint({.stop_token_ids = {1000}}),
            "stop_token_ids must hold token ids in [0, 1000), got 1000");
  EXPECT_EQ(Complaint({.logit_bias = {{-1, 0.0f}}}),
            "logit_bias must hold token ids in [0, 1000), got -1");
  EXPECT_EQ(Complaint({.logit_bias = {{1, 101.0f}}}),
            "logit_bias must be between -100 and 100, got 101");
  std::map<int32_t, float> many;
  for (int32_t i = 0; i < 1025; ++i) many[i] = 0;
  EXPECT_EQ(ValidateSampling({.logit_bias = many}, 5000).message(),
            "logit_bias must hold at most 1024 tokens, got 1025");
}

}  // namespace
}  // namespace weir
