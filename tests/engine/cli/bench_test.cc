#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "engine/cli/bench_metrics.h"
#include "engine/cli/bench_report.h"
#include "engine/cli/bench_runner.h"
#include "engine/model/model_config.h"

namespace weir::cli {
namespace {

constexpr TimeNs kMs = 1'000'000;

BenchRecord Record(TimeNs due, TimeNs first, TimeNs last, uint32_t tokens) {
  BenchRecord r;
  r.finished = true;
  r.reason = FinishReason::kLength;
  r.due_ns = due;
  r.first_ns = first;
  r.last_ns = last;
  r.prompt_tokens = 10;
  r.cached_tokens = 4;
  r.output_tokens = r.wanted_tokens = tokens;
  return r;
}

BenchRecord Failed() {
  BenchRecord r;
  r.reason = FinishReason::kError;
  r.error = "no memory: too long";
  r.wanted_tokens = 5;
  return r;
}

TEST(BenchMetrics, PercentilesInterpolateAndNothingIsZero) {
  const Distribution d = DistributionOf({4, 1, 3, 2});
  EXPECT_EQ(d.count, 4U);
  EXPECT_DOUBLE_EQ(d.mean, 2.5);
  EXPECT_DOUBLE_EQ(d.p50, 2.5);
  EXPECT_DOUBLE_EQ(d.p90, 3.7);
  EXPECT_DOUBLE_EQ(d.min, 1);
  EXPECT_DOUBLE_EQ(d.max, 4);
  EXPECT_EQ(DistributionOf({}).count, 0U);
  EXPECT_DOUBLE_EQ(DistributionOf({}).p99, 0);
}

TEST(BenchMetrics, TimesCountFromWhenTheRequestWasDue) {
  const RequestTimes t = TimesOf(Record(5 * kMs, 25 * kMs, 65 * kMs, 5));
  EXPECT_DOUBLE_EQ(t.ttft_ms, 20);
  EXPECT_DOUBLE_EQ(t.e2el_ms, 60);
  EXPECT_DOUBLE_EQ(t.tpot_ms, 10);
  EXPECT_DOUBLE_EQ(TimesOf(Record(0, kMs, kMs, 1)).tpot_ms, 0);
}

TEST(BenchMetrics, GoodputBoundsAreReadAndKept) {
  const auto bounds = ParseGoodput({"ttft:500", "tpot:0.5"});
  ASSERT_TRUE(bounds.ok()) << bounds.status().message();
  EXPECT_EQ(bounds->ttft_ms, 500);
  EXPECT_FALSE(bounds->e2el_ms.has_value());
  EXPECT_TRUE(IsGood({.ttft_ms = 500, .e2el_ms = 1e9, .tpot_ms = 0.5}, *bounds));
  EXPECT_FALSE(IsGood({.ttft_ms = 501, .e2el_ms = 1, .tpot_ms = 0.1}, *bounds));
  EXPECT_FALSE(IsGood({.ttft_ms = 1, .e2el_ms = 1, .tpot_ms = 0.6}, *bounds));
  for (const char* text : {"ttft", "ttft:", "ttft:x", "ttft:-1", "itl:5", ":5", ""}) {
    const auto bad = ParseGoodput({text});
    ASSERT_FALSE(bad.ok()) << text;
    EXPECT_NE(bad.status().message().find("give "), std::string::npos) << bad.status().message();
  }
}

TEST(BenchMetrics, FailedRequestsAreCountedAndNotTimed) {
  BenchRun run;
  run.requests = {Record(0, 10 * kMs, 30 * kMs, 3), Failed(), Record(0, 20 * kMs, 20 * kMs, 1)};
  run.requests[2].wanted_tokens = 2;
  run.wall_ns = 2000 * kMs;
  run.idle_ns = 500 * kMs;
  run.core.compute_ns = 1200 * kMs;
  for (uint32_t i = 1; i <= 3; ++i) {
    StepRecord step;
    step.step_ns = i * kMs;
    step.rows = 4 * i;
    step.running = i;
    step.kv_capacity = 8 * i;
    run.steps.push_back(step);
  }
  const BenchSummary s = SummariseBench(run);
  EXPECT_EQ(s.requests, 3U);
  EXPECT_EQ(s.failed, 1U);
  EXPECT_EQ(s.other_length, 1U);
  EXPECT_FALSE(s.Passed());
  EXPECT_EQ(s.prompt_tokens, 20U);
  EXPECT_EQ(s.cached_tokens, 8U);
  EXPECT_EQ(s.output_tokens, 4U);
  EXPECT_DOUBLE_EQ(s.output_per_s, 2);
  EXPECT_DOUBLE_EQ(s.total_per_s, 12);
  EXPECT_DOUBLE_EQ(s.requests_per_s, 1);
  EXPECT_EQ(s.ttft_ms.count, 2U);
  EXPECT_EQ(s.tpot_ms.count, 1U);
  EXPECT_DOUBLE_EQ(s.mean_rows, 8);
  EXPECT_NEAR(s.mean_running, (1.0 + 4 + 9) / 6, 1e-9);
  EXPECT_EQ(s.kv_start, 8U);
  EXPECT_EQ(s.kv_peak, 24U);
  EXPECT_NEAR(s.host_s, 0.3, 1e-9);
  EXPECT_NEAR(s.host_share, 0.2, 1e-9);
  ReportLines lines(kBenchLabelWidth);
  TroubleRows(lines, run, s);
  const std::string text = lines.Take();
  EXPECT_NE(text.find("request #2 failed: no memory: too long"), std::string::npos) << text;
  EXPECT_NE(text.find("1 requests did not generate"), std::string::npos) << text;
}

TEST(BenchReport, ALongRunIsShownInAThousandSpans) {
  BenchRun run;
  EXPECT_TRUE(SeriesJson(run, {}).empty());
  for (uint64_t i = 0; i < 5000; ++i) {
    StepRecord step;
    step.start_ns = i * kMs;
    step.step_ns = kMs;
    step.waiting = 7;
    step.evicted_granules = 2;
    run.steps.push_back(step);
  }
  EngineInfo info;
  info.granule_bytes = 4096;
  const auto series = SeriesJson(run, info);
  for (const auto& [name, values] : series.items()) EXPECT_EQ(values.size(), 1000U) << name;
  EXPECT_DOUBLE_EQ(series["span_end_s"][999].get<double>(), 5);
  EXPECT_DOUBLE_EQ(series["waiting"][500].get<double>(), 7);
  EXPECT_DOUBLE_EQ(series["weights_away_bytes"][0].get<double>(), 8192);
}

std::unique_ptr<Engine> TinyEngine() {
  EngineOptions options;
  options.device = DeviceKind::kCpu;
  options.model = "tests/fixtures/models/smollm2_gqa3/config.json";
  options.dummy_weights = true;
  options.threads = 1;
  options.max_num_seqs = 4;
  options.trace.attach = false;
  auto engine = Engine::Open(options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(*engine) : nullptr;
}

bench::Workload Requests(const Engine& engine, double rate) {
  bench::WorkloadOptions o;
  o.num_prompts = 12;
  o.input_len = 40;
  o.output_len = 8;
  o.range_ratio = 0.5;
  o.arrivals.request_rate = rate;
  o.vocab_size = engine.model().vocab_size;
  o.max_model_len = engine.info().max_model_len;
  auto w = bench::MakeWorkload(o);
  EXPECT_TRUE(w.ok()) << w.status().message();
  return w.ok() ? std::move(*w) : bench::Workload();
}

TEST(BenchRunner, EveryRequestGeneratesExactlyItsOutputLength) {
  const auto engine = TinyEngine();
  ASSERT_NE(engine, nullptr);
  const bench::Workload workload = Requests(*engine, 0);
  const auto run = RunBench(*engine, workload.requests, {.label = "test", .cache_salt = 1});
  ASSERT_TRUE(run.ok()) << run.status().message();
  const BenchSummary s = SummariseBench(*run);
  EXPECT_TRUE(s.Passed());
  EXPECT_EQ(s.output_tokens, workload.output_tokens);
  EXPECT_EQ(s.prompt_tokens, workload.input_tokens);
  EXPECT_EQ(run->core.output_tokens, workload.output_tokens);
  EXPECT_EQ(run->gaps_ms.size(), workload.output_tokens - workload.requests.size());
  EXPECT_EQ(run->peak_waiting, 12U);
  EXPECT_EQ(run->peak_running, 4U);
  EXPECT_EQ(run->steps.size(), run->core.steps);
  EXPECT_GT(run->wall_ns, 0U);
}

TEST(BenchRunner, CountersAreOfOneRunAndASaltHidesOlderPrefixes) {
  const auto engine = TinyEngine();
  ASSERT_NE(engine, nullptr);
  const bench::Workload workload = Requests(*engine, 0);
  std::vector<uint64_t> cached;
  for (const uint64_t salt : {1U, 2U, 2U}) {
    const auto run = RunBench(*engine, workload.requests, {.label = "test", .cache_salt = salt});
    ASSERT_TRUE(run.ok()) << run.status().message();
    EXPECT_EQ(run->core.output_tokens, workload.output_tokens);
    EXPECT_EQ(run->steps.size(), run->core.steps);
    cached.push_back(SummariseBench(*run).cached_tokens);
  }
  EXPECT_EQ(cached[0], 0U);
  EXPECT_EQ(cached[1], 0U);
  EXPECT_GT(cached[2], 0U);  // what the second run left
}

TEST(BenchRunner, RequestsAreNotTakenBeforeTheyAreDue) {
  const auto engine = TinyEngine();
  ASSERT_NE(engine, nullptr);
  const bench::Workload workload = Requests(*engine, 100);
  const auto run = RunBench(*engine, workload.requests, {.label = "test", .cache_salt = 1});
  ASSERT_TRUE(run.ok()) << run.status().message();
  EXPECT_TRUE(SummariseBench(*run).Passed());
  EXPECT_GE(run->wall_ns, workload.requests.back().at_ns);
  EXPECT_GT(run->idle_ns, 0U);
  for (size_t i = 0; i < run->requests.size(); ++i) {
    EXPECT_EQ(run->requests[i].due_ns, run->start_ns + workload.requests[i].at_ns);
    EXPECT_GT(run->requests[i].first_ns, run->requests[i].due_ns);
  }
}

TEST(BenchRunner, ARefusedRequestIsAFailedOneAndTheOthersEnd) {
  const auto engine = TinyEngine();
  ASSERT_NE(engine, nullptr);
  bench::Workload workload = Requests(*engine, 0);
  workload.requests[3].prompt.assign(100'000, 1);
  const auto run = RunBench(*engine, workload.requests, {.label = "test", .cache_salt = 1});
  ASSERT_TRUE(run.ok()) << run.status().message();
  const BenchSummary s = SummariseBench(*run);
  EXPECT_EQ(s.failed, 1U);
  EXPECT_EQ(s.other_length, 0U);
  EXPECT_NE(run->requests[3].error.find("context takes at most"), std::string::npos);
}

// The shapes are made by hand: their sizes must be those of the published models.
TEST(BenchModels, HaveThePublishedNumberOfParameters) {
  const std::vector<std::pair<std::string, uint64_t>> published = {{"llama-3.1-8b", 8'030'261'248},
                                                                   {"llama-3.2-1b", 1'235'814'400},
                                                                   {"qwen3-32b", 32'762'123'264},
                                                                   {"qwen3-0.6b", 596'049'920}};
  for (const auto& [name, parameters] : published) {
    std::ifstream in("bench/models/" + name + ".json");
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    const auto config = ParseModelConfig(text);
    ASSERT_TRUE(config.ok()) << name << ": " << config.status().message();
    const uint64_t hidden = config->hidden_size;
    const uint64_t layer = 2 * hidden * config->q_size() + 2 * hidden * config->kv_size() +
                           3 * hidden * config->intermediate_size + 2 * hidden +
                           (config->qk_norm ? 2 * config->head_dim : 0);
    const uint64_t embeddings = config->tie_word_embeddings ? 1 : 2;
    EXPECT_EQ(config->num_layers * layer + hidden + embeddings * config->vocab_size * hidden,
              parameters)
        << name;
  }
}

}  // namespace
}  // namespace weir::cli
