// Tokenizer::FromSpec: makes a tokenizer from GGUF metadata.
#include <algorithm>
#include <array>
#include <cmath>
#include <exception>
#include <new>

#include "engine/text/byte_level.h"
#include "engine/text/tokenizer_impl.h"
#include "engine/text/utf8.h"

namespace weir {
namespace {

constexpr size_t kMaxTokens = 4'000'000;
constexpr size_t kMaxPieceBytes = 64 * 1024;
constexpr size_t kMaxMergedBytes = 1024;  // a sentencepiece token; its cuts cost the square
constexpr std::string_view kSpaceMark = "\u2581";

// How a named pre-tokenizer splits. The patterns are those of the original tokenizer.json files.
struct PreTokenizerRule {
  const char* name;
  bool isolate_digits;
  bool nfc;
  bool ignore_merges;
  bool add_bos;
  std::vector<std::string_view> patterns;
};

constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kTekkenPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

const std::vector<PreTokenizerRule>& PreTokenizerRules() {
  static const auto* rules = new std::vector<PreTokenizerRule>{
      {"gpt-2", false, false, false, false, {kGpt2Pattern}},
      {"smollm", true, false, false, false, {kGpt2Pattern}},
      {"command-r", true, false, false, false, {kGpt2Pattern}},
      {"starcoder", true, false, false, false, {kGpt2Pattern}},
      {"refact", true, false, false, false, {kGpt2Pattern}},
      {"llama-bpe", false, false, true, true, {kLlama3Pattern}},
      {"llama3", false, false, true, true, {kLlama3Pattern}},
      {"llama-v3", false, false, true, true, {kLlama3Pattern}},
      {"qwen2", false, true, false, false, {kQwen2Pattern}},
      {"deepseek-r1-qwen", false, true, false, true, {kQwen2Pattern}},
      {"tekken", false, false, true, true, {kTekkenPattern}},
      // What the GGUF converters' reference does for a file that names no pre-tokenizer.
      {"default",
       false,
       false,
       false,
       false,
       {R"([\p{P}\$\+<=>\^~\|]+)",
        R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))", R"(\p{N}+)",
        R"([0-9][0-9][0-9])"}},
  };
  return *rules;
}

std::string PreTokenizerNames() {
  std::string names;
  for (const auto& rule : PreTokenizerRules())
    names += (names.empty() ? "" : ", ") + std::string(rule.name);
  return names;
}

class SpecLoader {
 public:
  SpecLoader(TokenizerSpec spec, Tokenizer::Impl* impl) : spec_(std::move(spec)), impl_(impl) {}

  Status Load() {
    const bool byte_level = spec_.model == "gpt2";
    if (!byte_level && spec_.model != "llama") {
      return Unsupported("tokenizer model '" + spec_.model +
                         "' is not supported; accepted: gpt2, llama");
    }
    WEIR_TRY(CheckTokens());
    impl_->model.options.byte_level = byte_level;
    impl_->model.options.vocab_size = static_cast<int32_t>(spec_.tokens.size());
    WEIR_TRY(CheckId("bos", spec_.bos_id));
    WEIR_TRY(CheckId("eos", spec_.eos_id));
    WEIR_TRY(CheckId("eot", spec_.eot_id));
    WEIR_TRY(CheckId("unk", spec_.unk_id));
    WEIR_TRY(CheckId("pad", spec_.pad_id));
    impl_->bos_id = spec_.bos_id;
    impl_->unk_id = spec_.unk_id;
    impl_->pad_id = spec_.pad_id;
    if (spec_.eos_id) impl_->AddEos(*spec_.eos_id);
    if (spec_.eot_id) impl_->AddEos(*spec_.eot_id);
    WEIR_TRY(AddTokens());
    impl_->IndexPieces();
    WEIR_TRY(byte_level ? LoadByteLevel() : LoadSentencePiece());
    if (spec_.add_bos.value_or(add_bos_) && spec_.bos_id) impl_->prefix = {*spec_.bos_id};
    if (spec_.add_eos.value_or(false) && spec_.eos_id) impl_->suffix = {*spec_.eos_id};
    return {};
  }

 private:
  Status CheckTokens() const {
    const size_t n = spec_.tokens.size();
    if (n == 0 || n > kMaxTokens) {
      return InvalidArgument("a vocabulary has 1 to 4000000 tokens, this one " + std::to_string(n));
    }
    if (!spec_.token_types.empty() && spec_.token_types.size() != n) {
      return InvalidArgument("there are " + std::to_string(n) + " tokens and " +
                             std::to_string(spec_.token_types.size()) + " token types");
    }
    for (size_t i = 0; i < n; ++i) {
      const auto& piece = spec_.tokens[i];
      if (piece.size() > kMaxPieceBytes || FindInvalidUtf8(piece) != piece.size()) {
        return InvalidArgument("token " + std::to_string(i) +
                               " is not valid UTF-8 or longer than 64 KiB");
      }
    }
    return {};
  }

  Status CheckId(const char* name, const std::optional<int32_t>& id) const {
    if (!id || (*id >= 0 && static_cast<size_t>(*id) < spec_.tokens.size())) return {};
    return InvalidArgument(std::string(name) + " id " + std::to_string(*id) +
                           " is outside the vocabulary of " + std::to_string(spec_.tokens.size()));
  }

  TokenType TypeOf(size_t i) const {
    return spec_.token_types.empty() ? TokenType::kNormal
                                     : static_cast<TokenType>(spec_.token_types[i]);
  }

  // The byte of a token "<0xXX>" of type kByte.
  std::optional<uint8_t> ByteOf(size_t i) const {
    const std::string_view piece = spec_.tokens[i];
    if (TypeOf(i) != TokenType::kByte || piece.size() != 6 || !piece.starts_with("<0x") ||
        piece[5] != '>') {
      return std::nullopt;
    }
    const auto digit = [](char c) {
      if (c >= '0' && c <= '9') return c - '0';
      return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    };
    const int high = digit(piece[3]);
    const int low = digit(piece[4]);
    if (high < 0 || low < 0) return std::nullopt;
    return static_cast<uint8_t>(high * 16 + low);
  }

  Status AddTokens() {
    impl_->tokens.resize(spec_.tokens.size());
    for (size_t i = 0; i < spec_.tokens.size(); ++i) {
      auto& token = impl_->tokens[i];
      const TokenType type = TypeOf(i);
      token.piece = spec_.tokens[i];
      token.in_vocabulary = true;
      token.special = type == TokenType::kControl || type == TokenType::kUnknown;
      if (token.special || type == TokenType::kUserDefined) {
        AddedToken added;
        added.id = static_cast<int32_t>(i);
        added.content = token.piece;
        added.special = token.special;
        impl_->raw_added.Add(std::move(added));
        token.bytes = token.piece;
      }
    }
    return {};
  }

  Status LoadByteLevel() {
    const std::string name = spec_.pre.empty() ? "default" : spec_.pre;
    const auto& rules = PreTokenizerRules();
    const auto rule =
        std::find_if(rules.begin(), rules.end(), [&](const auto& r) { return name == r.name; });
    if (rule == rules.end()) {
      return Unsupported("pre-tokenizer '" + name +
                         "' is not supported; accepted: " + PreTokenizerNames());
    }
    add_bos_ = rule->add_bos;
    if (rule->nfc) impl_->normalizers.emplace_back(NfcNormalizer{});
    if (rule->isolate_digits) impl_->pre_tokenizers.emplace_back(DigitsStep{true});
    for (const auto pattern : rule->patterns) {
      impl_->pre_tokenizers.emplace_back(SplitStep{WEIR_TRY(Regex::Compile(pattern))});
    }
    BpeModel& model = impl_->model;
    model.options.ignore_merges = rule->ignore_merges;
    for (size_t i = 0; i < impl_->tokens.size(); ++i) {
      auto& token = impl_->tokens[i];
      if (!token.bytes.empty()) continue;  // an added token: plain text
      const auto bytes = ByteLevelDecode(token.piece);
      token.bytes = bytes.value_or(token.piece);
      if (!bytes) continue;
      const auto id = static_cast<int32_t>(i);
      if (bytes->size() == 1) model.byte_symbols[static_cast<uint8_t>((*bytes)[0])] = id;
      if (rule->ignore_merges) model.whole_words.emplace(*bytes, id);
    }
    return LoadMerges();
  }

  Status LoadMerges() {
    BpeModel& model = impl_->model;
    if (spec_.merges.size() > kMaxTokens) return InvalidArgument("more than 4000000 merges");
    model.merges.Reserve(spec_.merges.size());
    const auto find = [&](std::string_view piece) {
      const auto it = impl_->id_of_piece.find(piece);
      return it == impl_->id_of_piece.end() ? -1 : it->second;
    };
    for (const std::string& merge : spec_.merges) {
      const size_t space = merge.find(' ', 1);
      if (merge.empty() || space == std::string::npos) {
        return InvalidArgument("merge '" + merge + "' is not two tokens with a space between");
      }
      const std::string_view left = std::string_view(merge).substr(0, space);
      const std::string_view right = std::string_view(merge).substr(space + 1);
      const int32_t a = find(left);
      const int32_t b = find(right);
      const int32_t result = find(std::string(left) + std::string(right));
      if (a < 0 || b < 0 || result < 0) {
        return InvalidArgument("merge '" + merge + "' uses or makes something that is no token");
      }
      model.merges.Set(a, b, {model.rank_count++, result});
    }
    return {};
  }

  // The symbol of the single character |text|, made up if the character is no token.
  int32_t CharacterSymbol(std::string_view text) {
    size_t pos = 0;
    const char32_t c = NextCodePoint(text, &pos);
    BpeModel& model = impl_->model;
    const auto next =
        model.options.vocab_size + static_cast<int32_t>(model.internal_symbols.size());
    const auto [it, inserted] = model.char_symbols.try_emplace(c, next);
    if (inserted) model.internal_symbols.emplace_back(text);
    return it->second;
  }

  // sentencepiece merges any two neighbours whose concatenation is a token, best score first. As
  // pairs: every way to cut a token into two symbols is a merge, ranked by the token's score.
  Status LoadSentencePiece() {
    BpeModel& model = impl_->model;
    const size_t n = spec_.tokens.size();
    if (spec_.scores.size() != n) {
      return InvalidArgument("a llama tokenizer needs one score a token; there are " +
                             std::to_string(n) + " tokens and " +
                             std::to_string(spec_.scores.size()) + " scores");
    }
    add_bos_ = true;
    model.options.fuse_unk = true;
    model.options.unk_id = spec_.unk_id.value_or(-1);
    std::unordered_map<std::string_view, int32_t> mergeable;
    std::vector<float> scores;
    for (size_t i = 0; i < n; ++i) {
      auto& token = impl_->tokens[i];
      const auto id = static_cast<int32_t>(i);
      if (std::isnan(spec_.scores[i])) return InvalidArgument("a token's score is not a number");
      if (const auto byte = ByteOf(i)) {
        model.options.byte_fallback = true;
        model.fallback_tokens[*byte] = id;
        token.bytes = std::string(1, static_cast<char>(*byte));
        continue;
      }
      if (token.bytes.empty()) {
        token.bytes = ReplaceAll(token.piece, kSpaceMark, " ");
      }
      const TokenType type = TypeOf(i);
      if (token.piece.empty() || (type != TokenType::kNormal && type != TokenType::kUserDefined &&
                                  type != TokenType::kUnused)) {
        continue;
      }
      if (token.piece.size() > kMaxMergedBytes) {
        return InvalidArgument("token " + std::to_string(i) + " is longer than 1024 bytes");
      }
      if (Utf8Length(token.piece[0]) == token.piece.size()) {
        size_t pos = 0;
        model.char_symbols.try_emplace(NextCodePoint(token.piece, &pos), id);
      } else if (mergeable.try_emplace(token.piece, id).second) {
        scores.push_back(spec_.scores[i]);
      }
    }
    std::sort(scores.begin(), scores.end(), std::greater<>());
    scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
    model.rank_count = static_cast<uint32_t>(scores.size());
    for (const auto& [piece, id] : mergeable) AddCuts(piece, id, mergeable, scores);
    AddSpaceHandling();
    return {};
  }

  void AddCuts(std::string_view piece, int32_t id,
               const std::unordered_map<std::string_view, int32_t>& mergeable,
               const std::vector<float>& scores) {
    const float score = spec_.scores[static_cast<size_t>(id)];
    const auto it = std::lower_bound(scores.begin(), scores.end(), score, std::greater<>());
    const auto rank = static_cast<uint32_t>(it - scores.begin());
    const auto symbol = [&](std::string_view part) {
      if (Utf8Length(part[0]) == part.size()) return CharacterSymbol(part);
      const auto found = mergeable.find(part);
      return found == mergeable.end() ? -1 : found->second;
    };
    for (size_t cut = Utf8Length(piece[0]); cut < piece.size(); cut += Utf8Length(piece[cut])) {
      const int32_t left = symbol(piece.substr(0, cut));
      const int32_t right = symbol(piece.substr(cut));
      if (left >= 0 && right >= 0) impl_->model.merges.Set(left, right, {rank, id});
    }
  }

  void AddSpaceHandling() {
    if (spec_.add_space_prefix.value_or(true)) {
      impl_->normalizers.emplace_back(PrependNormalizer{std::string(kSpaceMark)});
      impl_->strip_left = 1;
    }
    ReplaceNormalizer spaces;
    spaces.literal = " ";
    spaces.content = kSpaceMark;
    impl_->normalizers.emplace_back(std::move(spaces));
  }

  TokenizerSpec spec_;
  Tokenizer::Impl* impl_;
  bool add_bos_ = false;
};

}  // namespace

Result<std::unique_ptr<Tokenizer>> Tokenizer::FromSpec(TokenizerSpec spec) {
  try {
    auto impl = std::make_unique<Impl>();
    WEIR_TRY(SpecLoader(std::move(spec), impl.get()).Load().WithContext("tokenizer"));
    return std::make_unique<Tokenizer>(std::move(impl));
  } catch (const std::bad_alloc&) {
    return NoMemory("no memory to make the tokenizer");
  } catch (const std::exception& e) {
    return InvalidArgument(std::string("tokenizer: ") + e.what());
  }
}

}  // namespace weir
