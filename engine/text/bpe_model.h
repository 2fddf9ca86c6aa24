// Byte-pair encoding of one piece of text (Sennrich et al. 2016; sentencepiece's bpe_model.cc).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace weir {

// Flat open-addressing map from a pair of symbols to what they merge into.
class MergeTable {
 public:
  struct Merge {
    uint32_t rank = UINT32_MAX;  // lower merges first; UINT32_MAX: the pair does not merge
    int32_t result = -1;
  };

  void Reserve(size_t merges);
  // The last of two merges of one pair wins, as in Hugging Face's map.
  void Set(int32_t left, int32_t right, Merge merge);
  Merge Find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t key = UINT64_MAX;
    Merge merge;
  };
  void Grow(size_t slots);
  size_t Probe(uint64_t key) const;

  std::vector<Slot> slots_;
  size_t used_ = 0;
};

// Represents a vocabulary with merges. Immutable after it is built, shared by threads.
//
// A symbol is a token id in [0, vocab_size) or, for sentencepiece vocabularies, an internal id of a
// single character that is no token itself but is part of one ([vocab_size, ...)).
class BpeModel {
 public:
  struct Options {
    bool byte_level = false;     // symbols start as bytes, otherwise as UTF-8 characters
    bool byte_fallback = false;  // a character without a symbol becomes <0xXX> tokens
    bool fuse_unk = false;       // a run of unknown characters is one unk token
    bool ignore_merges = false;  // a piece that is a token is that token
    int32_t unk_id = -1;         // -1: unknown characters vanish (as in Hugging Face)
    int32_t vocab_size = 0;
  };

  // The mutable memory of one Encode call chain; belongs to one thread.
  class Scratch;

  Options options;
  MergeTable merges;
  uint32_t rank_count = 0;                               // all ranks are below
  std::array<int32_t, 256> byte_symbols;                 // byte_level: byte -> token or -1
  std::array<int32_t, 256> fallback_tokens;              // byte_fallback: byte -> <0xXX> or -1
  std::unordered_map<char32_t, int32_t> char_symbols;    // not byte_level: character -> symbol
  std::unordered_map<std::string, int32_t> whole_words;  // ignore_merges: bytes of piece -> token
  std::vector<std::string> internal_symbols;             // text of symbol vocab_size + i

  BpeModel() {
    byte_symbols.fill(-1);
    fallback_tokens.fill(-1);
  }

  // Appends the tokens of |piece| (valid UTF-8 unless byte_level) to |out|. O(n log n).
  void Encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* out) const;

 private:
  void AppendSymbols(std::string_view piece, std::vector<int32_t>* symbols) const;
  void AppendFallback(std::string_view character, std::vector<int32_t>* symbols) const;
  void MergeShort(std::vector<int32_t>* symbols) const;
  void MergeLong(Scratch* scratch) const;
};

// Queue of positions ordered by (rank, position). Positions of one rank mostly arrive in order, so
// a rank is a sorted array plus a heap for the late ones; a heap orders the ranks in use.
class RankQueue {
 public:
  void Reset(uint32_t rank_count);
  void Push(uint32_t rank, uint32_t position);
  bool Pop(uint32_t* rank, uint32_t* position);

 private:
  struct Bucket {
    std::vector<uint32_t> sorted;
    size_t head = 0;
    std::vector<uint32_t> late;
  };
  std::vector<uint32_t> bucket_of_rank_;  // index + 1; 0: none
  std::vector<Bucket> buckets_;
  std::vector<uint32_t> free_;
  std::vector<std::pair<uint32_t, uint32_t>> ranks_;  // min-heap of (rank, bucket)
};

class BpeModel::Scratch {
 public:
  explicit Scratch(size_t text_bytes);

 private:
  friend class BpeModel;
  struct Node {
    int32_t symbol;
    int32_t previous;
    int32_t next;
  };
  // Direct-mapped cache of words met in this call; the text outlives the scratch.
  struct CachedWord {
    const char* text = nullptr;
    uint32_t bytes = 0;
    uint32_t count = 0;
    size_t first = 0;  // in |cached_tokens|
  };
  std::vector<int32_t> symbols;
  std::vector<Node> nodes;
  RankQueue queue;
  std::vector<CachedWord> cache;
  std::vector<int32_t> cached_tokens;
};

}  // namespace weir
