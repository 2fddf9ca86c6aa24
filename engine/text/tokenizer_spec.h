// What a GGUF file's metadata says about its tokenizer (keys tokenizer.ggml.*).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace weir {

// The values of tokenizer.ggml.token_type.
enum class TokenType : int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

// Plain data, unchecked: Tokenizer::FromSpec validates it.
struct TokenizerSpec {
  std::string model;  // "gpt2": byte-level BPE; "llama": sentencepiece BPE with scores
  std::string pre;    // pre-tokenizer of a "gpt2" model; empty means "default"
  std::vector<std::string> tokens;
  std::vector<float> scores;         // "llama": one a token
  std::vector<int32_t> token_types;  // TokenType values, one a token, or empty: all normal
  std::vector<std::string> merges;   // "gpt2": "left right", best first
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  std::optional<int32_t> eot_id;  // end of turn: ends a generation like eos_id
  std::optional<int32_t> unk_id;
  std::optional<int32_t> pad_id;
  std::optional<bool> add_bos;           // default: the model's or pre-tokenizer's custom
  std::optional<bool> add_eos;           // default: false
  std::optional<bool> add_space_prefix;  // "llama"; default: true
};

}  // namespace weir
