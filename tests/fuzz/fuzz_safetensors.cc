// Any bytes as a .safetensors file. What is accepted must lie inside the input and be readable.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/model/convert.h"
#include "engine/model/tensor_file.h"
#include "vmm/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const weir::SpanSource source(std::as_bytes(std::span<const uint8_t>(data, size)));
  const auto file = weir::SafetensorsFile::Parse(source);
  if (!file.ok()) {
    WEIR_CHECK(!file.status().message().empty(), "an error explains itself");
    return 0;
  }
  uint64_t total = 0;
  for (const weir::TensorInfo& info : file->tensors()) {
    std::vector<std::byte> bytes(info.bytes);
    WEIR_CHECK(source.ReadAt(info.offset, bytes).ok(), "an accepted tensor lies in the file");
    const auto found = file->Find(info.name);
    WEIR_CHECK(found.ok() && *found == &info, "an accepted tensor is found by its name");
    std::vector<float> values(info.bytes / weir::TraitsOf(info.dtype).block_bytes);
    weir::DequantizeRows(info.dtype, bytes.data(), 1, values.size(), values.data());
    total += info.bytes;
  }
  WEIR_CHECK(total <= size, "tensors do not share bytes");
  return 0;
}
