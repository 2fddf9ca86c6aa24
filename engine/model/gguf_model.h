// A GGUF file's metadata as a ModelConfig.
#pragma once

#include "engine/model/model_config.h"
#include "engine/model/tensor_file.h"
#include "vmm/status.h"

namespace weir {

// Reads general.architecture (llama, qwen2, qwen3; Mistral files say llama) and {arch}.*; biases,
// tied embeddings, vocabulary and llama3 rope divisors come from which tensors there are.
// |rope_freqs| in |source| are read. Validated like ParseModelConfig, with the same codes.
Result<ModelConfig> ConfigFromGguf(const GgufFile& file, const ByteSource& source);

}  // namespace weir
