// Tokenizer::FromTokenizerJson: reads Hugging Face's tokenizer.json.
#include <algorithm>
#include <array>
#include <exception>
#include <functional>
#include <new>

#include <nlohmann/json.hpp>

#include "engine/text/byte_level.h"
#include "engine/text/tokenizer_impl.h"
#include "engine/text/utf8.h"

namespace weir {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxJsonBytes = size_t{256} << 20;
constexpr int kMaxNesting = 8;

// The member |key| of |object|, or a null.
const Json& Member(const Json& object, const char* key) {
  static const Json null;
  if (!object.is_object()) return null;
  const auto it = object.find(key);
  return it == object.end() ? null : *it;
}

Result<bool> BoolMember(const Json& object, const char* key, bool fallback) {
  const Json& value = Member(object, key);
  if (value.is_null()) return fallback;
  if (!value.is_boolean()) return InvalidArgument(std::string(key) + " is not true or false");
  return value.get<bool>();
}

Result<std::string> StringMember(const Json& object, const char* key, std::string fallback) {
  const Json& value = Member(object, key);
  if (value.is_null()) return fallback;
  if (!value.is_string()) return InvalidArgument(std::string(key) + " is not a string");
  return value.get<std::string>();
}

std::string TypeOf(const Json& component) {
  const Json& type = Member(component, "type");
  return type.is_string() ? type.get<std::string>() : std::string("(none)");
}

Status Unknown(const char* kind, const std::string& type, const char* accepted) {
  return Unsupported(std::string(kind) + " '" + type + "' is not supported; accepted: " + accepted);
}

// Calls |visit| for |component|, or for each member of a "Sequence" with list |key|, in order.
Status Flatten(const Json& component, const char* key, int depth,
               const std::function<Status(const Json&)>& visit) {
  if (component.is_null()) return {};
  if (depth > kMaxNesting) return InvalidArgument("Sequence components nest too deeply");
  if (TypeOf(component) != "Sequence") return visit(component);
  const Json& list = Member(component, key);
  if (!list.is_array()) return InvalidArgument(std::string("a Sequence has no list ") + key);
  for (const Json& item : list) WEIR_TRY(Flatten(item, key, depth + 1, visit));
  return {};
}

// One decoder of the chain; see Decoders::Apply.
struct TokenDecoder {
  enum class Kind : uint8_t { kByteLevel, kReplace, kByteFallback, kMetaspace } kind;
  std::string from;
  std::string to;
  bool drop_in_first = false;
};

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

std::optional<char> ByteToken(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return std::nullopt;
  const int high = HexDigit(piece[3]);
  const int low = HexDigit(piece[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<char>(high * 16 + low);
}

std::string ApplyDecoders(const std::vector<TokenDecoder>& chain, std::string text, bool first) {
  for (const TokenDecoder& step : chain) {
    switch (step.kind) {
      case TokenDecoder::Kind::kByteLevel:
        if (auto bytes = ByteLevelDecode(text)) text = std::move(*bytes);
        break;
      case TokenDecoder::Kind::kReplace: text = ReplaceAll(text, step.from, step.to); break;
      case TokenDecoder::Kind::kByteFallback:
        // What follows in a chain sees bytes; every accepted successor leaves them alone.
        if (const auto byte = ByteToken(text)) return std::string(1, *byte);
        break;
      case TokenDecoder::Kind::kMetaspace:
        text = ReplaceAll(text, step.from, first && step.drop_in_first ? "" : " ");
        break;
    }
  }
  return text;
}

class Loader {
 public:
  explicit Loader(Tokenizer::Impl* impl) : impl_(impl) {}

  Status Load(const Json& root, const Json& config) {
    if (!root.is_object()) return InvalidArgument("the top level is not an object");
    WEIR_TRY(LoadPreTokenizer(Member(root, "pre_tokenizer")).WithContext("pre_tokenizer"));
    WEIR_TRY(LoadNormalizer(Member(root, "normalizer")).WithContext("normalizer"));
    WEIR_TRY(LoadDecoder(Member(root, "decoder")).WithContext("decoder"));
    WEIR_TRY(LoadVocabulary(Member(root, "model")).WithContext("model"));
    WEIR_TRY(LoadAddedTokens(Member(root, "added_tokens")).WithContext("added_tokens"));
    DecodeTokens();
    impl_->IndexPieces();
    WEIR_TRY(LoadModel(Member(root, "model")).WithContext("model"));
    WEIR_TRY(LoadPostProcessor(Member(root, "post_processor")).WithContext("post_processor"));
    return LoadConfig(config).WithContext("tokenizer_config");
  }

 private:
  Status LoadNormalizer(const Json& node) {
    return Flatten(node, "normalizers", 0, [this](const Json& item) -> Status {
      const std::string type = TypeOf(item);
      if (type == "NFC") {
        impl_->normalizers.emplace_back(NfcNormalizer{});
      } else if (type == "Prepend") {
        impl_->normalizers.emplace_back(
            PrependNormalizer{WEIR_TRY(StringMember(item, "prepend", ""))});
      } else if (type == "Replace") {
        ReplaceNormalizer replace;
        const Json& pattern = Member(item, "pattern");
        if (Member(pattern, "Regex").is_string()) {
          replace.regex.push_back(
              WEIR_TRY(Regex::Compile(Member(pattern, "Regex").get<std::string>())));
        } else {
          replace.literal = WEIR_TRY(StringMember(pattern, "String", ""));
          if (replace.literal.empty()) return InvalidArgument("Replace has no pattern");
        }
        replace.content = WEIR_TRY(StringMember(item, "content", ""));
        impl_->normalizers.emplace_back(std::move(replace));
      } else {
        return Unknown("normalizer", type, "NFC, Prepend, Replace, Sequence");
      }
      return {};
    });
  }

  Status LoadSplit(const Json& item) {
    const Json& pattern = Member(item, "pattern");
    const bool is_regex = Member(pattern, "Regex").is_string();
    const std::string text = WEIR_TRY(StringMember(pattern, is_regex ? "Regex" : "String", ""));
    if (text.empty()) return InvalidArgument("Split has no pattern");
    const std::string behavior = WEIR_TRY(StringMember(item, "behavior", "Isolated"));
    const std::array<std::pair<const char*, SplitBehavior>, 5> known = {{
        {"Removed", SplitBehavior::kRemoved},
        {"Isolated", SplitBehavior::kIsolated},
        {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
        {"MergedWithNext", SplitBehavior::kMergedWithNext},
        {"Contiguous", SplitBehavior::kContiguous},
    }};
    const auto* it = std::find_if(known.begin(), known.end(),
                                  [&](const auto& entry) { return behavior == entry.first; });
    if (it == known.end()) {
      return Unknown("Split behavior", behavior,
                     "Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous");
    }
    auto regex = WEIR_TRY(is_regex ? Regex::Compile(text) : Regex::CompileLiteral(text));
    const bool invert = WEIR_TRY(BoolMember(item, "invert", false));
    impl_->pre_tokenizers.emplace_back(SplitStep{std::move(regex), it->second, invert});
    return {};
  }

  Status LoadMetaspace(const Json& item) {
    MetaspaceStep step;
    const std::string mark = WEIR_TRY(StringMember(item, "replacement", "\u2581"));
    size_t pos = 0;
    if (mark.empty()) return InvalidArgument("Metaspace has an empty replacement");
    step.replacement = NextCodePoint(mark, &pos);
    if (pos != mark.size()) return InvalidArgument("a Metaspace replacement is one character");
    const bool legacy = WEIR_TRY(BoolMember(item, "add_prefix_space", true));
    const std::string scheme =
        WEIR_TRY(StringMember(item, "prepend_scheme", legacy ? "always" : "never"));
    using Prepend = MetaspaceStep::Prepend;
    if (scheme == "always") {
      step.prepend = Prepend::kAlways;
    } else if (scheme == "first") {
      step.prepend = Prepend::kFirst;
    } else if (scheme == "never") {
      step.prepend = Prepend::kNever;
    } else {
      return Unknown("Metaspace prepend_scheme", scheme, "always, first, never");
    }
    step.split = WEIR_TRY(BoolMember(item, "split", true));
    impl_->pre_tokenizers.emplace_back(step);
    return {};
  }

  Status LoadPreTokenizer(const Json& node) {
    return Flatten(node, "pretokenizers", 0, [this](const Json& item) -> Status {
      const std::string type = TypeOf(item);
      if (impl_->model.options.byte_level) {
        return Unsupported("'" + type + "' after ByteLevel is not supported; ByteLevel comes last");
      }
      if (type == "Split") return LoadSplit(item);
      if (type == "Metaspace") return LoadMetaspace(item);
      if (type == "Digits") {
        impl_->pre_tokenizers.emplace_back(
            DigitsStep{WEIR_TRY(BoolMember(item, "individual_digits", false))});
        return {};
      }
      if (type == "ByteLevel") {
        impl_->model.options.byte_level = true;
        if (WEIR_TRY(BoolMember(item, "add_prefix_space", true))) {
          impl_->pre_tokenizers.emplace_back(PrefixSpaceStep{});
        }
        if (WEIR_TRY(BoolMember(item, "use_regex", true))) {
          impl_->pre_tokenizers.emplace_back(SplitStep{WEIR_TRY(Regex::Compile(kGpt2Pattern))});
        }
        return {};
      }
      return Unknown("pre-tokenizer", type, "Split, Digits, ByteLevel, Metaspace, Sequence");
    });
  }

  Status LoadDecoder(const Json& node) {
    if (node.is_null()) {
      return Unknown("decoder", "null", "ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace");
    }
    bool fused = false;
    return Flatten(node, "decoders", 0, [this, &fused](const Json& item) -> Status {
      using Kind = TokenDecoder::Kind;
      const std::string type = TypeOf(item);
      if (fused && type != "Strip") {
        return Unsupported("decoder '" + type + "' after Fuse is not supported; accepted: Strip");
      }
      if (type == "ByteLevel") {
        decoders_.push_back({Kind::kByteLevel, "", "", false});
      } else if (type == "ByteFallback") {
        decoders_.push_back({Kind::kByteFallback, "", "", false});
      } else if (type == "Fuse") {
        fused = true;
      } else if (type == "Replace") {
        const std::string from = WEIR_TRY(StringMember(Member(item, "pattern"), "String", ""));
        if (from.empty()) return Unsupported("decoder 'Replace' needs a String pattern");
        const std::string content = WEIR_TRY(StringMember(item, "content", ""));
        decoders_.push_back({Kind::kReplace, from, content, false});
      } else if (type == "Metaspace") {
        const bool legacy = WEIR_TRY(BoolMember(item, "add_prefix_space", true));
        const std::string scheme =
            WEIR_TRY(StringMember(item, "prepend_scheme", legacy ? "always" : "never"));
        decoders_.push_back({Kind::kMetaspace,
                             WEIR_TRY(StringMember(item, "replacement", "\u2581")), " ",
                             scheme != "never"});
      } else if (type == "Strip") {
        const Json& start = Member(item, "start");
        const Json& stop = Member(item, "stop");
        const bool plain = fused && WEIR_TRY(StringMember(item, "content", "")) == " " &&
                           start.is_number_unsigned() && start.get<uint64_t>() <= 16 &&
                           stop.is_number_unsigned() && stop.get<uint64_t>() == 0;
        if (!plain) {
          return Unsupported(
              "decoder 'Strip' is supported after Fuse, with content \" \", start <= 16, stop 0");
        }
        impl_->strip_left = start.get<uint32_t>();
      } else {
        return Unknown("decoder", type,
                       "ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace, Sequence");
      }
      return {};
    });
  }

  // Makes room for |id|; ids may have holes but not absurd ones.
  Result<Tokenizer::Impl::Token*> Slot(const Json& id, size_t expected) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > expected * 4 + 65536) {
      return InvalidArgument("a token id is not a number in [0, " +
                             std::to_string(expected * 4 + 65536) +
                             "]: " + id.dump().substr(0, 32));
    }
    const size_t index = id.get<size_t>();
    if (impl_->tokens.size() <= index) impl_->tokens.resize(index + 1);
    return &impl_->tokens[index];
  }

  Status LoadVocabulary(const Json& model) {
    const Json& vocab = Member(model, "vocab");
    const std::string type = TypeOf(model);
    if (type != "BPE" && !(type == "(none)" && Member(model, "merges").is_array())) {
      return Unknown("model type", type, "BPE");
    }
    if (!vocab.is_object() || vocab.empty()) return InvalidArgument("vocab is not a filled object");
    for (const auto& [piece, id] : vocab.items()) {
      auto* token = WEIR_TRY(Slot(id, vocab.size()));
      if (token->in_vocabulary) {
        return InvalidArgument("id " + id.dump() + " belongs to two tokens");
      }
      token->piece = piece;
      token->in_vocabulary = true;
      model_ids_.emplace(piece, id.get<int32_t>());
    }
    return {};
  }

  Status LoadAddedTokens(const Json& list) {
    if (list.is_null()) return {};
    if (!list.is_array()) return InvalidArgument("not a list");
    std::vector<AddedToken> normalized;
    for (const Json& item : list) {
      AddedToken added;
      added.content = WEIR_TRY(StringMember(item, "content", ""));
      if (added.content.empty()) continue;
      const auto known = model_ids_.find(added.content);
      const Json id = known == model_ids_.end() ? Member(item, "id")
                                                : Json(static_cast<uint64_t>(known->second));
      auto* token = WEIR_TRY(Slot(id, model_ids_.size() + list.size()));
      added.id = static_cast<int32_t>(token - impl_->tokens.data());
      added.special = WEIR_TRY(BoolMember(item, "special", false));
      added.normalized = WEIR_TRY(BoolMember(item, "normalized", !added.special));
      added.lstrip = WEIR_TRY(BoolMember(item, "lstrip", false));
      added.rstrip = WEIR_TRY(BoolMember(item, "rstrip", false));
      added.single_word = WEIR_TRY(BoolMember(item, "single_word", false));
      token->piece = added.content;
      token->in_vocabulary = true;
      token->special = added.special;
      is_added_.resize(std::max(is_added_.size(), impl_->tokens.size()));
      is_added_[static_cast<size_t>(added.id)] = true;
      if (added.normalized) {
        Regex::Matcher matcher;
        added.content = WEIR_TRY(Normalize(impl_->normalizers, added.content, &matcher));
        impl_->normalized_added.Add(std::move(added));
      } else {
        impl_->raw_added.Add(std::move(added));
      }
    }
    return {};
  }

  void DecodeTokens() {
    is_added_.resize(impl_->tokens.size());
    const bool metaspace = std::any_of(decoders_.begin(), decoders_.end(), [](const auto& d) {
      return d.kind == TokenDecoder::Kind::kMetaspace;
    });
    for (size_t i = 0; i < impl_->tokens.size(); ++i) {
      auto& token = impl_->tokens[i];
      // An added token of a byte-level vocabulary is plain text, not the byte alphabet.
      if (is_added_[i] && impl_->model.options.byte_level) {
        token.bytes = token.piece;
        continue;
      }
      token.bytes = ApplyDecoders(decoders_, token.piece, false);
      if (metaspace) {
        token.first = ApplyDecoders(decoders_, token.piece, true);
        token.differs_first = token.first != token.bytes;
      }
    }
  }

  Result<int32_t> ModelId(std::string_view piece) const {
    const auto it = model_ids_.find(std::string(piece));
    if (it == model_ids_.end()) {
      return InvalidArgument("a merge uses '" + std::string(piece) + "', which is no token");
    }
    return it->second;
  }

  Status LoadMerges(const Json& merges) {
    if (!merges.is_array()) return InvalidArgument("merges is not a list");
    BpeModel& model = impl_->model;
    model.merges.Reserve(merges.size());
    for (const Json& merge : merges) {
      std::string left;
      std::string right;
      if (merge.is_string()) {
        const auto& text = merge.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
          return InvalidArgument("merge '" + text + "' is not two tokens with a space between");
        }
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
                 merge[1].is_string()) {
        left = merge[0].get<std::string>();
        right = merge[1].get<std::string>();
      } else {
        return InvalidArgument("a merge is neither \"a b\" nor [\"a\", \"b\"]");
      }
      const int32_t result = WEIR_TRY(ModelId(left + right));
      model.merges.Set(WEIR_TRY(ModelId(left)), WEIR_TRY(ModelId(right)),
                       {model.rank_count++, result});
    }
    return {};
  }

  Status LoadModel(const Json& node) {
    BpeModel& model = impl_->model;
    if (!Member(node, "dropout").is_null() && Member(node, "dropout") != 0.0) {
      return Unsupported("dropout is not supported; accepted: null");
    }
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!WEIR_TRY(StringMember(node, key, "")).empty()) {
        return Unsupported(std::string(key) + " is not supported; accepted: null");
      }
    }
    model.options.byte_fallback = WEIR_TRY(BoolMember(node, "byte_fallback", false));
    model.options.fuse_unk = WEIR_TRY(BoolMember(node, "fuse_unk", false));
    model.options.ignore_merges = WEIR_TRY(BoolMember(node, "ignore_merges", false));
    model.options.vocab_size = static_cast<int32_t>(impl_->tokens.size());
    const std::string unk = WEIR_TRY(StringMember(node, "unk_token", ""));
    if (!unk.empty()) {
      model.options.unk_id = WEIR_TRY(ModelId(unk));
      impl_->unk_id = model.options.unk_id;
    }
    for (const auto& [piece, id] : model_ids_) {
      if (model.options.byte_level) {
        const auto bytes = ByteLevelDecode(piece);
        if (!bytes) continue;
        if (bytes->size() == 1) model.byte_symbols[static_cast<uint8_t>((*bytes)[0])] = id;
        if (model.options.ignore_merges) model.whole_words.emplace(*bytes, id);
      } else {
        size_t pos = 0;
        if (!piece.empty()) {
          const char32_t c = NextCodePoint(piece, &pos);
          if (pos == piece.size()) model.char_symbols.emplace(c, id);
        }
        if (model.options.ignore_merges) model.whole_words.emplace(piece, id);
        if (const auto byte = ByteToken(piece)) {
          model.fallback_tokens[static_cast<uint8_t>(*byte)] = id;
        }
      }
    }
    return LoadMerges(Member(node, "merges"));
  }

  Status LoadTemplate(const Json& item) {
    const Json& single = Member(item, "single");
    if (!single.is_array()) return InvalidArgument("TemplateProcessing has no list 'single'");
    bool after = false;
    for (const Json& part : single) {
      if (part.is_object() && part.contains("Sequence")) {
        if (after) return Unsupported("TemplateProcessing repeats the text; accepted: once");
        after = true;
        continue;
      }
      const std::string name = WEIR_TRY(StringMember(Member(part, "SpecialToken"), "id", ""));
      const Json& ids = Member(Member(Member(item, "special_tokens"), name.c_str()), "ids");
      if (!ids.is_array()) {
        return InvalidArgument("TemplateProcessing does not define the token '" + name + "'");
      }
      for (const Json& id : ids) {
        if (!id.is_number_unsigned() || id.get<uint64_t>() >= impl_->tokens.size()) {
          return InvalidArgument("TemplateProcessing has an id outside the vocabulary");
        }
        (after ? impl_->suffix : impl_->prefix).push_back(id.get<int32_t>());
      }
    }
    return {};
  }

  Status LoadPostProcessor(const Json& node) {
    has_post_processor_ = !node.is_null();
    return Flatten(node, "processors", 0, [this](const Json& item) -> Status {
      const std::string type = TypeOf(item);
      if (type == "ByteLevel") return {};  // adjusts offsets, not ids
      if (type == "TemplateProcessing") return LoadTemplate(item);
      return Unknown("post-processor", type, "TemplateProcessing, ByteLevel, Sequence");
    });
  }

  // The token that |config|[key] names, as a string or as an object with "content".
  std::optional<int32_t> ConfigToken(const Json& config, const char* key) const {
    const Json* value = &Member(config, key);
    if (value->is_object()) value = &Member(*value, "content");
    if (!value->is_string()) return std::nullopt;
    const auto it = impl_->id_of_piece.find(value->get_ref<const std::string&>());
    if (it == impl_->id_of_piece.end()) return std::nullopt;
    return it->second;
  }

  Status LoadConfig(const Json& config) {
    if (!config.is_null() && !config.is_object()) return InvalidArgument("not an object");
    impl_->bos_id = ConfigToken(config, "bos_token");
    impl_->pad_id = ConfigToken(config, "pad_token");
    if (const auto unk = ConfigToken(config, "unk_token")) impl_->unk_id = unk;
    if (const auto eos = ConfigToken(config, "eos_token")) impl_->AddEos(*eos);
    if (!config.is_object()) {
      if (!impl_->prefix.empty()) impl_->bos_id = impl_->prefix.front();
      for (const char* name :
           {"</s>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<|endoftext|>"}) {
        const auto it = impl_->id_of_piece.find(name);
        if (it != impl_->id_of_piece.end() && Special(it->second)) impl_->AddEos(it->second);
      }
    }
    // Without a post-processor the "slow" tokenizer's switches say what is added.
    if (!has_post_processor_) {
      if (WEIR_TRY(BoolMember(config, "add_bos_token", false)) && impl_->bos_id) {
        impl_->prefix.push_back(*impl_->bos_id);
      }
      if (WEIR_TRY(BoolMember(config, "add_eos_token", false)) && !impl_->eos_ids.empty()) {
        impl_->suffix.push_back(impl_->eos_ids.front());
      }
    }
    return {};
  }

  bool Special(int32_t id) const { return impl_->Find(id) != nullptr && impl_->Find(id)->special; }

  Tokenizer::Impl* impl_;
  std::vector<TokenDecoder> decoders_;
  std::unordered_map<std::string, int32_t> model_ids_;
  std::vector<bool> is_added_;
  bool has_post_processor_ = false;
};

Result<Json> ParseJson(std::string_view text, const char* what) {
  if (text.size() > kMaxJsonBytes) return InvalidArgument(std::string(what) + " exceeds 256 MiB");
  Json root = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded()) return InvalidArgument(std::string(what) + " is not valid JSON");
  return root;
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> Tokenizer::FromTokenizerJson(
    std::string_view tokenizer_json, std::string_view tokenizer_config_json) {
  try {
    const Json root = WEIR_TRY(ParseJson(tokenizer_json, "tokenizer.json"));
    const Json config = tokenizer_config_json.empty()
                            ? Json()
                            : WEIR_TRY(ParseJson(tokenizer_config_json, "tokenizer_config.json"));
    auto impl = std::make_unique<Impl>();
    WEIR_TRY(Loader(impl.get()).Load(root, config).WithContext("tokenizer.json"));
    return std::make_unique<Tokenizer>(std::move(impl));
  } catch (const std::bad_alloc&) {
    return NoMemory("no memory to load tokenizer.json");
  } catch (const std::exception& e) {
    return InvalidArgument(std::string("tokenizer.json: ") + e.what());
  }
}

}  // namespace weir
