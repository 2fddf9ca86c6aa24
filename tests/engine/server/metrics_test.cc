#include "engine/server/metrics.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <string_view>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace weir::server {
namespace {

MetricsOptions Options(MetricsCompat compat = MetricsCompat::kVllm) {
  MetricsOptions options;
  options.model_name = "tiny";
  options.compat = compat;
  options.max_model_len = 300;
  return options;
}

// Names of the samples, as Prometheus would store them.
std::set<std::string> SampleNames(const std::string& text) {
  std::set<std::string> names;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with('#')) names.insert(line.substr(0, line.find_first_of("{ ")));
  }
  return names;
}

TEST(Metrics, EveryMetricOfTheDashboardExists) {
  std::ifstream file("docs/grafana-dashboard.json");
  const nlohmann::json dashboard = nlohmann::json::parse(file);
  std::string queries = dashboard["templating"].dump();
  for (const auto& panel : dashboard["panels"]) {
    for (const auto& target : panel["targets"]) {
      queries += target["expr"].get<std::string>() + "\n";
    }
  }
  const std::set<std::string> exist = SampleNames(ServerMetrics(Options()).Render({}, {}));
  size_t found = 0;
  constexpr std::string_view kNameChars = "abcdefghijklmnopqrstuvwxyz0123456789_:";
  for (size_t at = 0; (at = queries.find_first_of(kNameChars, at)) != std::string::npos;) {
    const size_t end = std::min(queries.find_first_not_of(kNameChars, at), queries.size());
    const std::string name = queries.substr(at, end - at);
    at = end;
    if (!name.starts_with("weir_") && !name.starts_with("vllm:") && !name.starts_with("process_")) {
      continue;
    }
    ++found;
    EXPECT_TRUE(exist.contains(name)) << name;
  }
  EXPECT_GT(found, 30U);
}

// What vLLM's own test of its metrics asks for, beside names of older versions.
TEST(Metrics, VllmsNamesAreThereUnlessTurnedOff) {
  const std::set<std::string> names = SampleNames(ServerMetrics(Options()).Render({}, {}));
  for (const char* name : {"num_requests_running",
                           "num_requests_waiting",
                           "kv_cache_usage_perc",
                           "prefix_cache_queries_total",
                           "prefix_cache_hits_total",
                           "num_preemptions_total",
                           "prompt_tokens_total",
                           "generation_tokens_total",
                           "iteration_tokens_total_bucket",
                           "cache_config_info",
                           "request_success_total",
                           "request_prompt_tokens_sum",
                           "request_generation_tokens_count",
                           "request_params_n_bucket",
                           "request_params_max_tokens_bucket",
                           "time_to_first_token_seconds_bucket",
                           "inter_token_latency_seconds_sum",
                           "e2e_request_latency_seconds_count",
                           "request_queue_time_seconds_bucket",
                           "request_inference_time_seconds_bucket",
                           "request_prefill_time_seconds_bucket",
                           "request_decode_time_seconds_bucket",
                           "gpu_cache_usage_perc",
                           "time_per_output_token_seconds_bucket"}) {
    EXPECT_TRUE(names.contains(std::string("vllm:") + name)) << name;
  }
  const std::string off = ServerMetrics(Options(MetricsCompat::kNone)).Render({}, {});
  EXPECT_EQ(off.find("vllm:"), std::string::npos);
  EXPECT_TRUE(SampleNames(off).contains("weir_num_requests_running"));
}

// The rules promtool checks, but for vLLM's own names (colons, a histogram called a total).
TEST(Metrics, FamiliesHaveHelpATypeAndAFittingNameOnce) {
  std::istringstream lines(ServerMetrics(Options()).Render({}, {}));
  std::set<std::string> seen;
  std::string help_of;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash, kind, name, type;
    words >> hash >> kind >> name >> type;
    if (hash != "#") continue;
    if (kind == "HELP") {
      EXPECT_TRUE(seen.insert(name).second) << name << " twice";
      EXPECT_FALSE(type.empty()) << name << " has no help";
      help_of = name;
      continue;
    }
    EXPECT_EQ(help_of, name);
    EXPECT_EQ(name.find(':') != std::string::npos, name.starts_with("vllm:")) << name;
    if (name == "vllm:iteration_tokens_total") continue;
    EXPECT_EQ(type == "counter", name.ends_with("_total")) << name;
  }
  EXPECT_GT(seen.size(), 60U);
}

TEST(Metrics, HistogramsAreCumulativeAndEndAtInfinity) {
  Histogram histogram({1, 2, 5});
  for (const double v : {0.5, 1.0, 1.5, 4.0, 100.0}) histogram.Observe(v);
  Exposition out{Labels()};
  out.Family("h", Exposition::Type::kHistogram, "x");
  out.Sample(histogram);
  EXPECT_EQ(out.Take(),
            "# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"2\"} 3\n"
            "h_bucket{le=\"5\"} 4\nh_bucket{le=\"+Inf\"} 5\nh_sum 107\nh_count 5\n");
}

TEST(Metrics, LabelsAndHelpCannotBreakTheFormat) {
  Exposition out(Labels{{"model_name", "a\"b\\c\nd"}});
  out.Family("m", Exposition::Type::kGauge, "two\nlines");
  out.Sample(1.5);
  EXPECT_EQ(out.Take(),
            "# HELP m two\\nlines\n# TYPE m gauge\nm{model_name=\"a\\\"b\\\\c\\nd\"} 1.5\n");
}

TEST(Metrics, BoundsOfTokenHistogramsEndAtTheContext) {
  EXPECT_EQ(OneTwoFive(300), (std::vector<double>{1, 2, 5, 10, 20, 50, 100, 200}));
}

TEST(Metrics, WhatIsStreamedIsCountedByTheTierItCameFrom) {
  AsyncStats stats;
  stats.link.tier = Tier::kPeer;
  stats.pager.bytes_copied = 5;
  const std::string text = ServerMetrics(Options()).Render(stats, {});
  EXPECT_NE(text.find("src=\"peer\",dst=\"hbm\",cause=\"stream\"} 5\n"), std::string::npos);
  EXPECT_NE(text.find("kind=\"major\",tier=\"peer\"} 0\n"), std::string::npos);
  EXPECT_EQ(text.find("\"host\""), std::string::npos);
}

TEST(Metrics, RejectionsAreCountedByReason) {
  ServerMetrics metrics(Options());
  metrics.OnRejected(StatusCode::kNoMemory);
  metrics.OnRejected(StatusCode::kNoMemory);
  metrics.OnRejected(StatusCode::kShouldWait);
  metrics.OnRejected(StatusCode::kBadState);
  const std::string text = metrics.Render({}, {});
  for (const char* sample : {"reason=\"queue_full\"} 2\n", "reason=\"tenant_share\"} 1\n",
                             "reason=\"not_ready\"} 1\n"}) {
    EXPECT_NE(text.find(std::string("weir_admission_rejections_total{model_name=\"tiny\","
                                    "engine=\"0\",") +
                        sample),
              std::string::npos)
        << sample;
  }
}

}  // namespace
}  // namespace weir::server
