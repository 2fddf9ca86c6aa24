#include "engine/prefix_index.h"

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace weir {
namespace {

TEST(PrefixIndex, WithoutRoomKnowsNothing) {
  const PrefixIndex index(0);
  EXPECT_EQ(index.Find({1, 2}, [](BlockId) { return true; }), kNoBlock);
}

TEST(PrefixIndex, AsksForEachBlockWhoseHashMayBeTheOne) {
  PrefixIndex index(4);
  index.Insert({.low = 7, .high = 1}, 0);
  index.Insert({.low = 7, .high = 2}, 1);
  index.Insert({.low = 8, .high = 1}, 2);
  std::vector<BlockId> asked;
  EXPECT_EQ(index.Find({.low = 7, .high = 2},
                       [&](BlockId id) {
                         asked.push_back(id);
                         return id == 1;
                       }),
            1U);
  EXPECT_EQ(asked, (std::vector<BlockId>{0, 1}));
  EXPECT_EQ(index.Find({.low = 7, .high = 3}, [](BlockId) { return false; }), kNoBlock);
}

TEST(PrefixIndexDeathTest, ErasingWhatIsNotThereStopsTheProcess) {
  PrefixIndex index(4);
  index.Insert({.low = 7}, 0);
  EXPECT_DEATH(index.Erase({.low = 7}, 1), "never entered");
}

// Places that are few, so that pairs crowd behind them and around the table's end, and hashes that
// agree in all that a pair keeps of them.
TEST(PrefixIndex, RandomLifeIsThatOfAMap) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto rng = [&random] { return static_cast<uint32_t>(random()); };
    const uint32_t blocks = 1 + rng() % 48;
    const uint64_t places = 1 + rng() % 64;
    PrefixIndex index(blocks);
    std::map<BlockId, PrefixHash> reference;
    for (int i = 0; i < 600; ++i) {
      const BlockId id = rng() % blocks;
      const PrefixHash hash{.low = rng() % places * 0xffff'fff1ULL, .high = rng() % 3};
      const auto at = reference.find(id);
      const bool known = std::any_of(reference.begin(), reference.end(),
                                     [&](const auto& pair) { return pair.second == hash; });
      if (at != reference.end()) {
        index.Erase(at->second, id);
        reference.erase(at);
      } else if (!known) {
        index.Insert(hash, id);
        reference.emplace(id, hash);
      }
      ASSERT_EQ(index.size(), reference.size());
      for (const auto& [block, of] : reference) {
        const auto is = [&](BlockId found) { return reference.at(found) == of; };
        ASSERT_EQ(index.Find(of, is), block);
      }
      const PrefixHash other{.low = hash.low, .high = 3};
      ASSERT_EQ(index.Find(other, [&](BlockId found) { return reference.at(found) == other; }),
                kNoBlock);
    }
  }
}

}  // namespace
}  // namespace weir
