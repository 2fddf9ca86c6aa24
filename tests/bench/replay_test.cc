// A trace, the workload read from it, and that workload run again.
#include <cmath>

#include <gtest/gtest.h>
#include <unistd.h>

#include "bench/replay/recorded_workload.h"
#include "bench/replay/simulation.h"
#include "tests/tools/trace_builder.h"
#include "tools/trace/check.h"
#include "tools/trace/summary.h"

namespace weir::replay {
namespace {

using trace_tool::MemorySource;
using trace_tool::TraceBuilder;
using trace_tool::TraceError;
using trace_tool::TraceEvent;
using trace_tool::TraceReader;
using T = TraceType;

// 16 requests, 10 ms apart: prompts of 64 tokens, outputs of 20 of at most 40; every odd one shares
// 32 tokens with the one before it. Steps of 1 ms + 50 us a token + 1 us a token of context.
struct Recorded {
  TraceBuilder builder;
  std::string file;
  std::unique_ptr<TraceReader> reader;

  explicit Recorded(bool whole = true) {
    builder.Pool().Load();
    for (uint64_t i = 0; i < 16; ++i) {
      builder.At(100'000'000 + i * 10'000'000);
      Request(RequestEvent::kAdded, i, 0, 0);
      const bool shares = i % 2 == 1;
      if (shares) builder.Add(T::kKvHit, 0, {i, 2, 0, 100 * (i - 1), 2});
      builder.Add(T::kKvAlloc, 0, {i, 100 * i, 6});
      Request(RequestEvent::kScheduled, i, shares ? 32 : 0, 0);
      for (uint64_t s = 0; s < 4; ++s) {
        const uint64_t tokens = 1 + 7 * s, context = 64 + 100 * s * s;
        const uint64_t ns = 1'000'000 + 50'000 * tokens + 1'000 * context;
        builder.Add(T::kStepBegin, 0, {i * 4 + s, 1, tokens, 0, context});
        builder.At(builder.now() + ns - 1000);
        builder.Add(T::kStepEnd, 0, {i * 4 + s, 1, tokens, ns, 0, 0});
      }
      Request(RequestEvent::kFirstToken, i, 0, 1);
      if (whole || i < 15) Request(RequestEvent::kFinished, i, 0, 20);
      builder.Add(T::kKvFree, 0, {i, 100 * i, 6, 6});
      builder.Add(T::kQueue, 0, {0, 0, 0, 6, 2, 8});
    }
    Read();
  }
  void Request(RequestEvent event, uint64_t id, uint64_t cached, uint64_t output) {
    builder.Add(T::kRequest, static_cast<uint8_t>(event), {id, 64, cached, output, 0, 40});
  }
  // Every prompt begins with the same |blocks| blocks, shared or not.
  void Fingerprint(uint64_t blocks) {
    std::vector<TraceRecord> with;
    for (const TraceRecord& r : builder.records()) {
      with.push_back(r);
      if (r.type != static_cast<uint16_t>(T::kRequest) ||
          r.cause != static_cast<uint8_t>(RequestEvent::kAdded)) {
        continue;
      }
      TraceRecord prints = r;
      prints.type = static_cast<uint16_t>(T::kPromptBlocks);
      prints.args[1] = 0;
      for (uint64_t b = 0; b < 4; ++b) {
        prints.args[2 + b] = b < blocks ? 1000 + b : 5000 + 10 * r.args[0] + b;
      }
      with.push_back(prints);
    }
    builder.records() = std::move(with);
    Read();
  }
  void Read() {
    file = builder.File();
    reader = std::make_unique<TraceReader>(
        MemorySource(std::as_bytes(std::span(file.data(), file.size()))));
  }
};

TEST(RecordedWorkload, HasArrivalsLengthsCostsAndSharedPrefixes) {
  Recorded recorded;
  const RecordedWorkload w = RecordedWorkload::FromTrace(*recorded.reader);
  ASSERT_EQ(w.requests.size(), 16U);
  EXPECT_EQ(w.requests[3].added_ns - w.requests[2].added_ns, 10'000'000U);
  EXPECT_NEAR(w.fit.fixed_ns, 1e6, 1e3);
  EXPECT_NEAR(w.fit.per_token_ns, 5e4, 50);
  EXPECT_NEAR(w.fit.per_context_ns, 1e3, 5);
  EXPECT_LT(w.fit.error, 1e-3);
  for (size_t i = 0; i < w.requests.size(); ++i) {
    const RecordedRequest& q = w.requests[i];
    ASSERT_EQ(q.prompt.size(), 64U);
    EXPECT_EQ(q.output_tokens, 20U);
    EXPECT_EQ(q.max_tokens, 40U);
    if (i == 0) continue;
    size_t equal = 0;
    while (equal < 64 && q.prompt[equal] == w.requests[i - 1].prompt[equal]) ++equal;
    if (i % 2 == 1) {
      EXPECT_EQ(q.prefix_of, static_cast<int64_t>(i - 1));
      EXPECT_GE(equal, 32U);
      EXPECT_LT(equal, 40U);
    } else {
      EXPECT_LT(equal, 8U);
    }
  }
}

TEST(RecordedWorkload, PromptsThatBeganAlikeDoSoThoughTheCacheHadForgottenIt) {
  Recorded recorded;
  recorded.Fingerprint(3);
  const RecordedWorkload w = RecordedWorkload::FromTrace(*recorded.reader);
  for (size_t i = 1; i < w.requests.size(); ++i) {
    EXPECT_EQ(w.requests[i].prefix_of, 0);
    EXPECT_EQ(w.requests[i].shared_tokens, 48U);
    EXPECT_TRUE(std::equal(w.requests[i].prompt.begin(), w.requests[i].prompt.begin() + 48,
                           w.requests[0].prompt.begin()));
  }
}

TEST(RecordedWorkload, APromptThatContinuesAnAnswerKnowsTheAnswer) {
  Recorded recorded;
  recorded.builder.At(recorded.builder.now() + 1'000'000);
  recorded.builder.Add(T::kRequest, static_cast<uint8_t>(RequestEvent::kAdded), {99, 90, 0, 0, 0});
  recorded.builder.Add(T::kKvHit, 0, {99, 5, 0, 1500, 5});
  recorded.builder.Add(T::kRequest, static_cast<uint8_t>(RequestEvent::kScheduled),
                       {99, 90, 80, 0, 0});
  recorded.builder.Add(T::kRequest, static_cast<uint8_t>(RequestEvent::kFinished),
                       {99, 90, 80, 5, 0});
  recorded.Read();
  const RecordedWorkload w = RecordedWorkload::FromTrace(*recorded.reader);
  const RecordedRequest& q = w.requests.back();
  ASSERT_EQ(q.prefix_of, 15);
  EXPECT_TRUE(std::equal(q.prompt.begin(), q.prompt.begin() + 64, w.requests[15].prompt.begin()));
  for (size_t p = 64; p < 80; ++p) EXPECT_EQ(q.prompt[p], NextToken(q.prompt[p - 1], p - 1));
}

TEST(RecordedWorkload, AnUnfinishedRequestGoesToItsLimitAndWhatIsNotToldIsLeftOut) {
  Recorded recorded(/*whole=*/false);
  const RecordedWorkload w = RecordedWorkload::FromTrace(*recorded.reader);
  EXPECT_EQ(w.requests.back().output_tokens, 40U);
  for (TraceRecord& r : recorded.builder.records()) {
    if (r.type == static_cast<uint16_t>(T::kRequest)) r.args[5] = r.args[3] = 0;
  }
  recorded.Read();
  EXPECT_THROW(RecordedWorkload::FromTrace(*recorded.reader), TraceError);
  recorded.builder.meta = "{}";
  recorded.Read();
  EXPECT_THROW(RecordedWorkload::FromTrace(*recorded.reader), TraceError);
}

struct Replayed {
  SimulationResult result;
  uint64_t finished = 0, cached = 0, tokens = 0;
  uint64_t violations = 0;
};

Replayed Replay(const Recorded& recorded, SimulationOptions options) {
  const RecordedWorkload w = RecordedWorkload::FromTrace(*recorded.reader);
  options.trace_path = ::testing::TempDir() + "/replay_test_" + std::to_string(getpid()) + ".trace";
  auto result = Simulate(w, recorded.reader->meta(), options);
  EXPECT_TRUE(result.ok()) << result.status().ToString();
  if (!result.ok()) return {};
  TraceReader reader(trace_tool::OpenFile(options.trace_path));
  trace_tool::Summary summary(reader, result->begin_ns, result->end_ns);
  trace_tool::InvariantChecker checker(reader.meta(), reader.header().mask);
  reader.ForEach([&](const TraceEvent& e) {
    summary.Add(e);
    checker.Add(e);
  });
  checker.Finish(/*complete=*/true);
  EXPECT_FALSE(reader.losses().any());
  std::remove(options.trace_path.c_str());
  return {*result, summary.requests(RequestEvent::kFinished), summary.cached_tokens(),
          summary.tokens(), checker.violation_count()};
}

TEST(Replay, FinishesEveryRequestSharesWhatWasSharedAndKeepsEveryInvariant) {
  Recorded recorded;
  const Replayed r = Replay(recorded, {});
  EXPECT_EQ(r.finished, 16U);
  EXPECT_EQ(r.result.refused + r.result.failed, 0U);
  EXPECT_EQ(r.result.violations, 0U);
  EXPECT_EQ(r.violations, 0U);
  // 16 x (64 + 20 - 1) tokens, less what came from the cache.
  EXPECT_EQ(r.tokens, 16 * 83 - r.cached);
  EXPECT_GT(r.cached, 0U);
  // The same again gives the same.
  EXPECT_EQ(Replay(recorded, {}).result.end_ns, r.result.end_ns);
}

TEST(Replay, OtherPoliciesBudgetsRatesAndLinksRunToo) {
  Recorded recorded;
  for (const char* policy : {"resident", "tide", "stress_random"}) {
    const Replayed r = Replay(recorded, {.policy = policy, .rate = 20, .link = 0.01});
    EXPECT_EQ(r.finished, 16U) << policy;
    EXPECT_EQ(r.violations, 0U) << policy;
  }
  // 9 granules: weights have 8, so that some of them must go for one request's KV.
  const Replayed tight = Replay(recorded, {.policy = "tide", .budget_bytes = 10ULL << 21});
  EXPECT_EQ(tight.finished + tight.result.refused + tight.result.failed, 16U);
  const RecordedWorkload w = RecordedWorkload::FromTrace(*recorded.reader);
  EXPECT_FALSE(
      Simulate(w, recorded.reader->meta(), {.budget_bytes = 1 << 20, .trace_path = "/tmp/x.trace"})
          .ok());
  EXPECT_FALSE(
      Simulate(w, recorded.reader->meta(), {.policy = "no such", .trace_path = "/tmp/x.trace"})
          .ok());
  std::remove("/tmp/x.trace");
}

}  // namespace
}  // namespace weir::replay
