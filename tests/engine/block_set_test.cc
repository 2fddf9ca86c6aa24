#include "engine/block_set.h"

#include <random>
#include <set>

#include <gtest/gtest.h>

namespace weir {
namespace {

TEST(BlockSet, IsEmptyAtFirst) {
  BlockSet set(100);
  EXPECT_TRUE(set.empty());
  EXPECT_EQ(set.Lowest(), kNoBlock);
  EXPECT_FALSE(set.contains(99));
}

TEST(BlockSet, GivesTheLowestAlsoBelowOneThatWasGivenBefore) {
  BlockSet set(10'000);
  set.Insert(9'999);
  EXPECT_EQ(set.Lowest(), 9'999U);
  set.Insert(4'096);  // the next word of words
  EXPECT_EQ(set.Lowest(), 4'096U);
  set.Insert(0);
  EXPECT_EQ(set.Lowest(), 0U);
  set.Erase(0);
  set.Erase(4'096);
  EXPECT_EQ(set.Lowest(), 9'999U);
  set.Erase(9'999);
  EXPECT_EQ(set.Lowest(), kNoBlock);
}

// Limits at which words, and words of words, are just full or just begun.
TEST(BlockSet, RandomLifeIsThatOfAnOrderedSet) {
  for (const uint32_t limit : {1U, 63U, 64U, 65U, 4'095U, 4'096U, 4'097U, 20'000U}) {
    SCOPED_TRACE(limit);
    std::mt19937 random(limit);
    const auto rng = [&random] { return static_cast<uint32_t>(random()); };
    BlockSet set(limit);
    std::set<BlockId> reference;
    for (int i = 0; i < 20'000; ++i) {
      // Fuller and emptier in turn.
      const bool fill = i / 4'000 % 2 == 0 ? rng() % 4 != 0 : rng() % 4 == 0;
      const BlockId id = rng() % limit;
      if (fill && reference.insert(id).second) {
        set.Insert(id);
      } else if (!fill && !reference.empty()) {
        const BlockId gone = rng() % 2 == 0 ? *reference.begin() : *reference.rbegin();
        reference.erase(gone);
        set.Erase(gone);
      }
      ASSERT_EQ(set.size(), reference.size());
      ASSERT_EQ(set.contains(id), reference.contains(id));
      ASSERT_EQ(set.Lowest(), reference.empty() ? kNoBlock : *reference.begin());
    }
  }
}

}  // namespace
}  // namespace weir
