#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/tools/trace_builder.h"
#include "tools/trace/summary.h"

namespace weir::trace_tool {
namespace {

TEST(Report, CountsWhatTheTraceHasAndNamesTheDecisionBehindAFault) {
  TraceBuilder builder;
  const std::string file = builder.Life().File();
  TraceReader reader(MemorySource(std::as_bytes(std::span(file.data(), file.size()))));
  Summary summary(reader);
  reader.ForEach([&](const TraceEvent& e) { summary.Add(e); });
  const nlohmann::ordered_json json = summary.Json();
  EXPECT_EQ(json["steps"], 5);
  EXPECT_EQ(json["step_stall_ns"], 80'000);
  EXPECT_EQ(json["faults_by_cause"]["late-copy"]["sum_ns"], 80'000.0);
  EXPECT_EQ(json["layers"]["0"]["max_ns"], 80'000);
  EXPECT_EQ(json["links"]["host"]["bytes"], 5 * 4 * TraceBuilder::kGranule);
  EXPECT_EQ(json["owners"]["weights"]["granules"], 4);
  EXPECT_EQ(json["owners"]["ring"]["granules"], 2);
  EXPECT_EQ(json["top_faults"][0]["reason"], "KV is short");
  const std::string text = summary.Text("cause");
  EXPECT_NE(text.find("layer 0 mlp"), std::string::npos);
  EXPECT_NE(text.find("after decision 1"), std::string::npos);
  EXPECT_LT(summary.Text("owner").find("by owner"), summary.Text("owner").find("by layer"));
}

TEST(Report, ALinkIsBusyOnceHoweverManyCopiesShareIt) {
  TraceBuilder builder;
  builder.At(2'000'000);
  // Two lanes; a copy that was told of after a later one; the runs of one fill; another tier.
  builder.Add(TraceType::kCopy, 2, {0, 0, 1, 500, 1'100'000, 1'300'000});
  builder.Add(TraceType::kCopy, 2, {1, 0, 3, 500, 1'200'000, 1'400'000});
  builder.Add(TraceType::kCopy, 2, {3, 0, 7, 500, 1'550'000, 1'600'000});
  builder.Add(TraceType::kCopy, 2, {2, 0, 5, 500, 1'500'000, 1'700'000});
  for (uint64_t i = 0; i < 2; ++i) {
    builder.Add(TraceType::kFill, 2, {0, i, 1, 250, 1'800'000, 1'900'000});
  }
  builder.Add(TraceType::kFill, 3, {0, 0, 1, 250, 1'100'000, 1'900'000});
  const std::string file = builder.File();
  TraceReader reader(MemorySource(std::as_bytes(std::span(file.data(), file.size()))));
  Summary summary(reader);
  reader.ForEach([&](const TraceEvent& e) { summary.Add(e); });
  const nlohmann::ordered_json json = summary.Json();
  EXPECT_EQ(json["links"]["host"]["transfers"], 6);
  EXPECT_EQ(json["links"]["host"]["bytes"], 2500);
  EXPECT_EQ(json["links"]["host"]["busy_ns"], 300'000 + 200'000 + 100'000);
  EXPECT_EQ(json["links"]["nvme"]["busy_ns"], 800'000);
}

TEST(Report, ADevicesStepsAndTheirGapsAreAddedUp) {
  TraceBuilder builder;
  const std::string file = builder.Pool().Load().Evict().DeviceSteps(10, 14).File();
  TraceReader reader(MemorySource(std::as_bytes(std::span(file.data(), file.size()))));
  Summary summary(reader);
  reader.ForEach([&](const TraceEvent& e) { summary.Add(e); });
  const nlohmann::ordered_json json = summary.Json();
  EXPECT_EQ(json["device"]["steps"], 5);
  EXPECT_EQ(json["device"]["clock_error_ns"], 500);
  EXPECT_EQ(json["device"]["busy_ns"].get<uint64_t>(), json["step"]["sum_ns"].get<double>());
  EXPECT_EQ(json["device"]["idle_ns"], 4 * 12'000);
  // 4 of 5 began before the one ahead of them had ended, and their prompt tokens are not output.
  EXPECT_EQ(summary.generated(), 2U + 4U * 1U);
  EXPECT_NE(summary.Text("cause").find("on the device: 5 steps"), std::string::npos);
}

TEST(Histogram, PercentilesAreWithinTheirBucket) {
  Histogram h;
  for (uint64_t i = 1; i <= 100'000; ++i) h.Add(i);
  for (const double p : {0.01, 0.5, 0.9, 0.99}) {
    EXPECT_NEAR(static_cast<double>(h.Percentile(p)), p * 1e5, p * 1e5 * 0.016 + 1) << p;
  }
  EXPECT_EQ(h.Percentile(1), 100'000U);
}

}  // namespace
}  // namespace weir::trace_tool
