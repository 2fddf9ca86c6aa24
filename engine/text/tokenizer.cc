#include "engine/text/tokenizer.h"

#include <algorithm>
#include <deque>

#include "engine/text/tokenizer_impl.h"
#include "engine/text/utf8.h"

namespace weir {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 30;

// The mutable state of one Encode call.
class Encoder {
 public:
  Encoder(const Tokenizer::Impl& impl, size_t text_bytes, bool parse_special)
      : impl_(impl), scratch_(text_bytes), parse_special_(parse_special) {}

  Status Run(std::string_view text) {
    std::vector<AddedTokenMatcher::Split> splits;
    impl_.raw_added.SplitText(text, parse_special_, &splits);
    for (const auto& split : splits) {
      if (split.id >= 0) {
        ids_.push_back(split.id);
        continue;
      }
      const std::string_view chunk = text.substr(split.begin, split.end - split.begin);
      WEIR_TRY(EncodeChunk(chunk, split.begin == 0));
    }
    return {};
  }

  std::vector<int32_t>& ids() { return ids_; }

 private:
  Status EncodeChunk(std::string_view chunk, bool at_start) {
    if (!impl_.normalizers.empty()) {
      arena_.push_back(WEIR_TRY(Normalize(impl_.normalizers, std::string(chunk), &matcher_)));
      chunk = arena_.back();
    }
    if (impl_.normalized_added.empty()) return EncodeText(chunk, at_start);
    std::vector<AddedTokenMatcher::Split> splits;
    impl_.normalized_added.SplitText(chunk, parse_special_, &splits);
    for (const auto& split : splits) {
      if (split.id >= 0) {
        ids_.push_back(split.id);
      } else {
        WEIR_TRY(EncodeText(chunk.substr(split.begin, split.end - split.begin),
                            at_start && split.begin == 0));
      }
    }
    return {};
  }

  Status EncodeText(std::string_view text, bool at_start) {
    if (text.empty()) return {};
    Pieces pieces{text, {{0, static_cast<uint32_t>(text.size())}}};
    WEIR_TRY(PreTokenize(impl_.pre_tokenizers, at_start, &matcher_, &arena_, &pieces));
    for (const auto& [begin, end] : pieces.ranges) {
      impl_.model.Encode(pieces.text.substr(begin, end - begin), &scratch_, &ids_);
    }
    return {};
  }

  const Tokenizer::Impl& impl_;
  BpeModel::Scratch scratch_;
  Regex::Matcher matcher_;
  std::deque<std::string> arena_;  // the word cache of |scratch_| points into these texts
  std::vector<int32_t> ids_;
  bool parse_special_;
};

}  // namespace

void Tokenizer::Impl::IndexPieces() {
  id_of_piece.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].in_vocabulary) id_of_piece.try_emplace(tokens[i].piece, static_cast<int32_t>(i));
  }
}

void Tokenizer::Impl::AddEos(int32_t id) {
  if (std::find(eos_ids.begin(), eos_ids.end(), id) == eos_ids.end()) eos_ids.push_back(id);
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

Result<std::vector<int32_t>> Tokenizer::Encode(std::string_view text,
                                               const EncodeOptions& options) const {
  if (text.size() > kMaxTextBytes) {
    return InvalidArgument("the text has " + std::to_string(text.size()) +
                           " bytes, at most 1073741824 are accepted");
  }
  if (const size_t bad = FindInvalidUtf8(text); bad != text.size()) {
    return InvalidArgument("the text is not valid UTF-8: bad byte at offset " +
                           std::to_string(bad));
  }
  Encoder encoder(*impl_, text.size(), options.parse_special_tokens);
  auto& ids = encoder.ids();
  if (options.add_special_tokens) ids = impl_->prefix;
  WEIR_TRY(encoder.Run(text));
  if (options.add_special_tokens) {
    ids.insert(ids.end(), impl_->suffix.begin(), impl_->suffix.end());
  }
  return std::move(ids);
}

void Tokenizer::DecodeStep(int32_t id, const DecodeOptions& options, DecodeState* state,
                           std::string* bytes) const {
  const Impl::Token* token = impl_->Find(id);
  if (token == nullptr || (options.skip_special_tokens && token->special)) return;
  if (state->strip_left == UINT32_MAX) state->strip_left = impl_->strip_left;
  std::string_view text = state->at_start && token->differs_first ? token->first : token->bytes;
  state->at_start = false;
  while (state->strip_left > 0 && !text.empty()) {
    if (text[0] != ' ') {
      state->strip_left = 0;
      break;
    }
    text.remove_prefix(1);
    --state->strip_left;
  }
  *bytes += text;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, const DecodeOptions& options) const {
  std::string bytes;
  DecodeState state;
  for (const int32_t id : ids) DecodeStep(id, options, &state, &bytes);
  if (FindInvalidUtf8(bytes) == bytes.size()) return bytes;
  std::string text;
  AppendLossyUtf8(bytes, &text);
  return text;
}

std::string_view Tokenizer::Piece(int32_t id) const {
  const Impl::Token* token = impl_->Find(id);
  return token == nullptr ? std::string_view() : token->piece;
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  const Impl::Token* token = impl_->Find(id);
  return token == nullptr ? std::string_view() : token->bytes;
}

int32_t Tokenizer::vocab_size() const {
  return static_cast<int32_t>(impl_->tokens.size());
}
std::optional<int32_t> Tokenizer::bos_id() const {
  return impl_->bos_id;
}
const std::vector<int32_t>& Tokenizer::eos_ids() const {
  return impl_->eos_ids;
}
std::optional<int32_t> Tokenizer::unk_id() const {
  return impl_->unk_id;
}
std::optional<int32_t> Tokenizer::pad_id() const {
  return impl_->pad_id;
}

bool Tokenizer::IsSpecial(int32_t id) const {
  const Impl::Token* token = impl_->Find(id);
  return token != nullptr && token->special;
}

std::optional<int32_t> Tokenizer::TokenToId(std::string_view piece) const {
  const auto it = impl_->id_of_piece.find(piece);
  if (it == impl_->id_of_piece.end()) return std::nullopt;
  return it->second;
}

}  // namespace weir
