// BlockManager: who holds which KV block, and which blocks a new prompt can reuse.
//
// Represents the mapped part of the KV arena, in blocks of 16 tokens, and the prefix index over it.
// A block is
//   unmapped  its extent has no granules;
//   free      mapped, holds nothing;
//   used      held by ref_count >= 1 sequences (several when they share a prefix);
//   cached    held by nobody, but the index knows its content: the next victim by age.
// K1 free + cached + used = capacity. K2 a prefix hit needs hash, parent and tokens equal. K3 a
// block's index entry goes before its bytes do. Prefix caching as in vLLM V1 (chained hashes of
// full blocks), with the extent as the unit of reclaim so that whole granules come free. K4 a block
// that went from one tenant to another is in unscrubbed() until it has been zeroed. Engine thread
// only; touches no memory: moves and scrubbing are left for the caller to carry out.
#pragma once

#include <array>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/block_set.h"
#include "engine/kv_block.h"
#include "engine/prefetch.h"
#include "engine/prefix_index.h"
#include "vmm/status.h"
#include "vmm/trace_format.h"

namespace weir {

// A tenant is named by its PrefixRoot: who may not share a prefix may not read a stale byte either.
// Whoever writes nothing worth hiding (calibration) is nobody.
inline constexpr PrefixHash kNobody{};

struct BlockMoveRequest {
  BlockId from = kNoBlock;
  BlockId to = kNoBlock;
};

struct BlockCounts {
  uint32_t capacity = 0, free = 0, cached = 0, used = 0;
};

struct PrefixCacheStats {
  uint64_t queried_tokens = 0;
  uint64_t hit_tokens = 0;
  uint64_t evicted_blocks = 0;  // index entries dropped to reuse or give up a block
};

class BlockManager {
 public:
  struct Options {
    uint32_t blocks_per_extent = 1;
    uint32_t max_extents = 0;
    bool prefix_caching = true;
    bool scrub = true;  // between tenants
  };
  explicit BlockManager(const Options& options);
  BlockManager(const BlockManager&) = delete;
  BlockManager& operator=(const BlockManager&) = delete;

  bool prefix_caching() const { return options_.prefix_caching; }
  const BlockCounts& counts() const { return counts_; }
  const PrefixCacheStats& prefix_stats() const { return prefix_stats_; }
  // Blocks an Allocate can still give: free ones, and cached ones by evicting them.
  uint32_t available() const { return counts_.free + counts_.cached; }

  // |extent| has been mapped: its blocks are free.
  void AddExtent(uint32_t extent);

  // A block for one sequence of |tenant| (ref_count 1). Evicts the least recently used cached block
  // when none is free. kNoMemory when everything is used.
  Result<BlockId> Allocate(const PrefixHash& tenant);
  // One more holder of a used or cached block.
  void Acquire(BlockId block);
  // One holder less. The last one leaves it cached (if indexed) or free. A sequence releases its
  // blocks last to first, so that the tail of a prefix is older than its head.
  enum class Released : uint8_t { kStillUsed, kCached, kFree };
  Released Release(BlockId block);

  // The longest indexed prefix of |tokens| in whole blocks, at most |max_blocks| of them; their
  // blocks are acquired. Fills |hashes| with the chain of the matched blocks. |sequence|: whose
  // hits they are in the trace.
  std::vector<BlockId> MatchAndAcquire(const PrefixHash& root, std::span<const int32_t> tokens,
                                       uint32_t max_blocks, std::vector<PrefixHash>* hashes,
                                       uint64_t sequence = kTraceNoSequence);
  // Counts one admitted prompt in the statistics (a prompt may be matched several times before).
  void CountQuery(uint64_t tokens, uint64_t hit_tokens) {
    prefix_stats_.queried_tokens += tokens;
    prefix_stats_.hit_tokens += hit_tokens;
  }
  // |block| (used) now holds the computed KV of |content|. If equal content is indexed already, the
  // older entry stays and |block| remains private.
  void Register(BlockId block, const BlockContent& content);
  // Fetches what Register is going to touch.
  void PrefetchFor(BlockId block, const BlockContent& content) const;

  // Picks |n| extents whose loss costs least (fewest used blocks, then least recently used cached
  // ones), drops their cached blocks with their index entries, and finds new places for their used
  // blocks. On success the extents hold nothing once the caller has carried out |moves| (copy the
  // bytes, patch block tables), and their blocks are no longer counted.
  // kNoMemory, nothing changed, when the rest cannot take the used blocks.
  Status VacateExtents(uint32_t n, std::vector<uint32_t>* extents,
                       std::vector<BlockMoveRequest>* moves);
  // How many extents VacateExtents could give now.
  uint32_t VacatableExtents() const;
  // Of them, those that no block need be moved out of.
  uint32_t UnusedExtents() const;

  // Used and free blocks in which another tenant's bytes may stand, in ascending order. They are to
  // be zeroed, whole, before the first step that is submitted from now on writes or reads them.
  const std::set<BlockId>& unscrubbed() const { return unscrubbed_; }
  // They are zero, or will be in time.
  void OnScrubbed();
  // |block| does not hold what it should (its move failed): its bytes may be anybody's.
  void Distrust(BlockId block) { blocks_[block].writer = known_tenants_; }

  // Forgets every cached block and every entry of used ones.
  void ClearPrefixCache();

  // K1, K2 chains, lists and reference counts against the blocks (O(capacity)).
  Status CheckIntegrity() const;
  // Tells the trace the capacity and the cached blocks; used ones are their sequences' to tell.
  void TraceState() const;

 private:
  enum class State : uint8_t { kUnmapped, kFree, kUsed, kCached };
  // What is touched when a block changes hands: a cache line.
  struct alignas(64) Block {
    State state = State::kUnmapped;
    bool indexed = false;
    uint32_t ref_count = 0;
    uint64_t last_use = 0;
    PrefixHash writer;  // the tenant whose bytes it may hold besides zeroes
    PrefixHash hash;    // valid iff indexed
    // Of a cached block, its neighbours by age.
    BlockId older = kNoBlock;
    BlockId newer = kNoBlock;
    // What became cached kPrefetchAhead blocks after it did, to be fetched when this one is
    // evicted: a hint, good or not.
    BlockId ahead = kNoBlock;
  };
  static_assert(sizeof(Block) == 64);
  // What tells equal hashes apart; valid iff the block is indexed.
  struct Identity {
    PrefixHash parent;
    std::array<int32_t, kBlockTokens> tokens{};
  };
  static constexpr PrefixHash kAnybody{~0ULL, ~0ULL};

  // The indexed block with this hash, or kNoBlock.
  BlockId Find(const PrefixHash& hash) const {
    return index_.Find(hash, [&](BlockId id) { return blocks_[id].hash == hash; });
  }
  bool Holds(BlockId id, const BlockContent& content) const;
  // Takes a block as Allocate does, in whichever tenant's name.
  Result<BlockId> Take();
  void PrefetchVictims() const;
  void AddNewest(BlockId id);
  void DropFromAges(BlockId id);
  void HandTo(BlockId id, const PrefixHash& tenant);
  uint32_t ExtentOf(BlockId id) const { return id / options_.blocks_per_extent; }
  void SetState(BlockId id, State to);
  void DropEntry(BlockId id);
  void MoveContent(BlockId from, BlockId to);

  Options options_;
  std::vector<Block> blocks_;         //
  std::vector<Identity> identities_;  // by block
  BlockSet free_;                     // the lowest is taken: low extents fill, high ones empty
  BlockId oldest_ = kNoBlock;         // of the cached blocks: the next to be evicted
  BlockId newest_ = kNoBlock;
  std::array<BlockId, kPrefetchAhead> cached_last_;  // in turn
  std::set<BlockId> unscrubbed_;
  // Whose bytes memory may hold that was KV before: nobody's, the only tenant's, or kAnybody's.
  PrefixHash known_tenants_ = kNobody;
  PrefixIndex index_;
  std::vector<uint32_t> used_in_extent_;
  std::vector<bool> extent_mapped_;
  BlockCounts counts_;
  PrefixCacheStats prefix_stats_;
  uint64_t clock_ = 0;
};

}  // namespace weir
