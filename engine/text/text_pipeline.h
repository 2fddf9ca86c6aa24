// The stages in front of the BPE model: added tokens, normalizers and pre-tokenizers, with the
// semantics of Hugging Face `tokenizers`.
#pragma once

#include <bitset>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "engine/text/regex.h"
#include "vmm/status.h"

namespace weir {

// A token that is recognised in the text itself, before the model sees it.
struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special = false;      // a control token: honoured only if special tokens are parsed
  bool normalized = false;   // looked for in the normalised text instead of the raw text
  bool lstrip = false;       // swallows white space on its left
  bool rstrip = false;       // ... on its right
  bool single_word = false;  // only between non-word characters
};

// Finds added tokens: leftmost, then longest.
class AddedTokenMatcher {
 public:
  struct Split {
    int32_t id = -1;  // -1: text between tokens
    size_t begin = 0;
    size_t end = 0;
  };

  void Add(AddedToken token);
  bool empty() const { return tokens_.empty(); }
  // Appends the splits of |text| (valid UTF-8) to |out|; they cover it without gaps.
  void SplitText(std::string_view text, bool match_special, std::vector<Split>* out) const;

 private:
  // The longest token that starts |text|, or SIZE_MAX; |*length| in bytes.
  size_t LongestPrefix(std::string_view text, size_t* length) const;

  std::vector<AddedToken> tokens_;
  std::bitset<256> first_bytes_;
  std::unordered_map<uint64_t, uint32_t> edges_;  // (node << 8 | byte) -> node
  std::vector<size_t> token_of_node_{SIZE_MAX};
};

// --- normalizers ---------------------------------------------------------------------------------
struct NfcNormalizer {};
struct PrependNormalizer {
  std::string text;
};
struct ReplaceNormalizer {
  std::string literal;       // used if |regex| is empty
  std::vector<Regex> regex;  // zero or one
  std::string content;
};
using Normalizer = std::variant<NfcNormalizer, PrependNormalizer, ReplaceNormalizer>;

// |text| with every |from| replaced by |to|.
std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to);

// |text| after all |steps|; kInvalidArgument if it would exceed 2 GiB.
Result<std::string> Normalize(const std::vector<Normalizer>& steps, std::string text,
                              Regex::Matcher* matcher);

// --- pre-tokenizers ------------------------------------------------------------------------------
enum class SplitBehavior : uint8_t {
  kRemoved,
  kIsolated,
  kMergedWithPrevious,
  kMergedWithNext,
  kContiguous,
};
struct SplitStep {
  Regex regex;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;
};
struct DigitsStep {
  bool individual = false;
};
// ByteLevel's add_prefix_space; its pattern is a SplitStep of its own.
struct PrefixSpaceStep {};
struct MetaspaceStep {
  enum class Prepend : uint8_t { kAlways, kFirst, kNever };
  char32_t replacement = 0x2581;
  Prepend prepend = Prepend::kAlways;
  bool split = true;
};
using PreTokenizerStep = std::variant<SplitStep, DigitsStep, PrefixSpaceStep, MetaspaceStep>;

// A text and the half-open byte ranges of its pieces, in order.
struct Pieces {
  std::string_view text;
  std::vector<std::pair<uint32_t, uint32_t>> ranges;
};

// Runs |steps| on |pieces|. |at_start|: the text is at the start of the whole input. Texts that
// steps rewrite are kept alive in |arena|.
Status PreTokenize(const std::vector<PreTokenizerStep>& steps, bool at_start,
                   Regex::Matcher* matcher, std::deque<std::string>* arena, Pieces* pieces);

}  // namespace weir
