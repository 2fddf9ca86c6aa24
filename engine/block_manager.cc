#include "engine/block_manager.h"

#include <algorithm>

#include "engine/kv_trace.h"

namespace weir {
namespace {

struct HitRun {
  BlockId first = 0;
  uint32_t count = 0;
  bool cached = false;

  void Emit(uint64_t sequence) {
    if (count == 0) return;
    TraceEmit(TraceType::kKvHit, 0, sequence, count, Tier::kHbm, first, cached ? count : 0);
    count = 0;
  }
};

void TraceUnmapped(BlockId block, uint32_t capacity) {
  TraceEmit(TraceType::kKvCapacity, 0, block, 1, 0, capacity);
}

}  // namespace

BlockManager::BlockManager(const Options& options)
    : options_(options),
      blocks_(size_t{options.blocks_per_extent} * options.max_extents),
      identities_(options.prefix_caching ? blocks_.size() : 0),
      free_(blocks_.size()),
      index_(identities_.size()),
      used_in_extent_(options.max_extents),
      extent_mapped_(options.max_extents) {
  WEIR_CHECK(options.blocks_per_extent > 0, "an extent holds at least one block");
  cached_last_.fill(kNoBlock);
}

void BlockManager::AddExtent(uint32_t extent) {
  WEIR_CHECK(extent < options_.max_extents && !extent_mapped_[extent], "extent added twice");
  extent_mapped_[extent] = true;
  for (uint32_t i = 0; i < options_.blocks_per_extent; ++i) {
    const BlockId id = extent * options_.blocks_per_extent + i;
    blocks_[id].writer = known_tenants_;
    SetState(id, State::kFree);
  }
  TraceEmit(TraceType::kKvCapacity, 0, extent * options_.blocks_per_extent,
            options_.blocks_per_extent, 1, counts_.capacity);
}

void BlockManager::SetState(BlockId id, State to) {
  Block& b = blocks_[id];
  switch (b.state) {
    case State::kUnmapped: ++counts_.capacity; break;
    case State::kFree:
      --counts_.free;
      free_.Erase(id);
      break;
    case State::kUsed:
      --counts_.used;
      --used_in_extent_[ExtentOf(id)];
      break;
    case State::kCached:
      --counts_.cached;
      DropFromAges(id);
      break;
  }
  b.state = to;
  switch (to) {
    case State::kUnmapped:
      --counts_.capacity;
      unscrubbed_.erase(id);
      break;
    case State::kFree:
      ++counts_.free;
      free_.Insert(id);
      break;
    case State::kUsed:
      ++counts_.used;
      ++used_in_extent_[ExtentOf(id)];
      break;
    case State::kCached:
      ++counts_.cached;
      AddNewest(id);
      break;
  }
}

void BlockManager::AddNewest(BlockId id) {
  Block& b = blocks_[id];
  b.last_use = ++clock_;
  b.older = newest_;
  b.newer = kNoBlock;
  (newest_ == kNoBlock ? oldest_ : blocks_[newest_].newer) = id;
  newest_ = id;
  BlockId& turn = cached_last_[clock_ % kPrefetchAhead];
  if (turn != kNoBlock) blocks_[turn].ahead = id;
  turn = id;
}

void BlockManager::DropFromAges(BlockId id) {
  const Block& b = blocks_[id];
  (b.older == kNoBlock ? oldest_ : blocks_[b.older].newer) = b.newer;
  (b.newer == kNoBlock ? newest_ : blocks_[b.newer].older) = b.older;
}

void BlockManager::DropEntry(BlockId id) {
  Block& b = blocks_[id];
  if (!b.indexed) return;
  index_.Erase(b.hash, id);
  b.indexed = false;
  ++prefix_stats_.evicted_blocks;
  if (b.state == State::kCached) TraceEmit(TraceType::kKvEvict, 0, id, 1, kTraceNoTier);
}

Result<BlockId> BlockManager::Allocate(const PrefixHash& tenant) {
  const BlockId id = WEIR_TRY(Take());
  HandTo(id, tenant);
  return id;
}

void BlockManager::HandTo(BlockId id, const PrefixHash& tenant) {
  if (tenant == kNobody) return;  // what it holds stays whose it was
  PrefixHash& writer = blocks_[id].writer;
  if (writer != kNobody && writer != tenant && options_.scrub) unscrubbed_.insert(id);
  writer = tenant;
  if (known_tenants_ != tenant) known_tenants_ = known_tenants_ == kNobody ? tenant : kAnybody;
}

void BlockManager::OnScrubbed() {
  unscrubbed_.clear();
}

Result<BlockId> BlockManager::Take() {
  BlockId id = kNoBlock;
  if (!free_.empty()) {
    id = free_.Lowest();
  } else if (oldest_ != kNoBlock) {
    PrefetchVictims();
    id = oldest_;
    DropEntry(id);  // K3: before the bytes are overwritten
  } else {
    return NoMemory("all " + std::to_string(counts_.capacity) + " KV blocks are used");
  }
  SetState(id, State::kUsed);
  blocks_[id].ref_count = 1;
  return id;
}

// A step may evict hundreds, whose order by age is not that in memory, and following the order by
// itself waits for each. Of the blocks after the oldest: one soon, and the index entry of one
// sooner.
void BlockManager::PrefetchVictims() const {
  BlockId id = oldest_;
  if (blocks_[id].ahead != kNoBlock) Prefetch(&blocks_[blocks_[id].ahead], sizeof(Block));
  for (size_t i = 0; i < kPrefetchAhead / 2 && id != kNoBlock; ++i) id = blocks_[id].newer;
  if (id != kNoBlock) index_.PrefetchFor(blocks_[id].hash);
}

void BlockManager::Acquire(BlockId id) {
  Block& b = blocks_[id];
  if (b.state == State::kCached) SetState(id, State::kUsed);
  WEIR_CHECK(b.state == State::kUsed, "only used and cached blocks can be shared");
  ++b.ref_count;
}

BlockManager::Released BlockManager::Release(BlockId id) {
  Block& b = blocks_[id];
  WEIR_CHECK(b.state == State::kUsed && b.ref_count > 0, "release of a block nobody holds");
  if (--b.ref_count > 0) return Released::kStillUsed;
  SetState(id, b.indexed ? State::kCached : State::kFree);
  return b.indexed ? Released::kCached : Released::kFree;
}

std::vector<BlockId> BlockManager::MatchAndAcquire(const PrefixHash& root,
                                                   std::span<const int32_t> tokens,
                                                   uint32_t max_blocks,
                                                   std::vector<PrefixHash>* hashes,
                                                   uint64_t sequence) {
  std::vector<BlockId> matched;
  hashes->clear();
  if (!options_.prefix_caching) return matched;
  PrefixHash parent = root;
  HitRun hits;
  for (uint32_t i = 0; i < max_blocks && (size_t{i} + 1) * kBlockTokens <= tokens.size(); ++i) {
    const auto block_tokens = tokens.subspan(size_t{i} * kBlockTokens).first<kBlockTokens>();
    const BlockContent content{parent, block_tokens};
    const BlockId found = Find(content.hash);
    if (found == kNoBlock || !Holds(found, content)) break;
    const Block& b = blocks_[found];
    // One record a run of neighbours, all cached or all shared.
    const bool cached = b.state == State::kCached;
    if (hits.count != 0 && (hits.first + hits.count != found || hits.cached != cached)) {
      hits.Emit(sequence);
    }
    if (hits.count++ == 0) hits = {found, 1, cached};
    Acquire(found);
    matched.push_back(found);
    hashes->push_back(content.hash);
    parent = content.hash;
  }
  hits.Emit(sequence);
  return matched;
}

// K2: hash equality alone is never identity.
bool BlockManager::Holds(BlockId id, const BlockContent& content) const {
  const Identity& identity = identities_[id];
  return identity.parent == content.parent &&
         std::equal(content.tokens.begin(), content.tokens.end(), identity.tokens.begin());
}

void BlockManager::PrefetchFor(BlockId block, const BlockContent& content) const {
  if (!options_.prefix_caching) return;
  index_.PrefetchFor(content.hash);
  Prefetch(&blocks_[block], sizeof(Block));
  Prefetch(&identities_[block], sizeof(Identity));
}

void BlockManager::Register(BlockId id, const BlockContent& content) {
  Block& b = blocks_[id];
  WEIR_CHECK(b.state == State::kUsed, "only a used block can be registered");
  if (!options_.prefix_caching || b.indexed || Find(content.hash) != kNoBlock) return;
  index_.Insert(content.hash, id);
  b.indexed = true;
  b.hash = content.hash;
  Identity& identity = identities_[id];
  identity.parent = content.parent;
  std::copy(content.tokens.begin(), content.tokens.end(), identity.tokens.begin());
}

void BlockManager::MoveContent(BlockId from, BlockId to) {
  Block& source = blocks_[from];
  Block& target = blocks_[to];
  target.ref_count = source.ref_count;
  target.indexed = source.indexed;
  target.hash = source.hash;
  // The move overwrites the whole block, with zeroes where |from| had them.
  target.writer = source.writer;
  if (unscrubbed_.contains(from)) {
    unscrubbed_.insert(to);
  } else {
    unscrubbed_.erase(to);
  }
  if (source.indexed) {
    identities_[to] = identities_[from];
    index_.Erase(source.hash, from);
    index_.Insert(source.hash, to);
  }
  source.indexed = false;
  source.ref_count = 0;
}

uint32_t BlockManager::VacatableExtents() const {
  // Giving up m extents leaves capacity - m*b blocks, which must hold what is used.
  return (counts_.capacity - counts_.used) / options_.blocks_per_extent;
}

uint32_t BlockManager::UnusedExtents() const {
  uint32_t unused = 0;
  for (uint32_t e = 0; e < options_.max_extents; ++e) {
    if (extent_mapped_[e] && used_in_extent_[e] == 0) ++unused;
  }
  return unused;
}

Status BlockManager::VacateExtents(uint32_t n, std::vector<uint32_t>* extents,
                                   std::vector<BlockMoveRequest>* moves) {
  extents->clear();
  moves->clear();
  if (n > VacatableExtents()) {
    return NoMemory("cannot give up " + std::to_string(n) +
                    " KV extents: " + std::to_string(counts_.used) + " of " +
                    std::to_string(counts_.capacity) + " blocks are used");
  }
  struct Cost {
    uint32_t used;
    uint64_t newest_use;
    uint32_t extent;
  };
  std::vector<Cost> costs;
  for (uint32_t e = 0; e < options_.max_extents; ++e) {
    if (!extent_mapped_[e]) continue;
    Cost cost{used_in_extent_[e], 0, e};
    for (uint32_t i = 0; i < options_.blocks_per_extent; ++i) {
      const Block& b = blocks_[e * options_.blocks_per_extent + i];
      if (b.state == State::kCached) cost.newest_use = std::max(cost.newest_use, b.last_use);
    }
    costs.push_back(cost);
  }
  // Among equals the highest extent goes, so that the arena stays dense at its low end.
  std::sort(costs.begin(), costs.end(), [](const Cost& a, const Cost& b) {
    if (a.used != b.used) return a.used < b.used;
    if (a.newest_use != b.newest_use) return a.newest_use < b.newest_use;
    return a.extent > b.extent;
  });
  for (uint32_t i = 0; i < n; ++i) extents->push_back(costs[i].extent);

  // First everything that is not used leaves, so that no move lands in an extent that goes.
  std::vector<BlockId> leaving_used;
  for (const uint32_t e : *extents) {
    for (uint32_t i = 0; i < options_.blocks_per_extent; ++i) {
      const BlockId id = e * options_.blocks_per_extent + i;
      if (blocks_[id].state == State::kUsed) {
        leaving_used.push_back(id);
        continue;
      }
      DropEntry(id);
      SetState(id, State::kUnmapped);
      TraceUnmapped(id, counts_.capacity);
    }
    extent_mapped_[e] = false;
  }
  for (const BlockId from : leaving_used) {
    const Result<BlockId> to = Take();
    WEIR_CHECK(to.ok(), "VacatableExtents promised room for every used block");
    MoveContent(from, *to);
    TraceEmit(TraceType::kKvMove, 0, from, *to);
    SetState(from, State::kUnmapped);
    TraceUnmapped(from, counts_.capacity);
    moves->push_back({from, *to});
  }
  return OkStatus();
}

void BlockManager::ClearPrefixCache() {
  for (BlockId id = 0; id < blocks_.size(); ++id) {
    DropEntry(id);
    if (blocks_[id].state == State::kCached) SetState(id, State::kFree);
  }
}

void BlockManager::TraceState() const {
  uint32_t capacity = 0;
  for (uint32_t e = 0; e < options_.max_extents; ++e) {
    if (!extent_mapped_[e]) continue;
    capacity += options_.blocks_per_extent;
    TraceEmit(TraceType::kKvCapacity, 0, e * options_.blocks_per_extent, options_.blocks_per_extent,
              1, capacity);
  }
  BlockRuns used(TraceType::kKvAlloc, kTraceNoSequence);
  for (BlockId id = 0; id < blocks_.size(); ++id) {
    if (blocks_[id].state == State::kCached) used.Add(id);
  }
  used.Flush();
  BlockRuns cached(TraceType::kKvFree, kTraceNoSequence);
  for (BlockId id = 0; id < blocks_.size(); ++id) {
    if (blocks_[id].state == State::kCached) cached.Add(id, true);
  }
}

Status BlockManager::CheckIntegrity() const {
  BlockCounts derived;
  std::vector<uint32_t> used(options_.max_extents);
  size_t indexed = 0;
  for (BlockId id = 0; id < blocks_.size(); ++id) {
    const Block& b = blocks_[id];
    const bool mapped = extent_mapped_[ExtentOf(id)];
    const std::string name = "block " + std::to_string(id);
    if ((b.state == State::kUnmapped) == mapped) return BadState(name + ": state against extent");
    if ((b.ref_count > 0) != (b.state == State::kUsed)) return BadState(name + ": references");
    if (b.state == State::kCached && !b.indexed) return BadState(name + ": cached, not indexed");
    if (b.indexed) {
      ++indexed;
      if (Find(b.hash) != id) return BadState(name + ": index entry");
      if (ChainPrefix(identities_[id].parent, identities_[id].tokens) != b.hash)
        return BadState(name + ": hash");
      if (b.state == State::kFree || b.state == State::kUnmapped)
        return BadState(name + ": indexed without content (K3)");
    }
    if (free_.contains(id) != (b.state == State::kFree)) return BadState(name + ": free list");
    if (unscrubbed_.contains(id) &&
        (b.state == State::kUnmapped || b.state == State::kCached || b.writer == kNobody)) {
      return BadState(name + ": to be scrubbed, but computed, unmapped or nobody's (K4)");
    }
    if (mapped) ++derived.capacity;
    if (b.state == State::kFree) ++derived.free;
    if (b.state == State::kCached) ++derived.cached;
    if (b.state == State::kUsed) {
      ++derived.used;
      ++used[ExtentOf(id)];
    }
  }
  if (indexed != index_.size()) return BadState("index has entries without blocks");
  if (derived.capacity != counts_.capacity || derived.free != counts_.free ||
      derived.cached != counts_.cached || derived.used != counts_.used)
    return BadState("block counts");
  if (derived.free + derived.cached + derived.used != derived.capacity) return BadState("K1");
  if (free_.size() != counts_.free) return BadState("free blocks");
  uint32_t aged = 0;
  BlockId older = kNoBlock;
  for (BlockId id = oldest_; id != kNoBlock && aged <= counts_.cached; id = blocks_[id].newer) {
    const Block& b = blocks_[id];
    if (b.state != State::kCached || b.older != older) return BadState("cached blocks by age");
    if (older != kNoBlock && blocks_[older].last_use >= b.last_use)
      return BadState("block " + std::to_string(id) + ": age");
    older = id;
    ++aged;
  }
  if (aged != counts_.cached || newest_ != older) return BadState("cached blocks by age");
  if (used != used_in_extent_) return BadState("used blocks by extent");
  return OkStatus();
}

}  // namespace weir
