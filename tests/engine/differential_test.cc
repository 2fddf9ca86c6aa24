// Differential fuzz of the real CPU back-end: random arrivals, cancellations, shared prefixes,
// chunk sizes, budgets, backing tiers and policies; each request's tokens must be those of its solo
// run.
//   WEIR_DIFFERENTIAL_TRACES=10000   how many traces (CI: 200)
//   WEIR_DIFFERENTIAL_FIRST=5000     seeds begin here, so that processes can share a long run
//   WEIR_DIFFERENTIAL_SEED=17        one trace only
#include <algorithm>
#include <map>
#include <random>

#include <gtest/gtest.h>

#include "engine/cpu_compute.h"
#include "engine/engine.h"
#include "tests/support/iterations.h"

namespace weir {
namespace {

constexpr uint32_t kContext = 256;

struct Prompt {
  std::vector<int32_t> tokens;
  uint32_t max_tokens = 0;
  std::optional<uint64_t> seed;  // sampled at temperature 0.8; greedy otherwise
  bool operator<(const Prompt& o) const {
    return std::tie(tokens, max_tokens, seed) < std::tie(o.tokens, o.max_tokens, o.seed);
  }
};

GenerationRequest RequestOf(const Prompt& prompt) {
  GenerationRequest request;
  request.prompt_tokens = prompt.tokens;
  request.sampling.temperature = prompt.seed ? 0.8 : 0;
  request.sampling.seed = prompt.seed;
  request.sampling.max_tokens = prompt.max_tokens;
  request.sampling.ignore_eos = true;
  return request;
}

// Solo runs: one request at a time in an engine with all the memory, its own KV, nothing cached.
class Solo {
 public:
  explicit Solo(const std::string& model) {
    EngineOptions options;
    options.device = DeviceKind::kCpu;
    options.model = model;
    options.threads = 1;
    options.max_model_len = kContext;
    options.max_num_seqs = 1;
    options.policy = "resident";
    options.enable_prefix_caching = false;
    engine_ = Engine::Open(options).value();
  }

  const std::vector<int32_t>& Tokens(const Prompt& prompt) {
    const auto it = known_.find(prompt);
    if (it != known_.end()) return it->second;
    std::vector<int32_t>& tokens = known_[prompt];
    EXPECT_TRUE(engine_->Submit(RequestOf(prompt)).ok());
    while (*engine_->Step()) {
      for (const auto& out : engine_->TakeOutputs()) {
        for (const SampledToken& t : out.tokens) tokens.push_back(t.token);
      }
    }
    return tokens;
  }

 private:
  std::unique_ptr<Engine> engine_;
  std::map<Prompt, std::vector<int32_t>> known_;
};

// What must have happened at least once over all traces, or the test shows nothing.
struct Coverage {
  uint64_t border_moves = 0, preemptions = 0, prefix_hits = 0, cancelled = 0, blocks_moved = 0,
           bytes_streamed = 0, steps_in_place = 0;
};

class Trace {
 public:
  Trace(uint64_t seed, const std::string& model) : rng_(seed) {
    options_.model = model;
    options_.device = DeviceKind::kCpu;
    options_.threads = static_cast<uint32_t>(1 + Below(2));
    options_.max_model_len = kContext;
    options_.max_num_seqs = static_cast<uint32_t>(1 + Below(8));
    options_.max_num_batched_tokens = static_cast<uint32_t>(1 + Below(64));
    options_.enable_prefix_caching = Below(5) != 0;
    options_.granule = 4096U << Below(2);
    options_.poison_freed = true;
    options_.verify_stripes = Below(2) == 0;
    options_.backing = Below(10) == 0 ? BackingChoice::kNvme : BackingChoice::kHost;
    constexpr const char* kPolicies[] = {"resident",
                                         "tide",
                                         "tide{hold_steps=1; settle_steps=1; min_gain=0}",
                                         "stress_random",
                                         "stress_random{hold_steps=1; seed=3}",
                                         "oneiros{hold_steps=1; cap=1}",
                                         "zero-inference",
                                         "static{fraction=0.6; placement=in_place}"};
    options_.policy = kPolicies[Below(std::size(kPolicies))];
  }

  void Run(Solo& solo, Coverage* coverage) {
    OpenWithBudget();
    ASSERT_TRUE(engine_);
    MakePrompts();
    const uint64_t pointers = engine_->compute().RecordedPointersDigest();
    std::map<RequestId, size_t> index;
    std::vector<std::vector<int32_t>> tokens(prompts_.size());
    std::vector<FinishReason> reasons(prompts_.size(), FinishReason::kNone);
    size_t next = 0;
    for (uint64_t step = 0;; ++step) {
      while (next < prompts_.size() && Below(3) == 0) {
        const auto id = engine_->Submit(RequestOf(prompts_[next]));
        if (id.ok()) {
          index[*id] = next;
        } else {
          ASSERT_EQ(id.status().code(), StatusCode::kNoMemory) << id.status().ToString();
        }
        ++next;
      }
      if (!index.empty() && Below(25) == 0) {
        const auto it = std::next(index.begin(), static_cast<std::ptrdiff_t>(Below(index.size())));
        if (reasons[it->second] == FinishReason::kNone) {
          ASSERT_TRUE(engine_->Cancel(it->first).ok());
          ++coverage->cancelled;
        }
      }
      const auto more = engine_->Step();
      ASSERT_TRUE(more.ok()) << more.status().ToString();
      for (const GenerationOutput& out : engine_->TakeOutputs()) {
        const size_t i = index.at(out.id);
        for (const SampledToken& t : out.tokens) tokens[i].push_back(t.token);
        if (!out.finished) continue;
        reasons[i] = out.reason;
        if (out.reason == FinishReason::kError) {
          ASSERT_EQ(out.error.code(), StatusCode::kNoMemory) << out.error.ToString();
        }
      }
      const EvictionTarget& away = engine_->core().memory().weights().plan().target();
      if (away.placement == Placement::kInPlace && !away.empty()) ++coverage->steps_in_place;
      if (step % 8 == 0) {
        const Status sound = engine_->core().CheckIntegrity();
        ASSERT_TRUE(sound.ok()) << sound.ToString();
      }
      if (!*more && next == prompts_.size()) break;
    }
    const Status sound = engine_->core().CheckIntegrity();
    ASSERT_TRUE(sound.ok()) << sound.ToString();
    ASSERT_EQ(engine_->compute().RecordedPointersDigest(), pointers);
    ASSERT_EQ(engine_->compute().recordings(), 1U);
    for (const auto& [id, i] : index) {
      ASSERT_NE(reasons[i], FinishReason::kNone);
      const std::vector<int32_t>& want = solo.Tokens(prompts_[i]);
      ASSERT_LE(tokens[i].size(), want.size());
      ASSERT_TRUE(std::equal(tokens[i].begin(), tokens[i].end(), want.begin()))
          << "request " << i << " under " << options_.policy << " differs from its solo run";
      if (reasons[i] == FinishReason::kLength) {
        ASSERT_EQ(tokens[i].size(), want.size());
      }
    }
    coverage->border_moves += engine_->core().stats().border_moves;
    coverage->preemptions += engine_->core().scheduler_stats().preemptions;
    coverage->prefix_hits += engine_->core().memory().blocks().prefix_stats().hit_tokens;
    coverage->blocks_moved += engine_->core().memory().blocks_moved();
    coverage->bytes_streamed += engine_->core().memory().weights().stats().bytes_copied;
  }

 private:
  uint64_t Below(uint64_t n) { return rng_() % n; }

  // 100, 50 or 25 % of what the engine would like, or the least that runs.
  void OpenWithBudget() {
    constexpr uint64_t kPercent[] = {100, 50, 25, 0};
    const uint64_t percent = kPercent[Below(4)];
    options_.hbm_budget = 0;
    auto whole = Engine::Open(options_);
    ASSERT_TRUE(whole.ok()) << whole.status().ToString();
    uint64_t budget = (*whole)->info().budget_bytes * percent / 100;
    whole = NoMemory("closed");
    for (;; budget += 32 * 1024) {
      options_.hbm_budget = std::max<uint64_t>(budget, 1);
      auto engine = Engine::Open(options_);
      if (engine.ok()) {
        engine_ = std::move(*engine);
        return;
      }
      ASSERT_EQ(engine.status().code(), StatusCode::kNoMemory) << engine.status().ToString();
    }
  }

  void MakePrompts() {
    const auto vocab = engine_->model().vocab_size;
    const auto token = [&] { return static_cast<int32_t>(Below(vocab)); };
    std::vector<int32_t> shared(Below(80));
    for (int32_t& t : shared) t = token();
    const uint64_t n = 2 + Below(10);
    for (uint64_t i = 0; i < n; ++i) {
      Prompt p;
      if (Below(3) != 0) p.tokens = shared;
      for (uint64_t t = 0, own = 1 + Below(40); t < own; ++t) p.tokens.push_back(token());
      p.max_tokens = static_cast<uint32_t>(1 + Below(32));
      if (Below(3) == 0) p.seed = Below(1000);
      prompts_.push_back(std::move(p));
    }
  }

  std::mt19937_64 rng_;
  EngineOptions options_;
  std::unique_ptr<Engine> engine_;
  std::vector<Prompt> prompts_;
};

void RunTraces(const std::string& model, uint64_t first_seed) {
  Solo solo(model);
  Coverage coverage;
  const uint64_t only = testing::Iterations("WEIR_DIFFERENTIAL_SEED", 0);
  const uint64_t traces = testing::Iterations("WEIR_DIFFERENTIAL_TRACES", 200) / 2;
  const uint64_t first = testing::Iterations("WEIR_DIFFERENTIAL_FIRST", 0);
  for (uint64_t i = 0; i < (only != 0 ? 1 : traces); ++i) {
    const uint64_t seed = only != 0 ? only : first_seed + first + i;
    SCOPED_TRACE("seed " + std::to_string(seed));
    Trace(seed, model).Run(solo, &coverage);
    if (::testing::Test::HasFatalFailure()) return;
  }
  if (only != 0) return;
  EXPECT_GT(coverage.border_moves, 0U);
  EXPECT_GT(coverage.preemptions, 0U);
  EXPECT_GT(coverage.prefix_hits, 0U);
  EXPECT_GT(coverage.cancelled, 0U);
  EXPECT_GT(coverage.bytes_streamed, 0U);
  EXPECT_GT(coverage.steps_in_place, 0U);
  std::printf(
      "%lu traces: %lu border moves, %lu preemptions, %lu tokens from the prefix cache, "
      "%lu blocks moved, %lu cancelled, %.1f MB streamed, %lu steps read weights in place\n",
      traces, coverage.border_moves, coverage.preemptions, coverage.prefix_hits,
      coverage.blocks_moved, coverage.cancelled, static_cast<double>(coverage.bytes_streamed) / 1e6,
      coverage.steps_in_place);
}

// Two shapes with more layers than ring slots: GQA 3 with tied embeddings, and every kind of bias.
TEST(Differential, SmolLm2ShapeEqualsItsSoloRuns) {
  RunTraces("tests/fixtures/models/smollm2_gqa3", 1);
}
TEST(Differential, BiasedLlamaShapeEqualsItsSoloRuns) {
  RunTraces("tests/fixtures/models/llama_biases", 1'000'000);
}

}  // namespace
}  // namespace weir
