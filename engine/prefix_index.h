// PrefixIndex: which block holds the prefix with a given hash.
//
// Represents at most so many (hash, block) pairs as a table of fixed size, at most half full, in
// which a pair lies at its hash's place or close behind (open addressing, linear probing). A look,
// an entry and an exit touch a cache line, rarely two, which can be fetched ahead as soon as the
// hash is known, and take no memory: a step may do hundreds of each. A pair keeps a part of its
// hash only. Whoever looks says which of the blocks it is; hash, parent and tokens are with the
// block. Engine thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/kv_block.h"
#include "engine/prefetch.h"

namespace weir {

class PrefixIndex {
 public:
  // |most|: pairs, all together.
  explicit PrefixIndex(size_t most);

  size_t size() const { return size_; }
  // The first block for which |is| holds, of those whose prefixes may have |hash|; else kNoBlock.
  template <typename IsFn>
  BlockId Find(const PrefixHash& hash, IsFn is) const {
    const auto tag = static_cast<uint32_t>(hash.low);
    for (size_t at = HomeOf(tag); slots_[at].block != kNoBlock; at = Next(at)) {
      if (slots_[at].tag == tag && is(slots_[at].block)) return slots_[at].block;
    }
    return kNoBlock;
  }
  // |block| has no pair so far.
  void Insert(const PrefixHash& hash, BlockId block);
  // The pair is in the index.
  void Erase(const PrefixHash& hash, BlockId block);
  // Fetches what the calls above are going to read.
  void PrefetchFor(const PrefixHash& hash) const {
    Prefetch(&slots_[HomeOf(static_cast<uint32_t>(hash.low))], sizeof(Slot));
  }

 private:
  struct Slot {
    uint32_t tag = 0;  // low bits of the hash; their low bits are the place
    BlockId block = kNoBlock;
  };
  size_t HomeOf(uint32_t tag) const { return tag & (slots_.size() - 1); }
  size_t Next(size_t at) const { return (at + 1) & (slots_.size() - 1); }

  std::vector<Slot> slots_;  // as many as a power of two
  const size_t most_;
  size_t size_ = 0;
};

}  // namespace weir
