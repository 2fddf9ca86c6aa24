#include "engine/model/text_files.h"

#include <filesystem>

#include "engine/model/json.h"

namespace weir {

namespace {

constexpr uint64_t kMaxTemplateBytes = 4u << 20;
constexpr uint64_t kMaxTokenizerConfigBytes = 64u << 20;

bool IsFile(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored);
}

// The template inside tokenizer_config.json, "" if there is none.
Result<std::string> TemplateFromConfig(const std::string& path) {
  const std::string text = WEIR_TRY(ReadTextFile(path, kMaxTokenizerConfigBytes));
  Result<nlohmann::json> parsed = ParseJson(text);
  if (!parsed.ok()) return parsed.status().WithContext(path);
  if (!parsed->is_object()) return DataLoss(path + " is not a JSON object");
  const auto entry = parsed->find("chat_template");
  if (entry == parsed->end() || entry->is_null()) return std::string();
  if (entry->is_string()) return entry->get<std::string>();
  if (entry->is_array()) {
    for (const nlohmann::json& named : *entry) {
      if (!named.is_object()) continue;
      const auto name = named.find("name");
      const auto body = named.find("template");
      if (name == named.end() || body == named.end() || !body->is_string()) continue;
      if (*name == "default") return body->get<std::string>();
    }
    return std::string();
  }
  return InvalidArgument(path + ": chat_template is neither a string nor a list");
}

Result<std::optional<int32_t>> TokenId(const GgufFile& file, std::string_view key, size_t tokens) {
  const GgufValue* value = file.FindValue(key);
  if (value == nullptr) return std::optional<int32_t>();
  // Some converters write "no such token" as -1 or 2^32-1.
  if (const auto* i = std::get_if<int64_t>(&value->value); i != nullptr && *i == -1) {
    return std::optional<int32_t>();
  }
  const std::optional<uint32_t> id = WEIR_TRY(file.Uint(key));
  if (!id || *id == 0xffffffffu) return std::optional<int32_t>();
  if (*id >= tokens || *id > 0x7fffffffu) {
    return InvalidArgument(std::string(key) + " is " + std::to_string(*id) +
                           ", outside the vocabulary of " + std::to_string(tokens));
  }
  return std::optional<int32_t>(static_cast<int32_t>(*id));
}

Status SameLength(std::string_view what, size_t length, size_t tokens) {
  if (length == 0 || length == tokens) return {};
  return InvalidArgument("tokenizer.ggml." + std::string(what) + " has " + std::to_string(length) +
                         " entries, tokens has " + std::to_string(tokens));
}

}  // namespace

Result<ModelTextFiles> FindTextFiles(const std::string& directory) {
  const std::filesystem::path root(directory);
  ModelTextFiles out;
  if (IsFile(root / "tokenizer.json")) out.tokenizer_json_path = (root / "tokenizer.json").string();
  if (IsFile(root / "tokenizer_config.json")) {
    out.tokenizer_config_json_path = (root / "tokenizer_config.json").string();
  }
  if (IsFile(root / "chat_template.jinja")) {
    const std::string path = (root / "chat_template.jinja").string();
    out.chat_template = WEIR_TRY(ReadTextFile(path, kMaxTemplateBytes));
  } else if (!out.tokenizer_config_json_path.empty()) {
    out.chat_template = WEIR_TRY(TemplateFromConfig(out.tokenizer_config_json_path));
  }
  return out;
}

Result<ModelTextFiles> ReadGgufTextFiles(const GgufFile& file) {
  ModelTextFiles out;
  const auto chat_template = WEIR_TRY(file.String("tokenizer.chat_template"));
  out.chat_template = chat_template.value_or("");
  const auto* tokens = WEIR_TRY(file.Strings("tokenizer.ggml.tokens"));
  if (tokens == nullptr) return out;

  GgufTokenizer tokenizer;
  tokenizer.tokens = *tokens;
  const auto model = WEIR_TRY(file.String("tokenizer.ggml.model"));
  const auto pre = WEIR_TRY(file.String("tokenizer.ggml.pre"));
  tokenizer.model = model.value_or("");
  tokenizer.pre = pre.value_or("");
  auto scores = WEIR_TRY(file.Floats("tokenizer.ggml.scores"));
  if (scores) tokenizer.scores = std::move(*scores);
  auto types = WEIR_TRY(file.Ints("tokenizer.ggml.token_type"));
  if (types) tokenizer.token_types = std::move(*types);
  const auto* merges = WEIR_TRY(file.Strings("tokenizer.ggml.merges"));
  if (merges != nullptr) tokenizer.merges = *merges;
  const size_t count = tokenizer.tokens.size();
  WEIR_TRY(SameLength("scores", tokenizer.scores.size(), count));
  WEIR_TRY(SameLength("token_type", tokenizer.token_types.size(), count));
  tokenizer.bos_id = WEIR_TRY(TokenId(file, "tokenizer.ggml.bos_token_id", count));
  tokenizer.eos_id = WEIR_TRY(TokenId(file, "tokenizer.ggml.eos_token_id", count));
  tokenizer.eot_id = WEIR_TRY(TokenId(file, "tokenizer.ggml.eot_token_id", count));
  tokenizer.unk_id = WEIR_TRY(TokenId(file, "tokenizer.ggml.unknown_token_id", count));
  tokenizer.pad_id = WEIR_TRY(TokenId(file, "tokenizer.ggml.padding_token_id", count));
  tokenizer.add_bos = WEIR_TRY(file.Bool("tokenizer.ggml.add_bos_token"));
  tokenizer.add_eos = WEIR_TRY(file.Bool("tokenizer.ggml.add_eos_token"));
  tokenizer.add_space_prefix = WEIR_TRY(file.Bool("tokenizer.ggml.add_space_prefix"));
  out.gguf_tokenizer = std::move(tokenizer);
  return out;
}

}  // namespace weir
