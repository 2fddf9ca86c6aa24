// The exported file as its readers take it: JSON, tracks with names, slices that do not overlap.
#include "tools/trace/perfetto.h"

#include <algorithm>
#include <cmath>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/tools/trace_builder.h"

namespace weir::trace_tool {
namespace {

using nlohmann::json;

json Export(const TraceBuilder& builder) {
  const std::string file = builder.File();
  TraceReader reader(MemorySource(std::as_bytes(std::span(file.data(), file.size()))));
  std::string text;
  ChromeTraceWriter writer(reader, [&](std::string_view part) { text += part; });
  reader.ForEach([&](const TraceEvent& e) { writer.Add(e); });
  writer.Finish();
  return json::parse(text);
}

struct Slice {
  std::string name;
  int64_t begin_ns, end_ns;
};

int64_t Ns(const json& us) {
  return std::llround(us.get<double>() * 1000);
}

// Slices by the name of their track.
std::map<std::string, std::vector<Slice>> Slices(const json& root) {
  std::map<std::pair<int, int>, std::string> names;
  std::map<std::string, std::vector<Slice>> slices;
  for (const json& e : root["traceEvents"]) {
    if (e["name"] == "thread_name") names[{e["pid"], e["tid"]}] = e["args"]["name"];
    if (e["ph"] != "X") continue;
    const auto name = names.find({e["pid"], e["tid"]});
    EXPECT_NE(name, names.end()) << e;
    slices[name->second].push_back({e["name"], Ns(e["ts"]), Ns(e["ts"]) + Ns(e["dur"])});
  }
  return slices;
}

// A slice lies in the one before it or begins after its end.
void ExpectNested(std::vector<Slice> slices) {
  std::stable_sort(slices.begin(), slices.end(), [](const Slice& a, const Slice& b) {
    return a.begin_ns != b.begin_ns ? a.begin_ns < b.begin_ns : a.end_ns > b.end_ns;
  });
  std::vector<int64_t> open;
  for (const Slice& s : slices) {
    while (!open.empty() && open.back() <= s.begin_ns) open.pop_back();
    if (!open.empty()) {
      EXPECT_LE(s.end_ns, open.back()) << s.name << " at " << s.begin_ns;
    }
    open.push_back(s.end_ns);
  }
}

TEST(Perfetto, EveryKindOfTrackHasItsSlices) {
  TraceBuilder builder;
  const json root = Export(builder.Life());
  auto slices = Slices(root);
  EXPECT_EQ(slices["steps"].size(), 5U);
  EXPECT_EQ(slices["steps"][0].name, "decode");
  EXPECT_EQ(slices["plans"].size(), 4U);
  EXPECT_EQ(slices["plans"][2].name, "evict");
  ASSERT_EQ(slices["gates waited for"].size(), 1U);
  EXPECT_EQ(slices["gates waited for"][0].name, "layer 0 mlp");
  EXPECT_EQ(slices["gates waited for"][0].end_ns - slices["gates waited for"][0].begin_ns, 80'000);
  EXPECT_EQ(slices["host to device: stripes"].size(), 20U);
  ASSERT_EQ(slices["lane 1"].size(), 3U);
  EXPECT_EQ(slices["lane 1"][0].name, "request 1");
  EXPECT_EQ(slices["lane 1"][1].name, "prefill");
  EXPECT_EQ(slices["lane 1"][2].name, "decode");
  for (const auto& [track, of_track] : slices) {
    SCOPED_TRACE(track);
    ExpectNested(of_track);
  }
}

TEST(Perfetto, ADevicesStepsHaveATrackBesideTheHostsWithTheirGaps) {
  TraceBuilder builder;
  builder.meta.insert(1, "\"scheduler\":{\"steps_under_way\":2},");
  builder.Pool().Load().Evict().DeviceSteps(10, 14);
  const json root = Export(builder);
  auto slices = Slices(root);
  const auto& device = slices["steps on the device"];
  ASSERT_EQ(device.size(), 5U);
  EXPECT_EQ(device[0].name, "decode");
  EXPECT_EQ(device[1].name, "with prefill");
  EXPECT_GE(device[1].begin_ns - device[0].end_ns, 10'000);
  // On the host two are under way at a time, and each begins before the device does.
  ASSERT_EQ(slices["steps on the host"].size(), 3U);
  ASSERT_EQ(slices["steps on the host 2"].size(), 2U);
  EXPECT_LT(slices["steps on the host 2"][0].begin_ns, device[0].end_ns);
  EXPECT_FALSE(slices.contains("steps"));
  EXPECT_EQ(slices["gates waited for"].size(), 20U);
  EXPECT_EQ(slices["peer to device: stripes"].size(), 20U);
  for (const auto& [track, of_track] : slices) {
    SCOPED_TRACE(track);
    ExpectNested(of_track);
  }
  EXPECT_NE(root.dump().find("idle_before_us"), std::string::npos);
}

TEST(Perfetto, CountersHaveTheStateOfTheMemory) {
  TraceBuilder builder;
  const json root = Export(builder.Life());
  std::map<std::string, json> last;
  for (const json& e : root["traceEvents"]) {
    if (e["ph"] == "C") last[e["name"]] = e["args"];
  }
  EXPECT_EQ(last["KV blocks"], json({{"used", 0}, {"cached", 2}, {"free", 6}}));
  EXPECT_EQ(last["weights away MiB"]["value"], 8.0);
  // 16 granules of 2 MiB: 8 of weights, of which 2 became the ring and 2 went; KV has 2 by then.
  EXPECT_EQ(last["device memory MiB"]["weights"], 8.0);
  EXPECT_EQ(last["device memory MiB"]["ring"], 4.0);
  EXPECT_EQ(last["device memory MiB"]["kv"], 4.0);
  EXPECT_EQ(last["device memory MiB"]["free"], 16.0);
}

TEST(Perfetto, TransfersThatOverlapGetTracksOfTheirOwnAndFillsOfOneBatchAreOne) {
  TraceBuilder builder;
  builder.At(2'000'000);
  builder.Add(TraceType::kCopy, 2, {0, 0, 1, 5, 1'500'000, 1'700'000});
  builder.Add(TraceType::kCopy, 2, {1, 0, 3, 5, 1'600'000, 1'800'000});
  builder.Add(TraceType::kCopy, 2, {2, 0, 5, 5, 1'700'000, 1'900'000});
  for (uint64_t i = 0; i < 3; ++i) {
    builder.Add(TraceType::kFill, 2, {0, 2 * i, 1, 7, 1'100'000, 1'200'000});
  }
  auto slices = Slices(Export(builder));
  EXPECT_EQ(slices["host to device: stripes"].size(), 2U);
  EXPECT_EQ(slices["host to device: stripes 2"].size(), 1U);
  EXPECT_EQ(slices["host to device: fills"].size(), 1U);
}

TEST(Perfetto, APreemptedAndAnUnfinishedRequestEndWhereTheTraceSays) {
  TraceBuilder builder;
  const auto event = [&](RequestEvent e, uint64_t id) {
    builder.Add(TraceType::kRequest, static_cast<uint8_t>(e), {id, 8, 0, 0, 0});
  };
  event(RequestEvent::kAdded, 1);
  event(RequestEvent::kAdded, 2);
  event(RequestEvent::kScheduled, 1);
  event(RequestEvent::kScheduled, 2);
  event(RequestEvent::kFirstToken, 2);
  event(RequestEvent::kPreempted, 2);
  event(RequestEvent::kScheduled, 2);
  event(RequestEvent::kFinished, 2);
  const json root = Export(builder);
  auto slices = Slices(root);
  size_t spans = 0;
  for (const auto& [track, of_track] : slices) {
    ExpectNested(of_track);
    for (const Slice& s : of_track) spans += s.name.starts_with("request") ? 1U : 0U;
  }
  EXPECT_EQ(spans, 3U);
  EXPECT_NE(root.dump().find("still running"), std::string::npos);
}

TEST(Perfetto, ANameThatIsNoUtf8IsStillJson) {
  TraceBuilder builder;
  builder.meta = "{\"model\": \"\\u001b[2J\", \"owners\": [\"\\\"\", \"w\"]}";
  EXPECT_FALSE(Export(builder.Life()).empty());
}

}  // namespace
}  // namespace weir::trace_tool
