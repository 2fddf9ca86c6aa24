#include "engine/prefix_index.h"

#include <bit>

#include "vmm/check.h"

namespace weir {

PrefixIndex::PrefixIndex(size_t most) : slots_(std::bit_ceil(2 * most + 1)), most_(most) {}

void PrefixIndex::Insert(const PrefixHash& hash, BlockId block) {
  WEIR_CHECK(size_ < most_, "more prefixes than blocks");
  const auto tag = static_cast<uint32_t>(hash.low);
  size_t at = HomeOf(tag);
  while (slots_[at].block != kNoBlock) at = Next(at);
  slots_[at] = {tag, block};
  ++size_;
}

void PrefixIndex::Erase(const PrefixHash& hash, BlockId block) {
  size_t hole = HomeOf(static_cast<uint32_t>(hash.low));
  while (slots_[hole].block != block) {
    WEIR_CHECK(slots_[hole].block != kNoBlock, "a prefix that was never entered");
    hole = Next(hole);
  }
  // A pair behind the hole that may lie there moves into it, so that no look ends at the hole.
  const size_t mask = slots_.size() - 1;
  for (size_t at = Next(hole); slots_[at].block != kNoBlock; at = Next(at)) {
    const size_t from_home = (at - HomeOf(slots_[at].tag)) & mask;
    if (from_home < ((at - hole) & mask)) continue;
    slots_[hole] = slots_[at];
    hole = at;
  }
  slots_[hole] = {};
  --size_;
}

}  // namespace weir
