#include "engine/text/bpe_model.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>

#include "engine/text/utf8.h"

namespace weir {
namespace {

// Up to this many symbols, scanning for the best pair beats a queue.
constexpr size_t kShortWord = 48;
constexpr size_t kLongestCachedWord = 48;
constexpr size_t kMaxCacheSlots = 8192;

uint64_t KeyOf(int32_t left, int32_t right) {
  return (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
}

uint64_t HashOf(uint64_t key) {
  key *= 0x9E3779B97F4A7C15u;
  return key ^ (key >> 32);
}

uint64_t HashWord(std::string_view word) {
  uint64_t hash = word.size();
  size_t i = 0;
  for (; i + 8 <= word.size(); i += 8) {
    uint64_t chunk = 0;
    std::memcpy(&chunk, word.data() + i, 8);
    hash = HashOf(hash ^ chunk);
  }
  uint64_t tail = 0;
  std::memcpy(&tail, word.data() + i, word.size() - i);
  return HashOf(hash ^ tail);
}

}  // namespace

void MergeTable::Reserve(size_t merges) {
  Grow(std::bit_ceil(std::max<size_t>(merges, 8) * 2));
}

void MergeTable::Grow(size_t slots) {
  std::vector<Slot> old = std::move(slots_);
  slots_.assign(slots, Slot{});
  for (const Slot& slot : old) {
    if (slot.key != UINT64_MAX) slots_[Probe(slot.key)] = slot;
  }
}

size_t MergeTable::Probe(uint64_t key) const {
  const size_t mask = slots_.size() - 1;
  size_t i = HashOf(key) & mask;
  while (slots_[i].key != UINT64_MAX && slots_[i].key != key) i = (i + 1) & mask;
  return i;
}

void MergeTable::Set(int32_t left, int32_t right, Merge merge) {
  if (slots_.empty() || used_ * 2 >= slots_.size()) Grow(std::max<size_t>(16, slots_.size() * 2));
  const uint64_t key = KeyOf(left, right);
  Slot& slot = slots_[Probe(key)];
  if (slot.key == UINT64_MAX) ++used_;
  slot = {key, merge};
}

MergeTable::Merge MergeTable::Find(int32_t left, int32_t right) const {
  if (slots_.empty() || left < 0 || right < 0) return {};
  return slots_[Probe(KeyOf(left, right))].merge;
}

void RankQueue::Reset(uint32_t rank_count) {
  if (bucket_of_rank_.size() < rank_count) bucket_of_rank_.resize(rank_count, 0);
}

void RankQueue::Push(uint32_t rank, uint32_t position) {
  uint32_t index = bucket_of_rank_[rank];
  if (index == 0) {
    if (free_.empty()) {
      buckets_.emplace_back();
      free_.push_back(static_cast<uint32_t>(buckets_.size()));
    }
    index = free_.back();
    free_.pop_back();
    bucket_of_rank_[rank] = index;
    ranks_.emplace_back(rank, index);
    std::push_heap(ranks_.begin(), ranks_.end(), std::greater<>());
  }
  Bucket& bucket = buckets_[index - 1];
  if (bucket.sorted.empty() || bucket.sorted.back() <= position) {
    bucket.sorted.push_back(position);
  } else {
    bucket.late.push_back(position);
    std::push_heap(bucket.late.begin(), bucket.late.end(), std::greater<>());
  }
}

bool RankQueue::Pop(uint32_t* rank, uint32_t* position) {
  while (!ranks_.empty()) {
    const auto [top, index] = ranks_.front();
    Bucket& bucket = buckets_[index - 1];
    const bool has_sorted = bucket.head < bucket.sorted.size();
    *rank = top;
    if (!bucket.late.empty() && (!has_sorted || bucket.late.front() < bucket.sorted[bucket.head])) {
      *position = bucket.late.front();
      std::pop_heap(bucket.late.begin(), bucket.late.end(), std::greater<>());
      bucket.late.pop_back();
      return true;
    }
    if (has_sorted) {
      *position = bucket.sorted[bucket.head++];
      return true;
    }
    bucket.sorted.clear();
    bucket.head = 0;
    bucket_of_rank_[top] = 0;
    free_.push_back(index);
    std::pop_heap(ranks_.begin(), ranks_.end(), std::greater<>());
    ranks_.pop_back();
  }
  return false;
}

BpeModel::Scratch::Scratch(size_t text_bytes)
    : cache(std::min(kMaxCacheSlots, std::bit_ceil(text_bytes / 8 + 1))) {}

void BpeModel::AppendFallback(std::string_view character, std::vector<int32_t>* symbols) const {
  for (const char c : character) {
    symbols->push_back(fallback_tokens[static_cast<unsigned char>(c)]);
  }
}

void BpeModel::AppendSymbols(std::string_view piece, std::vector<int32_t>* symbols) const {
  if (options.byte_level) {
    for (const char c : piece) {
      const int32_t symbol = byte_symbols[static_cast<unsigned char>(c)];
      if (symbol >= 0) {
        symbols->push_back(symbol);
      } else if (options.unk_id >= 0 &&
                 !(options.fuse_unk && !symbols->empty() && symbols->back() == options.unk_id)) {
        symbols->push_back(options.unk_id);
      }
    }
    return;
  }
  bool in_unk = false;
  for (size_t pos = 0; pos < piece.size();) {
    const size_t begin = pos;
    const auto it = char_symbols.find(NextCodePoint(piece, &pos));
    const std::string_view character = piece.substr(begin, pos - begin);
    if (it != char_symbols.end()) {
      symbols->push_back(it->second);
      in_unk = false;
      continue;
    }
    if (options.byte_fallback && std::all_of(character.begin(), character.end(), [this](char c) {
          return fallback_tokens[static_cast<unsigned char>(c)] >= 0;
        })) {
      AppendFallback(character, symbols);
      in_unk = false;
      continue;
    }
    if (options.unk_id >= 0 && !(in_unk && options.fuse_unk)) symbols->push_back(options.unk_id);
    in_unk = true;
  }
}

void BpeModel::MergeShort(std::vector<int32_t>* symbols) const {
  std::array<MergeTable::Merge, kShortWord> pairs;
  std::vector<int32_t>& s = *symbols;
  size_t n = s.size();
  for (size_t i = 0; i + 1 < n; ++i) pairs[i] = merges.Find(s[i], s[i + 1]);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (pairs[best].rank == UINT32_MAX) break;
    s[best] = pairs[best].result;
    for (size_t i = best + 1; i + 1 < n; ++i) {
      s[i] = s[i + 1];
      pairs[i] = pairs[i + 1];
    }
    --n;
    if (best > 0) pairs[best - 1] = merges.Find(s[best - 1], s[best]);
    if (best + 1 < n) pairs[best] = merges.Find(s[best], s[best + 1]);
  }
  s.resize(n);
}

void BpeModel::MergeLong(Scratch* scratch) const {
  auto& nodes = scratch->nodes;
  const auto& symbols = scratch->symbols;
  const size_t n = symbols.size();
  nodes.resize(n);
  RankQueue& queue = scratch->queue;
  queue.Reset(rank_count);
  // Long words are runs of few different pairs: remember the last two looked up.
  struct Memo {
    int32_t left = -1, right = -1;
    MergeTable::Merge merge;
  };
  Memo memos[2];
  size_t oldest = 0;
  const auto find = [&](int32_t left, int32_t right) {
    for (const Memo& memo : memos) {
      if (memo.left == left && memo.right == right) return memo.merge;
    }
    Memo& memo = memos[oldest];
    oldest ^= 1;
    memo = {left, right, merges.Find(left, right)};
    return memo.merge;
  };
  const auto push = [&](int32_t position) {
    const auto& node = nodes[static_cast<size_t>(position)];
    if (node.next < 0) return;
    const auto merge = find(node.symbol, nodes[static_cast<size_t>(node.next)].symbol);
    if (merge.rank != UINT32_MAX) queue.Push(merge.rank, static_cast<uint32_t>(position));
  };
  for (size_t i = 0; i < n; ++i) {
    nodes[i] = {symbols[i], static_cast<int32_t>(i) - 1,
                i + 1 < n ? static_cast<int32_t>(i + 1) : -1};
  }
  for (size_t i = 0; i + 1 < n; ++i) push(static_cast<int32_t>(i));
  uint32_t rank = 0;
  uint32_t position = 0;
  while (queue.Pop(&rank, &position)) {
    auto& node = nodes[position];
    if (node.symbol == INT32_MIN || node.next < 0) continue;  // swallowed, or now the last one
    auto& right = nodes[static_cast<size_t>(node.next)];
    const auto merge = find(node.symbol, right.symbol);
    if (merge.rank != rank) continue;  // an entry about a pair that is no more
    node.symbol = merge.result;
    node.next = right.next;
    right.symbol = INT32_MIN;
    if (node.next >= 0)
      nodes[static_cast<size_t>(node.next)].previous = static_cast<int32_t>(position);
    if (node.previous >= 0) push(node.previous);
    push(static_cast<int32_t>(position));
  }
  scratch->symbols.clear();
  for (int32_t i = 0; i >= 0; i = nodes[static_cast<size_t>(i)].next) {
    scratch->symbols.push_back(nodes[static_cast<size_t>(i)].symbol);
  }
}

void BpeModel::Encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* out) const {
  if (piece.size() == 1 && options.byte_level) {
    const int32_t symbol = byte_symbols[static_cast<unsigned char>(piece[0])];
    if (symbol >= 0) {
      out->push_back(symbol);
      return;
    }
  }
  Scratch::CachedWord* cached = nullptr;
  if (piece.size() <= kLongestCachedWord) {
    cached = &scratch->cache[HashWord(piece) & (scratch->cache.size() - 1)];
    if (std::string_view(cached->text, cached->bytes) == piece) {
      const auto first = scratch->cached_tokens.begin() + static_cast<ptrdiff_t>(cached->first);
      out->insert(out->end(), first, first + cached->count);
      return;
    }
  }
  auto& symbols = scratch->symbols;
  symbols.clear();
  bool whole = false;
  if (options.ignore_merges) {
    const auto it = whole_words.find(std::string(piece));
    whole = it != whole_words.end();
    if (whole) symbols.push_back(it->second);
  }
  if (!whole) {
    AppendSymbols(piece, &symbols);
    if (symbols.size() > kShortWord) {
      MergeLong(scratch);
    } else if (symbols.size() > 1) {
      MergeShort(&symbols);
    }
  }
  const size_t start = out->size();
  for (const int32_t symbol : symbols) {
    if (symbol < options.vocab_size) {
      out->push_back(symbol);
    } else {
      const auto& text = internal_symbols[static_cast<size_t>(symbol - options.vocab_size)];
      if (options.byte_fallback && std::all_of(text.begin(), text.end(), [this](char c) {
            return fallback_tokens[static_cast<unsigned char>(c)] >= 0;
          })) {
        AppendFallback(text, out);
      } else if (options.unk_id >= 0) {
        out->push_back(options.unk_id);
      }
    }
  }
  if (cached != nullptr) {
    auto& tokens = scratch->cached_tokens;
    *cached = {piece.data(), static_cast<uint32_t>(piece.size()),
               static_cast<uint32_t>(out->size() - start), tokens.size()};
    tokens.insert(tokens.end(), out->begin() + static_cast<ptrdiff_t>(start), out->end());
  }
}

}  // namespace weir
