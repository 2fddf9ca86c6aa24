#include "engine/cli/size_text.h"

#include <gtest/gtest.h>

namespace weir::cli {
namespace {

TEST(SizeText, SizesWithAndWithoutUnitsAreRead) {
  EXPECT_EQ(*ParseSize("300MiB"), 300U << 20U);
  EXPECT_EQ(*ParseSize("2 GiB"), 2ULL << 30U);
  EXPECT_EQ(*ParseSize("1.5gib"), 3ULL << 29U);
  EXPECT_EQ(*ParseSize("20MB"), 20'000'000U);
  EXPECT_EQ(*ParseSize("0"), 0U);
  EXPECT_EQ(*ParseSize("18446744073709551615"), ~0ULL);
}

TEST(SizeText, WhatIsNotASizeIsRefusedWithWhatIsAccepted) {
  for (const char* text :
       {"", "MiB", "-1MiB", "12 XiB", "1e3", "nan", "inf", "99999999TiB", "1.5"}) {
    const auto size = ParseSize(text);
    ASSERT_FALSE(size.ok()) << text;
    EXPECT_NE(size.status().message().find("300MiB"), std::string::npos);
  }
}

TEST(SizeText, AWrittenSizeReadsBackExactly) {
  for (const uint64_t n :
       {0ULL, 1ULL, 1023ULL, 1024ULL, 1536ULL << 20U, 5ULL << 40U, 12345678901ULL, ~0ULL << 40U}) {
    EXPECT_EQ(*ParseSize(SizeText(n)), n) << SizeText(n);
  }
  EXPECT_EQ(SizeText(1536ULL << 20U), "1536MiB");
}

TEST(SizeText, ALogLineCannotBeForged) {
  EXPECT_EQ(OneLine("a\nb\x1b[2Jc\x7f\xC2\x9B"
                    "d",
                    100),
            "a b [2Jc d");
}

TEST(SizeText, ALongLineIsCutBetweenCharacters) {
  EXPECT_EQ(OneLine("ab\xC3\xA9"
                    "cd",
                    3),
            "ab...");
  EXPECT_EQ(OneLine("abcd", 4), "abcd");
}

TEST(SizeText, CountsAndNumbersKnowTheirRange) {
  EXPECT_EQ(*ParseCount("64", 1, 100), 64U);
  EXPECT_FALSE(ParseCount("0", 1, 100).ok());
  EXPECT_FALSE(ParseCount("-1", 0, 100).ok());
  EXPECT_FALSE(ParseCount("6 4", 0, 100).ok());
  EXPECT_DOUBLE_EQ(*ParseReal("0.25", 0, 1), 0.25);
  EXPECT_FALSE(ParseReal("nan", 0, 1).ok());
  EXPECT_EQ(Grouped(1234567), "1,234,567");
  EXPECT_EQ(Grouped(999), "999");
}

}  // namespace
}  // namespace weir::cli
