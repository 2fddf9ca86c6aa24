// Any bytes as a GGUF file, then as a model: what is accepted must be readable and consistent.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/model/convert.h"
#include "engine/model/gguf_model.h"
#include "engine/model/tensor_file.h"
#include "engine/model/text_files.h"
#include "vmm/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const weir::SpanSource source(std::as_bytes(std::span<const uint8_t>(data, size)));
  const auto file = weir::GgufFile::Parse(source);
  if (!file.ok()) {
    WEIR_CHECK(!file.status().message().empty(), "an error explains itself");
    return 0;
  }
  uint64_t total = 0;
  for (const weir::TensorInfo& info : file->tensors()) {
    std::vector<std::byte> bytes(info.bytes);
    WEIR_CHECK(source.ReadAt(info.offset, bytes).ok(), "an accepted tensor lies in the file");
    WEIR_CHECK(file->Find(info.name) == &info, "an accepted tensor is found by its name");
    const weir::DTypeTraits traits = weir::TraitsOf(info.dtype);
    std::vector<float> values(info.bytes / traits.block_bytes * traits.block_elements);
    weir::DequantizeRows(info.dtype, bytes.data(), 1, values.size(), values.data());
    total += info.bytes;
  }
  WEIR_CHECK(total <= size, "tensors do not share bytes");
  const auto text = weir::ReadGgufTextFiles(*file);
  if (text.ok() && text->gguf_tokenizer && text->gguf_tokenizer->eos_id) {
    const auto eos = static_cast<size_t>(*text->gguf_tokenizer->eos_id);
    WEIR_CHECK(eos < text->gguf_tokenizer->tokens.size(), "ids lie in the vocabulary");
  }
  const auto config = weir::ConfigFromGguf(*file, source);
  if (config.ok()) {
    WEIR_CHECK(weir::ValidateModelConfig(*config).ok(), "an accepted configuration is valid");
    WEIR_CHECK(weir::RopeInverseFrequencies(*config).size() == config->head_dim / 2, "rope size");
  }
  return 0;
}
