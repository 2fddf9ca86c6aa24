#include <gtest/gtest.h>

#include "tests/tools/trace_builder.h"
#include "tools/trace/text.h"
#include "tools/trace/top_screen.h"

namespace weir::trace_tool {
namespace {

// A life, watched.
std::unique_ptr<LiveView> Watch(uint64_t later_ns = 0) {
  TraceBuilder builder;
  builder.At(10'000'000'000).Add(TraceType::kSnapshotBegin, 0, {});
  builder.Life().Add(TraceType::kSnapshotEnd, 0, {});
  std::string problem;
  auto view = std::make_unique<LiveView>(TraceMeta::Parse(builder.meta, &problem));
  view->SetNow(10'000'000'000);
  view->Add(&builder.records());
  view->SetNow(builder.now() + later_ns);
  return view;
}

std::string Without(std::string text) {
  for (size_t at; (at = text.find('\x1b')) != std::string::npos;) {
    text.erase(at, text.find('m', at) - at + 1);
  }
  return text;
}
std::string Joined(const std::vector<std::string>& lines) {
  std::string out;
  for (const std::string& line : lines) out += line + "\n";
  return out;
}

TEST(TopScreen, NoLineIsWiderThanTheTerminal) {
  const auto view = Watch();
  for (const size_t width : {40U, 60U, 79U, 80U, 109U, 110U, 200U, 400U}) {
    for (const size_t height : {5U, 12U, 24U, 60U}) {
      for (const bool color : {false, true}) {
        const auto lines = TopScreen(*view, {.width = width, .height = height, .color = color});
        EXPECT_LE(lines.size(), height);
        for (const std::string& line : lines) EXPECT_LE(DisplayWidth(Without(line)), width) << line;
      }
    }
  }
}

TEST(TopScreen, ShowsMemoryByOwnerLayersAndQueueWithoutColour) {
  const std::string text =
      Joined(TopScreen(*Watch(), {.width = 100, .height = 40, .unicode = false}));
  // 16 granules: 0..7 weights but for 1 and 3 (ring), 5 and 7 freed and 5 taken by KV, 8 KV.
  EXPECT_NE(text.find("WRWRWKW.K......."), std::string::npos) << text;
  EXPECT_NE(text.find("W weights 8.00 MiB"), std::string::npos) << text;
  EXPECT_NE(text.find("8.00 MiB away"), std::string::npos) << text;
  EXPECT_NE(text.find("at home: 50 % to 50 % of a layer"), std::string::npos) << text;
  EXPECT_NE(text.find("0 used 2 cached 6 free of 8"), std::string::npos) << text;
  EXPECT_NE(text.find("80.0 us at layer 0 mlp, late-copy"), std::string::npos) << text;
  EXPECT_NE(text.find("KV is short"), std::string::npos) << text;
  for (const char c : text) EXPECT_LT(static_cast<unsigned char>(c), 0x80);
}

TEST(LiveView, RatesAreOfTheLastWholeSecondsAndFade) {
  const auto view = Watch(LiveView::kBucketNs);
  const LiveSums recent = view->Recent();
  EXPECT_EQ(recent.steps, 5U);
  EXPECT_EQ(recent.output_tokens, 10U);
  EXPECT_EQ(recent.stall(), 80'000U);
  EXPECT_EQ(recent.in(), 20 * TraceBuilder::kGranule);
  EXPECT_EQ(recent.finished, 1U);
  view->SetNow(view->now_ns() + 10 * LiveView::kBucketNs);
  EXPECT_EQ(view->Recent().steps, 0U);
  view->SetNow(view->now_ns() + 1000 * LiveView::kBucketNs);
  for (const LiveSums& s : view->History(LiveView::kBuckets)) EXPECT_EQ(s.steps, 0U);
}

TEST(LiveView, RecordsOfAnyTimeAndShapeDoNoHarm) {
  std::string problem;
  LiveView view(TraceMeta::Parse("{}", &problem));
  view.SetNow(5'000'000'000);
  TraceBuilder builder;
  for (const uint64_t t : {uint64_t{0}, uint64_t{1} << 40, ~uint64_t{0}}) {
    for (uint16_t type = 0; type < 70; ++type) {
      builder.At(t).Add(static_cast<TraceType>(type), 255,
                        {~uint64_t{0}, 1ULL << 40, 7, 9, 1ULL << 50, 3});
    }
  }
  view.Add(&builder.records());
  view.SetNow(6'000'000'000);
  EXPECT_FALSE(TopScreen(view, {}).empty());
}

}  // namespace
}  // namespace weir::trace_tool
