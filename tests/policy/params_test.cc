#include "policy/params.h"

#include <gtest/gtest.h>

namespace weir {
namespace {

struct Example {
  double ratio = 0.5;
  uint64_t steps = 8;
  ParamTable Table() {
    ParamTable table;
    table.Bind("ratio", &ratio, 0, 1, "a ratio");
    table.Bind("steps", &steps, 1, 100, "a count");
    return table;
  }
};

TEST(ParamTable, SetsAValueInRange) {
  Example example;
  ParamTable table = example.Table();
  EXPECT_TRUE(table.Set("ratio", "0.25").ok());
  EXPECT_TRUE(table.Set("steps", "100").ok());
  EXPECT_EQ(example.ratio, 0.25);
  EXPECT_EQ(example.steps, 100u);
}

TEST(ParamTable, RejectsWhatIsOutOfRangeOrNoNumberAndKeepsTheField) {
  Example example;
  ParamTable table = example.Table();
  for (const char* bad : {"1.5", "-0.1", "nan", "inf", "", "1x", "abc", " 1"}) {
    EXPECT_EQ(table.Set("ratio", bad).code(), StatusCode::kInvalidArgument) << bad;
  }
  for (const char* bad : {"0", "101", "1.5", "-1", "99999999999999999999999"}) {
    EXPECT_EQ(table.Set("steps", bad).code(), StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_EQ(example.ratio, 0.5);
  EXPECT_EQ(example.steps, 8u);
  EXPECT_EQ(table.Set("steps", "0").message(),
            "parameter steps must be a number in [1, 100], got \"0\"");
}

TEST(ParamTable, AChoiceIsMadeByNameAmongWhatIsAccepted) {
  Placement placement = Placement::kStripe;
  ParamTable table;
  table.Bind("placement", &placement, {Placement::kStripe, Placement::kInPlace}, "where from");
  EXPECT_EQ(table.Describe()[0].range, "stripe, in_place");
  EXPECT_EQ(table.Describe()[0].default_value, "stripe");
  EXPECT_TRUE(table.Set("placement", "in_place").ok());
  EXPECT_EQ(placement, Placement::kInPlace);
  EXPECT_EQ(table.Values()[0].second, "in_place");
  for (const char* bad : {"layer", "0", "", "in place", "IN_PLACE"}) {
    EXPECT_EQ(table.Set("placement", bad).code(), StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_EQ(placement, Placement::kInPlace);
  EXPECT_EQ(table.Set("placement", "layer").message(),
            "parameter placement must be one of stripe, in_place, got \"layer\"");
}

TEST(ParamTable, AnUnknownKeyListsTheKnownOnesAndTheNearest) {
  Example example;
  ParamTable table = example.Table();
  const Status status = table.Set("ratoi", "1");
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_EQ(status.message(),
            "unknown parameter \"ratoi\"; known are: ratio, steps. Did you mean \"ratio\"?");
}

TEST(ParamTable, DescribesDefaultsAndShowsCurrentValues) {
  Example example;
  ParamTable table = example.Table();
  ASSERT_TRUE(table.Set("steps", "9").ok());
  ASSERT_EQ(table.Describe().size(), 2u);
  EXPECT_EQ(table.Describe()[0].default_value, "0.5");
  EXPECT_EQ(table.Describe()[0].range, "[0, 1]");
  EXPECT_EQ(table.Values()[1].second, "9");
  EXPECT_EQ(table.Describe()[1].default_value, "8");
}

TEST(NearestName, FindsATypoAndNothingForNonsense) {
  EXPECT_EQ(NearestName("tid", {"fixed", "tide"}), "tide");
  EXPECT_EQ(NearestName("qqqqqqqq", {"fixed", "tide"}), "");
}

}  // namespace
}  // namespace weir
