// Where a model's tokenizer and chat template are; the text folder turns them into behaviour.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/model/tensor_file.h"
#include "vmm/status.h"

namespace weir {

// Represents the tokenizer a GGUF file carries (tokenizer.ggml.*), as written: absent values are
// absent, defaults are the text folder's business. Ids are below tokens.size().
struct GgufTokenizer {
  std::string model;  // "gpt2" (byte-level BPE), "llama" (SentencePiece), ...
  std::string pre;    // name of the splitting rule; empty if the file has none
  std::vector<std::string> tokens;
  std::vector<float> scores;         // empty, or one a token
  std::vector<int32_t> token_types;  // empty, or one a token; 1 normal .. 3 control .. 6 byte
  std::vector<std::string> merges;   // "left right", by rank
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  std::optional<int32_t> eot_id;
  std::optional<int32_t> unk_id;
  std::optional<int32_t> pad_id;
  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  std::optional<bool> add_space_prefix;
};

// Represents the text side of a model. For a Hugging Face directory the paths are set where the
// files exist; for a GGUF file |gguf_tokenizer| is.
struct ModelTextFiles {
  std::string tokenizer_json_path;         // empty: none
  std::string tokenizer_config_json_path;  // empty: none
  std::string chat_template;               // Jinja source, never run here; empty: none
  std::optional<GgufTokenizer> gguf_tokenizer;
};

// |directory|: as Checkpoint::Open. chat_template.jinja wins over tokenizer_config.json, whose
// template may be a string or a list of named ones ("default" is taken).
Result<ModelTextFiles> FindTextFiles(const std::string& directory);
// kInvalidArgument where lists differ in length or an id lies outside the vocabulary.
Result<ModelTextFiles> ReadGgufTextFiles(const GgufFile& file);

}  // namespace weir
