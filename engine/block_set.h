// BlockSet: a set of block ids that gives its lowest.
//
// Represents ids below a limit as bits, and which words of them are not empty as bits again: what
// is done to an id touches two words and takes no memory. Not thread-safe.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/kv_block.h"

namespace weir {

class BlockSet {
 public:
  explicit BlockSet(size_t limit)
      : words_((limit + kBits - 1) / kBits), filled_((words_.size() + kBits - 1) / kBits) {}

  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  bool contains(BlockId id) const { return (words_[id / kBits] & Bit(id)) != 0; }
  // Not in the set so far.
  void Insert(BlockId id) {
    const size_t word = id / kBits;
    words_[word] |= Bit(id);
    filled_[word / kBits] |= Bit(word);
    first_ = std::min(first_, word / kBits);
    ++size_;
  }
  // In the set.
  void Erase(BlockId id) {
    const size_t word = id / kBits;
    words_[word] &= ~Bit(id);
    if (words_[word] == 0) filled_[word / kBits] &= ~Bit(word);
    --size_;
  }
  // kNoBlock: the set is empty.
  BlockId Lowest() {
    if (empty()) return kNoBlock;
    while (filled_[first_] == 0) ++first_;
    const size_t word = first_ * kBits + static_cast<size_t>(std::countr_zero(filled_[first_]));
    return static_cast<BlockId>(word * kBits + static_cast<size_t>(std::countr_zero(words_[word])));
  }

 private:
  static constexpr size_t kBits = 64;
  static constexpr uint64_t Bit(size_t n) { return uint64_t{1} << (n % kBits); }

  std::vector<uint64_t> words_;   // bit b of word w: id w * 64 + b
  std::vector<uint64_t> filled_;  // likewise: word w * 64 + b is not 0
  size_t first_ = 0;              // of filled_: every word below is 0
  size_t size_ = 0;
};

}  // namespace weir
