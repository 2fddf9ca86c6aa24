#include "tools/trace/diff.h"

#include <cmath>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/tools/trace_builder.h"

namespace weir::trace_tool {
namespace {

struct Side {
  explicit Side(const TraceBuilder& builder)
      : file(builder.File()),
        reader(MemorySource(std::as_bytes(std::span(file.data(), file.size())))),
        summary(reader) {
    reader.ForEach([&](const TraceEvent& e) { summary.Add(e); });
  }
  std::string file;
  TraceReader reader;
  Summary summary;
};

const DiffRow& Row(const std::vector<DiffRow>& rows, const std::string& group,
                   const std::string& name) {
  for (const DiffRow& row : rows) {
    if (row.group == group && row.name == name) return row;
  }
  ADD_FAILURE() << "no row " << group << ", " << name;
  static const DiffRow none;
  return none;
}

TEST(Diff, ATraceAgainstItselfHasNoDifference) {
  TraceBuilder builder;
  const Side a(builder.Life()), b(builder);
  for (const DiffRow& row : Diff(a.summary, b.summary)) {
    EXPECT_EQ(row.a, row.b) << row.name;
    EXPECT_EQ(row.WorseBy(), 0) << row.name;
  }
}

TEST(Diff, AnotherStallAndASmallerCacheAreNamed) {
  TraceBuilder good, bad;
  good.Life();
  bad.Life();
  bad.Step(20, 3).Step(21, 3).Add(TraceType::kQueue, 0, {1, 9, 3, 0, 1, 4});
  const Side a(good), b(bad);
  const auto rows = Diff(a.summary, b.summary);
  EXPECT_EQ(Row(rows, "stall", "stall").a, 80'000);
  EXPECT_EQ(Row(rows, "stall", "stall").b, 240'000);
  EXPECT_NEAR(Row(rows, "stall", "stall").WorseBy(), 200, 1e-9);
  EXPECT_EQ(Row(rows, "faults", "late-copy").b, 3);
  EXPECT_EQ(Row(rows, "KV blocks", "capacity, most").a, 8);
  EXPECT_EQ(Row(rows, "requests", "waiting, most").b, 9);
  EXPECT_EQ(Row(rows, "plans", "evict").a, 1);
  const std::string text = DiffText(rows, "A", "B");
  EXPECT_NE(text.find("+200.0 %"), std::string::npos) << text;
  EXPECT_NE(text.find("worse"), std::string::npos) << text;
  EXPECT_EQ(text.find("repair"), std::string::npos);  // in neither
  EXPECT_EQ(DiffJson(rows)["stall"]["stall"]["verdict"], "worse");
}

TEST(Diff, WhatOnlyOneHasIsNewOrGone) {
  TraceBuilder with, without;
  with.Life();
  without.Pool().Load();
  const Side a(with), b(without);
  EXPECT_NE(DiffText(Diff(a.summary, b.summary), "A", "B").find("gone"), std::string::npos);
  EXPECT_NE(DiffText(Diff(b.summary, a.summary), "A", "B").find("new"), std::string::npos);
  EXPECT_TRUE(std::isinf(Row(Diff(b.summary, a.summary), "stall", "stall").WorseBy()));
}

}  // namespace
}  // namespace weir::trace_tool
