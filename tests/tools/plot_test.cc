// What the picture is drawn from, and that it is well formed whatever the trace holds.
#include "tools/trace/plot.h"

#include <numeric>

#include <gtest/gtest.h>

#include "tests/tools/trace_builder.h"
#include "tools/trace/chart.h"

namespace weir::trace_tool {
namespace {

struct Picture {
  explicit Picture(const TraceBuilder& builder, TimelineOptions options = {})
      : file(builder.File()),
        reader(MemorySource(std::as_bytes(std::span(file.data(), file.size())))),
        timeline(reader, options) {}
  std::string file;
  TraceReader reader;
  Timeline timeline;
};

// Elements are closed in the order in which they were opened.
void ExpectWellFormed(const std::string& xml) {
  std::vector<std::string> open;
  for (size_t at = xml.find('<'); at != std::string::npos; at = xml.find('<', at)) {
    const size_t end = xml.find('>', at);
    ASSERT_NE(end, std::string::npos);
    const std::string tag = xml.substr(at + 1, end - at - 1);
    at = end;
    if (tag[0] == '?' || tag[0] == '!' || tag.back() == '/') continue;
    const std::string name =
        tag.substr(tag[0] == '/' ? 1 : 0, tag.find_first_of(" >") - (tag[0] == '/' ? 1 : 0));
    if (tag[0] != '/') {
      open.push_back(name);
    } else {
      ASSERT_FALSE(open.empty()) << tag;
      EXPECT_EQ(open.back(), name);
      open.pop_back();
    }
  }
  EXPECT_TRUE(open.empty());
  EXPECT_EQ(xml.find("nan"), std::string::npos);
  EXPECT_EQ(xml.find("inf "), std::string::npos);
}

TEST(Timeline, SumsOverItsColumnsAreThoseOfTheTrace) {
  TraceBuilder builder;
  for (const size_t columns : {1U, 7U, 400U}) {
    Picture p(builder.size() == 0 ? builder.Life() : builder, {.columns = columns});
    EXPECT_EQ(p.timeline.steps, 5U);
    EXPECT_EQ(p.timeline.tokens, 10U);
    EXPECT_EQ(p.timeline.faults, 1U);
    double stall = 0, tokens = 0, bytes = 0;
    for (const TimelineColumn& c : p.timeline.columns()) {
      stall = std::accumulate(c.stall_ns.begin(), c.stall_ns.end(), stall);
      tokens += c.output_tokens + c.prompt_tokens;
      for (const auto& [tier, n] : c.link_bytes) bytes += n;
    }
    EXPECT_NEAR(stall, 80'000, 1);
    EXPECT_NEAR(tokens, 10, 1e-6);
    EXPECT_NEAR(bytes, 20.0 * TraceBuilder::kGranule, 1);
  }
}

TEST(Timeline, LayersLoseWhatIsEvicted) {
  TraceBuilder builder;
  Picture p(builder.Life());
  ASSERT_EQ(p.timeline.layers(), 2U);
  const TimelineColumn& last = p.timeline.columns().back();
  EXPECT_FLOAT_EQ(last.home[0], 0.5F);  // slots 1 and 3 of 0..3 show the ring
  EXPECT_FLOAT_EQ(last.home[1], 0.5F);
  EXPECT_EQ(last.granules[kOwnerRing], 2U);
  EXPECT_EQ(last.queue.cached, 2U);
  ASSERT_EQ(p.timeline.plans().size(), 1U);
  EXPECT_EQ(p.timeline.plans()[0].freed, 2U);
}

TEST(Timeline, ARangeHoldsOnlyWhatLiesInIt) {
  TraceBuilder builder;
  builder.Life();
  Picture whole(builder);
  const double middle = whole.timeline.seconds() / 2;
  Picture half(builder, {.to_s = middle});
  Picture rest(builder, {.from_s = middle});
  EXPECT_LT(half.timeline.steps, 5U);
  EXPECT_GE(half.timeline.steps + rest.timeline.steps, 5U);
  EXPECT_EQ(half.timeline.faults + rest.timeline.faults, 1U);
  EXPECT_THROW(Picture(builder, {.from_s = 100}), TraceError);
  EXPECT_THROW(Picture{TraceBuilder()}, TraceError);
}

TEST(Plot, IsWellFormedAndSaysWhatItShows) {
  TraceBuilder builder;
  Picture p(builder.Life());
  const std::string svg = PlotSvg(p.timeline, p.reader);
  ExpectWellFormed(svg);
  for (const char* text : {"weights at home", "Device memory", "late-copy", "generated",
                           "evict plan", "measured peak 50.0 GB/s", "policy tide"}) {
    EXPECT_NE(svg.find(text), std::string::npos) << text;
  }
  const std::string html = PlotHtml(p.timeline, p.reader);
  EXPECT_NE(html.find("const D = [["), std::string::npos);
  EXPECT_EQ(html.find("http"), html.find("http://www.w3.org"));  // nothing is fetched
}

TEST(Plot, ATraceOfFewTypesOrWithoutMetadataIsStillAPicture) {
  TraceBuilder builder;
  builder.Add(TraceType::kStepEnd, 0, {1, 1, 1, 10, 0, 0});
  ExpectWellFormed(PlotSvg(Picture(builder).timeline, Picture(builder).reader));
  builder.meta = "{\"model\": \"<script>&\\\"\"}";
  builder.Life();
  Picture p(builder);
  ExpectWellFormed(PlotSvg(p.timeline, p.reader));
  EXPECT_EQ(PlotHtml(p.timeline, p.reader).find("<script>&"), std::string::npos);
}

TEST(Chart, TicksAreRoundNumbers) {
  EXPECT_EQ(AxisTicks(100, AxisUnit::kNumber, 5), (std::vector<double>{0, 20, 40, 60, 80, 100}));
  EXPECT_EQ(AxisText(AxisTicks(300.0 * (1 << 20), AxisUnit::kBytes, 4)[1], AxisUnit::kBytes),
            "64 MiB");
  EXPECT_EQ(AxisText(1.5 * (1 << 30), AxisUnit::kBytes), "1.5 GiB");
  EXPECT_EQ(AxisText(0.25, AxisUnit::kPercent), "25 %");
  EXPECT_EQ(AxisTicks(0, AxisUnit::kNumber, 5).size(), 1U);
}

}  // namespace
}  // namespace weir::trace_tool
