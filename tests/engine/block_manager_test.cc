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
    const BlockContent content{parent, BlockOf(holder.tokens, i)};
    manager.Register(holder.blocks[i], content);
    holder.hashes.push_back(content.hash);
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

// Blocks of many prefixes, taken back from the middle of the order as hits are, and evicted.
TEST(BlockManager, EvictsWhatWasCachedLongestAgo) {
  constexpr uint32_t kBlocks = 40;
  BlockManager manager({.blocks_per_extent = kBlocks, .max_extents = 1});
  manager.AddExtent(0);
  std::mt19937 rng(3);
  std::map<BlockId, std::vector<int32_t>> content;
  std::vector<BlockId> held;
  std::vector<BlockId> cached;  // oldest first
  int32_t next = 0;
  uint64_t evicted = 0;
  for (int step = 0; step < 20'000; ++step) {
    const auto pick = [&rng](size_t n) { return static_cast<std::ptrdiff_t>(rng() % n); };
    if (rng() % 3 == 0 && manager.available() > 0) {
      const bool evicts = manager.counts().free == 0;
      const BlockId id = manager.Allocate(kNobody).value();
      if (evicts) {
        ASSERT_EQ(id, cached.front());
        cached.erase(cached.begin());
        ++evicted;
      }
      content[id] = Tokens(kBlockTokens, next += 100);
      manager.Register(id, {PrefixRoot(0), BlockOf(content[id], 0)});
      held.push_back(id);
    } else if (rng() % 2 == 0 && !held.empty()) {
      const auto at = held.begin() + pick(held.size());
      ASSERT_EQ(manager.Release(*at), BlockManager::Released::kCached);
      cached.push_back(*at);
      held.erase(at);
    } else if (!cached.empty()) {
      const auto at = cached.begin() + pick(cached.size());
      std::vector<PrefixHash> hashes;
      ASSERT_EQ(manager.MatchAndAcquire(PrefixRoot(0), content[*at], 1, &hashes),
                std::vector<BlockId>{*at});
      held.push_back(*at);
      cached.erase(at);
    }
    ASSERT_EQ(manager.counts().cached, cached.size());
    const Status status = manager.CheckIntegrity();
    ASSERT_TRUE(status.ok()) << status.ToString();
  }
  EXPECT_GT(evicted, 1'000U);
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
            const BlockContent computed{parent, BlockOf(h.tokens, i)};
            manager.Register(id, computed);
            h.hashes.push_back(computed.hash);
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

TEST(BlockManager, OneTenantsBlocksAreNeverScrubbed) {
  BlockManager manager({.blocks_per_extent = 2, .max_extents = 2});
  manager.AddExtent(0);
  const BlockId calibrated = manager.Allocate(kNobody).value();
  manager.Release(calibrated);
  for (int i = 0; i < 4; ++i) {
    const BlockId id = manager.Allocate(PrefixRoot(7)).value();
    manager.Release(id);
  }
  std::vector<uint32_t> extents;
  std::vector<BlockMoveRequest> moves;
  ASSERT_TRUE(manager.VacateExtents(1, &extents, &moves).ok());
  manager.AddExtent(1);
  EXPECT_TRUE(manager.Allocate(PrefixRoot(7)).ok());
  EXPECT_TRUE(manager.unscrubbed().empty());
}

TEST(BlockManager, ABlockThatChangesTenantsIsToBeScrubbed) {
  for (const bool scrub : {true, false}) {
    BlockManager manager({.blocks_per_extent = 1, .max_extents = 2, .scrub = scrub});
    manager.AddExtent(0);
    manager.Release(manager.Allocate(PrefixRoot(1)).value());
    const BlockId id = manager.Allocate(PrefixRoot(2)).value();
    EXPECT_EQ(manager.unscrubbed().contains(id), scrub);
    manager.OnScrubbed();
    EXPECT_TRUE(manager.unscrubbed().empty());
    manager.Release(id);
    EXPECT_EQ(*manager.Allocate(PrefixRoot(2)), id);
    EXPECT_TRUE(manager.unscrubbed().empty()) << "its own again";
    // What comes back from outside may hold the bytes of either.
    manager.AddExtent(1);
    EXPECT_EQ(*manager.Allocate(PrefixRoot(2)), 1U);
    EXPECT_EQ(manager.unscrubbed().contains(1), scrub);
  }
}

// Random life of several tenants over memory that remembers every byte's writer: extents come and
// go with what is in them, blocks move, moves are lost, steps are put off.
class Tenants {
 public:
  explicit Tenants(uint64_t seed)
      : rng_(seed),
        per_extent_(1 + Pick(4)),
        max_extents_(2 + Pick(8)),
        tenants_(1 + Pick(3)),
        manager_({.blocks_per_extent = per_extent_, .max_extents = max_extents_}),
        away_(size_t{per_extent_} * max_extents_) {}

  void Run() {
    for (int i = 0; i < 400; ++i) {
      switch (Pick(5)) {
        case 0: Grow(Pick(max_extents_)); break;
        case 1: Allocate(); break;
        case 2: Step(); break;
        case 3: Release(); break;
        case 4: Shrink(); break;
      }
      const Status status = manager_.CheckIntegrity();
      ASSERT_TRUE(status.ok()) << status.ToString();
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
  uint64_t scrubbed() const { return scrubbed_; }
  uint32_t tenants() const { return tenants_; }

 private:
  struct Held {
    BlockId block;
    uint64_t tenant;
    bool computed;
  };
  uint32_t Pick(uint64_t n) { return static_cast<uint32_t>(rng_() % n); }

  void Grow(uint32_t extent) {
    if (!mapped_.insert(extent).second) return;
    manager_.AddExtent(extent);
    for (uint32_t i = 0; i < per_extent_; ++i) {
      std::swap(away_[Pick(away_.size())], away_.back());
      writers_[extent * per_extent_ + i] = std::move(away_.back());
      away_.pop_back();
    }
  }

  void Allocate() {
    const uint64_t tenant = Pick(tenants_);
    for (uint32_t n = 1 + Pick(4); n > 0 && manager_.available() > 0; --n) {
      held_.push_back({manager_.Allocate(PrefixRoot(tenant)).value(), tenant, false});
    }
  }

  // Scrubs, then reads and writes all that is held.
  void Step() {
    for (const BlockId block : manager_.unscrubbed()) writers_.at(block).clear();
    scrubbed_ += manager_.unscrubbed().size();
    manager_.OnScrubbed();
    for (Held& h : held_) {
      for (const uint64_t writer : writers_.at(h.block)) ASSERT_EQ(writer, h.tenant);
      writers_.at(h.block).insert(h.tenant);
      h.computed = true;
    }
  }

  void Release() {
    if (held_.empty()) return;
    const auto at = held_.begin() + Pick(held_.size());
    if (at->computed && Pick(2) == 0) {
      const auto tokens = Tokens(kBlockTokens, next_content_++);
      manager_.Register(at->block, {PrefixRoot(at->tenant), BlockOf(tokens, 0)});
    }
    manager_.Release(at->block);
    held_.erase(at);
  }

  void Shrink() {
    std::vector<uint32_t> extents;
    std::vector<BlockMoveRequest> moves;
    if (!manager_.VacateExtents(1 + Pick(2), &extents, &moves).ok()) return;
    const bool lost = Pick(4) == 0;
    for (const auto& m : moves) {
      if (lost) {
        manager_.Distrust(m.to);
      } else {
        writers_.at(m.to) = writers_.at(m.from);
      }
      for (Held& h : held_) {
        if (h.block == m.from) h.block = m.to;
      }
    }
    for (const uint32_t e : extents) {
      mapped_.erase(e);
      for (uint32_t i = 0; i < per_extent_; ++i) {
        away_.push_back(std::move(writers_.at(e * per_extent_ + i)));
        writers_.erase(e * per_extent_ + i);
      }
    }
    if (!lost) return;
    for (const Held& h : held_) manager_.Release(h.block);  // all are preempted
    held_.clear();
    manager_.ClearPrefixCache();
    for (const uint32_t e : extents) Grow(e);
  }

  std::mt19937_64 rng_;
  const uint32_t per_extent_;
  const uint32_t max_extents_;
  const uint32_t tenants_;
  BlockManager manager_;
  std::set<uint32_t> mapped_;
  std::map<BlockId, std::set<uint64_t>> writers_;  // of the bytes of each block
  std::vector<std::set<uint64_t>> away_;           // likewise, of memory that is not KV now
  std::vector<Held> held_;
  int32_t next_content_ = 0;
  uint64_t scrubbed_ = 0;
};

TEST(BlockManager, RandomLifeNeverShowsOneTenantAnothersBytes) {
  const uint64_t runs = testing::Iterations("WEIR_PROPERTY_RUNS", 400);
  uint64_t scrubbed = 0;
  for (uint64_t seed = 0; seed < runs; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Tenants tenants(seed);
    tenants.Run();
    if (HasFatalFailure()) return;
    if (tenants.tenants() == 1) {
      ASSERT_EQ(tenants.scrubbed(), 0U);
    }
    scrubbed += tenants.scrubbed();
  }
  EXPECT_GT(scrubbed, 0U);
}

}  // namespace
}  // namespace weir
