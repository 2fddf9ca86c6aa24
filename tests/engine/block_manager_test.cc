#include "engine/block_manager.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include <gtest/gtest.h>

#include "tests/support/iterations.h"

namespace weir {
namespace {

std::vector<int32_t> Tokens(uint32_t n, int32_t first = 0) {
  std::vector<int32_t> tokens(n);
  for (uint32_t i = 0; i < n; ++i) tokens[i] = first + static_cast<int32_t>(i);
  return tokens;
}

std::span<const int32_t, kBlockTokens> BlockOf(const std::vector<int32_t>& tokens, uint32_t i) {
  return std::span<const int32_t>(tokens).subspan(size_t{i} * kBlockTokens).first<kBlockTokens>();
}

// A sequence as the scheduler would keep it.
struct Holder {
  std::vector<int32_t> tokens;
  std::vector<BlockId> blocks;
  std::vector<PrefixHash> hashes;
  PrefixHash root;
};

void Fill(BlockManager& manager, Holder& holder) {
  const auto whole = static_cast<uint32_t>(holder.tokens.size()) / kBlockTokens;
  while (holder.blocks.size() < whole) {
    const auto i = static_cast<uint32_t>(holder.blocks.size());
    holder.blocks.push_back(manager.Allocate(kNobody).value());
    const PrefixHash parent = i == 0 ? holder.root : holder.hashes[i - 1];
    holder.hashes.push_back(manager.Register(holder.blocks[i], parent, BlockOf(holder.tokens, i)));
  }
}

void ReleaseAll(BlockManager& manager, Holder& holder) {
  for (auto it = holder.blocks.rbegin(); it != holder.blocks.rend(); ++it) manager.Release(*it);
  holder.blocks.clear();
}

TEST(BlockManager, SamePromptTwiceHitsAllBlocksButTheOneWithItsLastToken) {
  BlockManager manager({.blocks_per_extent = 4, .max_extents = 4});
  manager.AddExtent(0);
  manager.AddExtent(1);
  Holder first{Tokens(64), {}, {}, PrefixRoot(0)};
  Fill(manager, first);
  std::vector<PrefixHash> hashes;
  const auto hit = manager.MatchAndAcquire(PrefixRoot(0), first.tokens, 63 / kBlockTokens, &hashes);
  EXPECT_EQ(hit.size(), 3u);
  EXPECT_EQ(hashes, std::vector(first.hashes.begin(), first.hashes.begin() + 3));
  EXPECT_TRUE(manager.CheckIntegrity().ok());
}

TEST(BlockManager, SaltSeparatesTenants) {
  BlockManager manager({.blocks_per_extent = 4, .max_extents = 1});
  manager.AddExtent(0);
  Holder mine{Tokens(32), {}, {}, PrefixRoot(1)};
  Fill(manager, mine);
  std::vector<PrefixHash> hashes;
  EXPECT_TRUE(manager.MatchAndAcquire(PrefixRoot(2), mine.tokens, 2, &hashes).empty());
  EXPECT_EQ(manager.MatchAndAcquire(PrefixRoot(1), mine.tokens, 2, &hashes).size(), 2u);
}

TEST(BlockManager, EqualTokensAfterAnotherParentDoNotHit) {
  BlockManager manager({.blocks_per_extent = 8, .max_extents = 1});
  manager.AddExtent(0);
  std::vector<int32_t> tokens = Tokens(32);
  Holder holder{tokens, {}, {}, PrefixRoot(0)};
  Fill(manager, holder);
  tokens[0] = 99;  // the second block's own tokens are the same
  std::vector<PrefixHash> hashes;
  EXPECT_TRUE(manager.MatchAndAcquire(PrefixRoot(0), tokens, 2, &hashes).empty());
}

TEST(BlockManager, TailOfAPrefixIsEvictedBeforeItsHead) {
  BlockManager manager({.blocks_per_extent = 4, .max_extents = 1});
  manager.AddExtent(0);
  Holder holder{Tokens(64), {}, {}, PrefixRoot(0)};
  Fill(manager, holder);
  ReleaseAll(manager, holder);
  EXPECT_EQ(manager.counts().cached, 4u);
  EXPECT_TRUE(manager.Allocate(kNobody).ok());
  std::vector<PrefixHash> hashes;
  EXPECT_EQ(manager.MatchAndAcquire(PrefixRoot(0), holder.tokens, 4, &hashes).size(), 3u);
}

TEST(BlockManager, UsedBlocksAreNeverEvicted) {
  BlockManager manager({.blocks_per_extent = 2, .max_extents = 1});
  manager.AddExtent(0);
  EXPECT_TRUE(manager.Allocate(kNobody).ok());
  EXPECT_TRUE(manager.Allocate(kNobody).ok());
  EXPECT_EQ(manager.Allocate(kNobody).status().code(), StatusCode::kNoMemory);
}

TEST(BlockManager, VacatingTakesEmptyExtentsFirstAndMovesWhatIsUsed) {
  BlockManager manager({.blocks_per_extent = 2, .max_extents = 3});
  for (uint32_t e = 0; e < 3; ++e) manager.AddExtent(e);
  std::vector<BlockId> held;
  for (int i = 0; i < 3; ++i) held.push_back(manager.Allocate(kNobody).value());  // blocks 0, 1, 2
  std::vector<uint32_t> extents;
  std::vector<BlockMoveRequest> moves;
  ASSERT_TRUE(manager.VacateExtents(1, &extents, &moves).ok());
  EXPECT_EQ(extents, std::vector<uint32_t>{2});
  EXPECT_TRUE(moves.empty());
  manager.Release(held[0]);
  ASSERT_TRUE(manager.VacateExtents(1, &extents, &moves).ok());
  ASSERT_EQ(moves.size(), 1u);
  EXPECT_EQ(moves[0].to / 2, 1 - moves[0].from / 2);
  EXPECT_EQ(manager.VacateExtents(1, &extents, &moves).code(), StatusCode::kNoMemory);
  EXPECT_TRUE(manager.CheckIntegrity().ok());
}

// Random life against a reference that knows the content of every block.
TEST(BlockManager, RandomLifeNeverServesAStaleBlock) {
  const uint64_t runs = testing::Iterations("WEIR_PROPERTY_RUNS", 200);
  for (uint64_t seed = 0; seed < runs; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 rng(seed);
    const auto pick = [&rng](uint64_t n) { return static_cast<uint32_t>(rng() % n); };
    const uint32_t per_extent = 1 + pick(4);
    const uint32_t max_extents = 2 + pick(8);
    BlockManager manager({.blocks_per_extent = per_extent, .max_extents = max_extents});
    std::set<uint32_t> mapped;
    // Content of a block as a device would hold it: (root salt, tokens up to and including it).
    std::map<BlockId, std::pair<uint64_t, std::vector<int32_t>>> content;
    std::vector<std::pair<uint64_t, Holder>> holders;
    for (int step = 0; step < 200; ++step) {
      switch (pick(6)) {
        case 0: {
          const uint32_t e = pick(max_extents);
          if (mapped.insert(e).second) manager.AddExtent(e);
          break;
        }
        case 1:
        case 2: {  // a new sequence: prefix hit, then allocate and compute the rest
          const uint64_t salt = pick(2);
          Holder h{Tokens(kBlockTokens * (1 + pick(5)), static_cast<int32_t>(pick(2))),
                   {},
                   {},
                   PrefixRoot(salt)};
          if (pick(3) == 0) h.tokens[pick(h.tokens.size())] += 1000;
          h.blocks = manager.MatchAndAcquire(
              h.root, h.tokens, static_cast<uint32_t>(h.tokens.size()) / kBlockTokens, &h.hashes);
          for (uint32_t i = 0; i < h.blocks.size(); ++i) {
            const std::vector<int32_t> prefix(h.tokens.begin(),
                                              h.tokens.begin() + (i + 1) * kBlockTokens);
            ASSERT_EQ(content.at(h.blocks[i]), std::make_pair(salt, prefix)) << "stale hit";
          }
          const auto whole = static_cast<uint32_t>(h.tokens.size()) / kBlockTokens;
          if (manager.available() < whole - h.blocks.size()) {
            ReleaseAll(manager, h);
            break;
          }
          for (auto i = static_cast<uint32_t>(h.blocks.size()); i < whole; ++i) {
            const BlockId id = manager.Allocate(kNobody).value();
            h.blocks.push_back(id);
            content[id] = {salt, std::vector<int32_t>(h.tokens.begin(),
                                                      h.tokens.begin() + (i + 1) * kBlockTokens)};
            const PrefixHash parent = i == 0 ? h.root : h.hashes[i - 1];
            h.hashes.push_back(manager.Register(id, parent, BlockOf(h.tokens, i)));
          }
          holders.emplace_back(salt, std::move(h));
          break;
        }
        case 3: {
          if (holders.empty()) break;
          const uint32_t i = pick(holders.size());
          ReleaseAll(manager, holders[i].second);
          holders.erase(holders.begin() + i);
          break;
        }
        case 4: {
          std::vector<uint32_t> extents;
          std::vector<BlockMoveRequest> moves;
          const BlockCounts before = manager.counts();
          const uint32_t n = 1 + pick(2);
          if (!manager.VacateExtents(n, &extents, &moves).ok()) {
            EXPECT_EQ(before.capacity, manager.counts().capacity);
            break;
          }
          for (const auto& m : moves) {
            ASSERT_EQ(std::count(extents.begin(), extents.end(), m.to / per_extent), 0);
            content[m.to] = content.at(m.from);
            for (auto& [salt, h] : holders)
              std::replace(h.blocks.begin(), h.blocks.end(), m.from, m.to);
          }
          for (const uint32_t e : extents) {
            mapped.erase(e);
            for (uint32_t i = 0; i < per_extent; ++i) content.erase(e * per_extent + i);
          }
          break;
        }
        case 5:
          if (pick(20) == 0) manager.ClearPrefixCache();
          break;
      }
      const Status status = manager.CheckIntegrity();
      ASSERT_TRUE(status.ok()) << status.ToString();
      // Live sequences still find their own bytes.
      for (const auto& [salt, h] : holders) {
        for (uint32_t i = 0; i < h.blocks.size(); ++i) {
          ASSERT_EQ(content.at(h.blocks[i]).second.size(), size_t{i + 1} * kBlockTokens);
        }
      }
    }
    for (auto& [salt, h] : holders) ReleaseAll(manager, h);
    EXPECT_EQ(manager.counts().used, 0u);
  }
}

}  // namespace
}  // namespace weir
