// Text <-> token ids.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer_spec.h"
#include "vmm/status.h"

namespace weir {

struct EncodeOptions {
  bool add_special_tokens = true;    // bos/eos as the tokenizer's post-processor says
  bool parse_special_tokens = true;  // control tokens in the text become their ids
};

struct DecodeOptions {
  bool skip_special_tokens = false;
};

// Represents the vocabulary and rules of one model. Immutable once made: every method may be called
// from any thread at once. Owned by whoever loaded the model; views it returns live as long as it.
//
// Encoding equals Hugging Face `tokenizers` id for id for the families Llama 2/3, Mistral,
// Qwen 2/2.5/3, GPT-2 and SmolLM2. Decoding does too, except that an ill-formed run of byte tokens
// becomes one U+FFFD per maximal ill-formed subpart (Hugging Face sometimes writes one per byte).
class Tokenizer {
 public:
  // |tokenizer_json|: a Hugging Face fast tokenizer of model type BPE. |tokenizer_config_json|
  // names the bos and eos tokens; it may be empty. kInvalidArgument: malformed; kUnsupported: a
  // component this build does not know (the message names it and those that are accepted).
  static Result<std::unique_ptr<Tokenizer>> FromTokenizerJson(
      std::string_view tokenizer_json, std::string_view tokenizer_config_json);

  // |spec| as read from a GGUF file. Errors as above.
  static Result<std::unique_ptr<Tokenizer>> FromSpec(TokenizerSpec spec);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // kInvalidArgument: |text| is not UTF-8 (the message has the byte offset), is longer than 1 GiB,
  // or the pre-tokenizer's pattern exceeded its step limit. O(n log n), no recursion.
  Result<std::vector<int32_t>> Encode(std::string_view text, const EncodeOptions& options) const;

  // The text of |ids|: always valid UTF-8. Ids outside the vocabulary stand for nothing.
  std::string Decode(std::span<const int32_t> ids, const DecodeOptions& options) const;

  // The token as the vocabulary writes it ("Ġthe", "▁the", "<0x0A>"); empty for an unknown id.
  std::string_view Piece(int32_t id) const;
  // The bytes the token stands for inside a text (" the", "\n"); may be a part of a character.
  std::string_view TokenBytes(int32_t id) const;

  // One above the largest id.
  int32_t vocab_size() const;
  std::optional<int32_t> bos_id() const;
  // Ids that end a generation; may be empty.
  const std::vector<int32_t>& eos_ids() const;
  std::optional<int32_t> unk_id() const;
  std::optional<int32_t> pad_id() const;
  bool IsSpecial(int32_t id) const;
  std::optional<int32_t> TokenToId(std::string_view piece) const;

  // How far a decoding is, for incremental use (see IncrementalDetokenizer).
  struct DecodeState {
    bool at_start = true;              // no token has been decoded yet
    uint32_t strip_left = UINT32_MAX;  // leading spaces still to drop; UINT32_MAX: not set up
  };
  // Appends the bytes of |id| as the next token of a decoding to |bytes|; they may end inside a
  // character. Decode() is this for each id, then AppendLossyUtf8.
  void DecodeStep(int32_t id, const DecodeOptions& options, DecodeState* state,
                  std::string* bytes) const;

  struct Impl;  // tokenizer_impl.h; only the factories make one
  explicit Tokenizer(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace weir
