#include "engine/open_model.h"

#include <string>
#include <utility>

#include "engine/model/byte_source.h"
#include "engine/model/model_config.h"

namespace weir {
namespace {

constexpr uint64_t kMostTextBytes = uint64_t{256} << 20;

TokenizerSpec SpecOf(const GgufTokenizer& g) {
  return {.model = g.model,
          .pre = g.pre,
          .tokens = g.tokens,
          .scores = g.scores,
          .token_types = g.token_types,
          .merges = g.merges,
          .bos_id = g.bos_id,
          .eos_id = g.eos_id,
          .eot_id = g.eot_id,
          .unk_id = g.unk_id,
          .pad_id = g.pad_id,
          .add_bos = g.add_bos,
          .add_eos = g.add_eos,
          .add_space_prefix = g.add_space_prefix};
}

}  // namespace

Result<Checkpoint> OpenCheckpoint(const EngineOptions& options) {
  if (options.model.empty()) return InvalidArgument("no model given");
  if (!options.dummy_weights) return Checkpoint::Open(options.model);
  const bool is_file = options.model.ends_with(".json");
  const std::string path = is_file ? options.model : options.model + "/config.json";
  const std::string text = WEIR_TRY(ReadTextFile(path, kMostTextBytes));
  ModelConfig config = WEIR_TRY(ParseModelConfig(text));
  ModelTextFiles text_files;
  if (!is_file) text_files = WEIR_TRY(FindTextFiles(options.model));
  return Checkpoint::Dummy(std::move(config), options.dummy_seed, std::move(text_files));
}

Result<std::unique_ptr<Tokenizer>> OpenTokenizer(const ModelTextFiles& files) {
  if (files.gguf_tokenizer) return Tokenizer::FromSpec(SpecOf(*files.gguf_tokenizer));
  if (files.tokenizer_json_path.empty()) return std::unique_ptr<Tokenizer>();
  const std::string json = WEIR_TRY(ReadTextFile(files.tokenizer_json_path, kMostTextBytes));
  std::string config;
  if (!files.tokenizer_config_json_path.empty()) {
    config = WEIR_TRY(ReadTextFile(files.tokenizer_config_json_path, kMostTextBytes));
  }
  return Tokenizer::FromTokenizerJson(json, config);
}

}  // namespace weir
