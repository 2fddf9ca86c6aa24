// What is inside a Tokenizer; shared by tokenizer.cc and the two factories.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/text/bpe_model.h"
#include "engine/text/text_pipeline.h"
#include "engine/text/tokenizer.h"

namespace weir {

// The pattern of GPT-2's and Hugging Face's ByteLevel pre-tokenizer.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

struct Tokenizer::Impl {
  struct Token {
    std::string piece;
    std::string bytes;  // what it decodes to inside a text
    std::string first;  // what it decodes to as the first token, if |differs_first|
    bool differs_first = false;
    bool special = false;
    bool in_vocabulary = false;  // false: a hole between ids
  };

  std::vector<Token> tokens;
  // Keys are views of Token::piece: |tokens| does not grow once this is filled.
  std::unordered_map<std::string_view, int32_t> id_of_piece;

  AddedTokenMatcher raw_added;         // looked for before normalising
  AddedTokenMatcher normalized_added;  // ... after it
  std::vector<Normalizer> normalizers;
  std::vector<PreTokenizerStep> pre_tokenizers;
  BpeModel model;

  std::vector<int32_t> prefix;  // post-processor
  std::vector<int32_t> suffix;

  uint32_t strip_left = 0;  // decoder: leading spaces dropped from the whole text

  std::optional<int32_t> bos_id;
  std::optional<int32_t> unk_id;
  std::optional<int32_t> pad_id;
  std::vector<int32_t> eos_ids;

  const Token* Find(int32_t id) const {
    return id >= 0 && static_cast<size_t>(id) < tokens.size() ? &tokens[static_cast<size_t>(id)]
                                                              : nullptr;
  }
  // Fills |id_of_piece|; of two tokens with one text the first wins.
  void IndexPieces();
  void AddEos(int32_t id);
};

}  // namespace weir
