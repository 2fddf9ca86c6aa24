// The CUDA back-end against Hugging Face transformers on the same bf16 weights: the fixtures
// (tests/oracle/model_oracle.py, float32, tiny shapes) and, where WEIR_CUDA_ORACLE names a folder
// that tests/oracle/cuda_oracle.py wrote, models of real shapes in bf16 and float32. Skipped, with
// the reason, where there is no GPU.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "engine/cuda_compute.h"
#include "engine/engine.h"
#include "kernels/cuda/skinny_gemm.h"
#include "tests/support/compute_probe.h"
#include "tests/support/cuda_devices.h"

namespace weir {
namespace {

using nlohmann::json;

constexpr char kFixtures[] = "tests/fixtures/models";

// What two correct computations of the same logits may differ by. |logits|: ||a - b|| / ||b||.
// |tie|: a gap between the two best logits, relative to the largest, that rounding may turn around.
struct Tolerance {
  double logits = 0;
  float tie = 0;
};

// Real shapes, both sides in bf16: the acceptance bound. A random model's largest logit is about
// four times the RMS of all, so at half this error the difference of two logits has a standard
// deviation of 1e-2 * sqrt(2) / 4 = 3.5e-3 of the largest: a tie is three of them.
constexpr Tolerance kRealShapes{.logits = 2e-2, .tie = 1e-2F};

// The fixtures: bf16 here, float32 there. Rounding a value to bf16 costs 2^-9 of it; in a row of 64
// numbers that passes a dozen roundings, and in random models with sharp attention, little of that
// averages out. transformers itself in bf16 on the CPU is off from these expectations by up to
// 3.0e-2 (qwen2_gqa7, 40 tokens; the median over all prompts is 1.4e-2), so twice its worst is
// allowed. At 70 tokens another first token gives 0.16 or more, rope frequencies off by a tenth
// 0.38, scores off by a tenth 0.07. What hides below is for the CPU back-end's tests, bound by
// 1e-3, and for the real shapes. The largest logit is about 2.7 times the RMS here: three standard
// deviations of a difference at 3.0e-2 are 3 * sqrt(2) * 3.0e-2 / 2.7 = 4.7e-2 of it.
constexpr Tolerance kTinyShapes{.logits = 6e-2, .tie = 5e-2F};

// Against float32, the error may be so many times that of transformers in bf16 on the same prompt.
// Both are sums of roundings with the same variance; over thousands of logits their sizes are
// close.
constexpr double kOfTransformersOwnError = 2;

struct Case {
  std::string name;
  std::string model;
  bool compress_weights = false;
};

bool CanCompress() {
  cuda::SkinnyGemm products;
  return testing::CudaDevices() > 0 && cuda::SkinnyGemm::Create(&products).ok();
}

void AddCases(const std::string& folder, const std::string& prefix, std::vector<Case>* cases) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string model = entry.path().string();
    if (std::filesystem::exists(model + "/config.json")) {
      cases->push_back({prefix + entry.path().filename().string(), model});
    }
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  AddCases(kFixtures, "", &cases);
  if (const char* oracle = std::getenv("WEIR_CUDA_ORACLE"); oracle != nullptr) {
    std::vector<Case> real;
    AddCases(oracle, "real_", &real);
    for (Case& each : real) {
      cases.push_back(each);
      if (!CanCompress()) continue;
      cases.push_back({each.name + "_compressed", each.model, true});
    }
  }
  std::sort(cases.begin(), cases.end(),
            [](const Case& a, const Case& b) { return a.name < b.name; });
  return cases;
}

// What became of a request.
struct Served {
  std::vector<int32_t> tokens;
  uint32_t cached_tokens = 0;
};

class CudaTransformersTest : public ::testing::TestWithParam<Case> {
 protected:
  struct Prompt {
    std::vector<int32_t> tokens, greedy;
    std::vector<float> gaps;          // of the two best logits at each greedy token
    std::vector<float> logits;        // of the last token
    std::vector<float> logits_f32;    // real shapes only, as all below
    std::vector<float> final_logits;  // that the last greedy token was taken from
    std::vector<float> final_logits_f32;
    std::vector<float>
        margins_f32;  // by how much the greedy token leads in float32, or less than 0
    float largest = 0;
  };

  void SetUp() override {
    if (testing::CudaDevices() == 0) GTEST_SKIP() << "no CUDA device";
    std::ifstream in(GetParam().model + "/expected.json");
    ASSERT_TRUE(in) << GetParam().model;
    const json expected = json::parse(in);
    const auto floats = [](const json& prompt, const char* key) {
      return prompt.contains(key) ? prompt[key].get<std::vector<float>>() : std::vector<float>();
    };
    for (const json& p : expected["prompts"]) {
      Prompt prompt;
      prompt.tokens = p["tokens"].get<std::vector<int32_t>>();
      prompt.greedy = p["greedy_tokens"].get<std::vector<int32_t>>();
      prompt.gaps = floats(p, "greedy_gaps");
      prompt.logits = floats(p, "last_logits");
      prompt.logits_f32 = floats(p, "last_logits_f32");
      prompt.final_logits = floats(p, "final_logits");
      prompt.final_logits_f32 = floats(p, "final_logits_f32");
      prompt.margins_f32 = floats(p, "greedy_margins_f32");
      prompt.largest = LargestMagnitude(prompt.logits);
      real_shape_ = !prompt.logits_f32.empty();
      prompts_.push_back(std::move(prompt));
    }
    tolerance_ = real_shape_ ? kRealShapes : kTinyShapes;
    options_.model = GetParam().model;
    options_.device = DeviceKind::kCuda;
    options_.compress_weights = GetParam().compress_weights;
    options_.policy = "resident";
    options_.backing = BackingChoice::kNone;
    options_.kv_cache_bytes = (real_shape_ ? 2048 : 64) * kMiB;
    options_.max_num_seqs = 8;
    options_.max_num_batched_tokens = static_cast<uint32_t>(AllPromptTokens());
    if (real_shape_) options_.max_model_len = 2048;
  }

  size_t AllPromptTokens() const {
    size_t n = 0;
    for (const Prompt& p : prompts_) n += p.tokens.size();
    return n;
  }

  // Algorithms are timed once a shape, so that all tests of a case compute with the same ones.
  void Open() {
    static std::map<std::string, std::string> chosen;
    std::string& algorithms =
        chosen[GetParam().name + " " + std::to_string(options_.max_num_batched_tokens)];
    options_.gemm_algorithms = algorithms;
    auto engine = Engine::Open(options_);
    ASSERT_TRUE(engine.ok()) << engine.status().ToString();
    engine_ = std::move(*engine);
    if (const auto* cuda = dynamic_cast<CudaCompute*>(&engine_->compute()); cuda != nullptr) {
      algorithms = cuda->algorithms();
    }
  }

  // Every prompt, continued greedily, all at once.
  std::vector<Served> Generate() {
    std::map<RequestId, size_t> index;
    for (size_t p = 0; p < prompts_.size(); ++p) {
      GenerationRequest request;
      request.prompt_tokens = prompts_[p].tokens;
      request.sampling.temperature = 0;
      request.sampling.max_tokens = static_cast<uint32_t>(prompts_[p].greedy.size());
      request.sampling.ignore_eos = true;
      const auto id = engine_->Submit(std::move(request));
      EXPECT_TRUE(id.ok()) << id.status().ToString();
      if (id.ok()) index[*id] = p;
    }
    std::vector<Served> served(prompts_.size());
    for (;;) {
      const auto more = engine_->Step();
      EXPECT_TRUE(more.ok()) << more.status().ToString();
      for (const GenerationOutput& out : engine_->TakeOutputs()) {
        EXPECT_TRUE(out.error.ok()) << out.error.ToString();
        Served& s = served[index.at(out.id)];
        s.cached_tokens = out.cached_tokens;
        for (const SampledToken& t : out.tokens) s.tokens.push_back(t.token);
      }
      if (!more.ok() || !*more) return served;
    }
  }

  // How close the best two are at greedy token |i|. The logits of transformers in bf16 are off by
  // about 1e-2 themselves, so that its gap may be wide where that of the exact logits is not.
  static float TieGap(const Prompt& prompt, size_t i) {
    const float gap = prompt.gaps[i];
    return prompt.margins_f32.empty() ? gap : std::min(gap, prompt.margins_f32[i]);
  }

  // Up to the first difference, which must be a tie: after one the continuations differ.
  void ExpectGreedy(const std::vector<Served>& served, const char* what) const {
    size_t compared = 0, all = 0;
    for (size_t p = 0; p < prompts_.size(); ++p) {
      const Prompt& prompt = prompts_[p];
      ASSERT_EQ(served[p].tokens.size(), prompt.greedy.size()) << what << ", prompt " << p;
      const auto [want, have] =
          std::mismatch(prompt.greedy.begin(), prompt.greedy.end(), served[p].tokens.begin());
      const auto equal = static_cast<size_t>(want - prompt.greedy.begin());
      compared += equal;
      all += prompt.greedy.size();
      if (equal == prompt.greedy.size()) continue;
      EXPECT_LT(TieGap(prompt, equal), tolerance_.tie * prompt.largest)
          << what << ", prompt of " << prompt.tokens.size() << ", token " << equal;
    }
    Report("%s: %zu of %zu greedy tokens up to the first tie", what, compared, all);
  }

  // Not by more than rounding, and the same best token unless the two best are nearly equal.
  void ExpectSame(std::span<const float> have, std::span<const float> want,
                  const std::string& what) const {
    ASSERT_EQ(have.size(), want.size()) << what;
    const double error = RelativeError(have, want);
    EXPECT_LE(error, tolerance_.logits) << what;  // not when it is NaN
    const auto a = static_cast<size_t>(Argmax(want)), b = static_cast<size_t>(Argmax(have));
    EXPECT_LE(want[a] - want[b], a == b ? 0 : tolerance_.tie * LargestMagnitude(want)) << what;
    Report("%s: error %.2e", what.c_str(), error);
  }

  // Of transformers: |want| as it comes, |f32| in float32 where given.
  void ExpectClose(std::span<const float> have, std::span<const float> want,
                   std::span<const float> f32, const std::string& what) const {
    ASSERT_EQ(have.size(), want.size()) << what;
    const double error = RelativeError(have, want);
    EXPECT_LE(error, tolerance_.logits) << what;
    if (f32.empty()) {
      Report("%s: error %.2e of float32", what.c_str(), error);
      return;
    }
    const double ours = RelativeError(have, f32), theirs = RelativeError(want, f32);
    EXPECT_LE(ours, kOfTransformersOwnError * theirs) << what;
    Report("%s: error %.2e of bf16, %.2e of float32 (transformers' own: %.2e)", what.c_str(), error,
           ours, theirs);
  }

  template <typename... Args>
  static void Report(const char* format, Args... args) {
    std::printf("  %s: ", GetParam().name.c_str());
    std::printf(format, args...);
    std::printf("\n");
  }

  static std::string Named(const Prompt& prompt, const std::string& what) {
    return std::to_string(prompt.tokens.size()) + " tokens, " + what;
  }

  EngineOptions options_;
  Tolerance tolerance_;
  bool real_shape_ = false;
  std::vector<Prompt> prompts_;
  std::unique_ptr<Engine> engine_;
};

TEST_P(CudaTransformersTest, GreedyTokensAreEqualButForTies) {
  options_.max_num_batched_tokens = real_shape_ ? 256 : 48;  // the longer prompts come in chunks
  ASSERT_NO_FATAL_FAILURE(Open());
  ExpectGreedy(Generate(), "in chunks");
  const std::vector<Served> again = Generate();
  ExpectGreedy(again, "after prefix hits");
  for (size_t p = 0; p < prompts_.size(); ++p) {
    const auto n = static_cast<uint32_t>(prompts_[p].tokens.size());
    EXPECT_EQ(again[p].cached_tokens, (n - 1) / kBlockTokens * kBlockTokens);
  }
}

TEST_P(CudaTransformersTest, LogitsAreClose) {
  ASSERT_NO_FATAL_FAILURE(Open());
  for (const Prompt& prompt : prompts_) {
    ComputeProbe probe(*engine_);
    const auto logits =
        probe.Prefill(probe.Add(prompt.tokens), static_cast<uint32_t>(prompt.tokens.size()));
    ASSERT_TRUE(logits.ok()) << logits.status().ToString();
    ExpectClose(*logits, prompt.logits, prompt.logits_f32, Named(prompt, "last token"));
  }
}

// The continuation of transformers is fed, so that a tie hides nothing behind it.
TEST_P(CudaTransformersTest, EveryTokenOfTheContinuationIsTheBestButForTies) {
  ASSERT_NO_FATAL_FAILURE(Open());
  ComputeProbe probe(*engine_);
  std::vector<ComputeProbe::Part> parts;
  for (const Prompt& prompt : prompts_) {
    ComputeProbe::Sequence& sequence = probe.Add(prompt.tokens);
    parts.push_back({&sequence, sequence.left(), nullptr});
  }
  ComputeProbe::Outcome outcome;
  size_t ties = 0;
  const size_t steps = prompts_[0].greedy.size();
  for (size_t i = 0; i < steps; ++i) {
    auto stepped = probe.Step(parts);
    ASSERT_TRUE(stepped.ok()) << stepped.status().ToString();
    outcome = std::move(*stepped);
    for (size_t p = 0; p < prompts_.size(); ++p) {
      const Prompt& prompt = prompts_[p];
      parts[p].sequence->tokens.push_back(prompt.greedy[i]);
      parts[p].rows = 1;
      if (Argmax(outcome.logits[p]) == prompt.greedy[i]) continue;
      ++ties;
      EXPECT_LT(TieGap(prompt, i), tolerance_.tie * prompt.largest)
          << "prompt of " << prompt.tokens.size() << ", token " << i;
    }
  }
  Report("continuations: %zu of %zu tokens differ", ties, steps * prompts_.size());
  for (size_t p = 0; p < prompts_.size() && real_shape_; ++p) {
    ExpectClose(outcome.logits[p], prompts_[p].final_logits, prompts_[p].final_logits_f32,
                Named(prompts_[p], "last token of the continuation"));
  }
}

TEST_P(CudaTransformersTest, LogitsDoNotDependOnChunksBatchOrPrefixHitsBeyondRounding) {
  ASSERT_NO_FATAL_FAILURE(Open());
  std::vector<std::vector<float>> alone;
  for (const Prompt& prompt : prompts_) {
    const auto n = static_cast<uint32_t>(prompt.tokens.size());
    for (const uint32_t chunk : {n, 16U, 48U}) {
      if (chunk > n) continue;
      ComputeProbe probe(*engine_);
      auto logits = probe.Prefill(probe.Add(prompt.tokens), chunk);
      ASSERT_TRUE(logits.ok()) << logits.status().ToString();
      if (chunk == n) {
        alone.push_back(std::move(*logits));
      } else {
        ExpectSame(*logits, alone.back(), Named(prompt, "chunks of " + std::to_string(chunk)));
      }
    }
  }
  {
    ComputeProbe probe(*engine_);
    std::vector<ComputeProbe::Part> parts;
    for (const Prompt& prompt : prompts_) {
      ComputeProbe::Sequence& sequence = probe.Add(prompt.tokens);
      parts.push_back({&sequence, sequence.left(), nullptr});
    }
    const auto together = probe.Step(parts);
    ASSERT_TRUE(together.ok()) << together.status().ToString();
    for (size_t p = 0; p < prompts_.size(); ++p) {
      ExpectSame(together->logits[p], alone[p], Named(prompts_[p], "among the others"));
    }
  }
  // The engine leaves the prompts in its index; the probe goes on from what it finds there.
  (void)Generate();
  for (size_t p = 0; p < prompts_.size(); ++p) {
    const std::vector<int32_t>& tokens = prompts_[p].tokens;
    const auto most = static_cast<uint32_t>((tokens.size() - 1) / kBlockTokens);
    if (most == 0) continue;
    ComputeProbe probe(*engine_);
    ComputeProbe::Sequence& sequence = probe.Add(tokens);
    std::vector<PrefixHash> hashes;
    sequence.blocks =
        engine_->core().memory().blocks().MatchAndAcquire(PrefixRoot(0), tokens, most, &hashes);
    ASSERT_EQ(sequence.blocks.size(), most);
    sequence.computed = most * kBlockTokens;
    const auto logits = probe.Prefill(sequence, sequence.left());
    ASSERT_TRUE(logits.ok()) << logits.status().ToString();
    ExpectSame(*logits, alone[p], Named(prompts_[p], "prefix hit"));
  }
  const Status sound = engine_->core().CheckIntegrity();
  EXPECT_TRUE(sound.ok()) << sound.ToString();
}

TEST_P(CudaTransformersTest, LogprobsAreThoseOfTheLogits) {
  // Of the device's float arithmetic; a log-probability is about -10 here.
  constexpr double kLogprobTolerance = 1e-4;
  ASSERT_NO_FATAL_FAILURE(Open());
  ComputeProbe probe(*engine_);
  std::vector<SamplingParams> params(prompts_.size());
  std::vector<ComputeProbe::Part> parts;
  for (size_t p = 0; p < prompts_.size(); ++p) {
    params[p].temperature = p % 2 == 0 ? 0 : 0.8;
    params[p].seed = p;
    params[p].logprobs = p % 3 == 2 ? 0 : 20 - static_cast<int32_t>(p);
    ComputeProbe::Sequence& sequence = probe.Add(prompts_[p].tokens);
    parts.push_back({&sequence, sequence.left(), &params[p]});
  }
  const auto outcome = probe.Step(parts);
  ASSERT_TRUE(outcome.ok()) << outcome.status().ToString();
  ASSERT_EQ(outcome->samples.size(), prompts_.size());
  for (size_t p = 0; p < prompts_.size(); ++p) {
    SCOPED_TRACE(p);
    const std::vector<float>& logits = outcome->logits[p];
    const SampledToken& sample = outcome->samples[p];
    double sum = 0;
    const double largest = *std::max_element(logits.begin(), logits.end());
    for (const float v : logits) sum += std::exp(double{v} - largest);
    const auto logprob = [&](int32_t token) {
      return double{logits.at(static_cast<size_t>(token))} - largest - std::log(sum);
    };
    if (params[p].greedy()) {
      EXPECT_EQ(sample.token, Argmax(logits));
    }
    EXPECT_NEAR(sample.logprob, logprob(sample.token), kLogprobTolerance);
    std::vector<int32_t> order(logits.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    const auto n = static_cast<size_t>(params[p].logprobs);
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(n), order.end(),
                      [&](int32_t a, int32_t b) {
                        const float x = logits[static_cast<size_t>(a)];
                        const float y = logits[static_cast<size_t>(b)];
                        return x != y ? x > y : a < b;
                      });
    ASSERT_EQ(sample.top.size(), n);
    for (size_t i = 0; i < n; ++i) {
      EXPECT_EQ(sample.top[i].token, order[i]) << i;
      EXPECT_NEAR(sample.top[i].logprob, logprob(order[i]), kLogprobTolerance) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, CudaTransformersTest, ::testing::ValuesIn(Cases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace weir
