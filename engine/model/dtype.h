// The element formats weir reads from model files.
#pragma once

#include <cstdint>
#include <string_view>

namespace weir {

// kQ8_0, kQ4_0 and kQ4_1 are GGML block formats: 32 consecutive elements of a row share one scale.
enum class DType : uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1 };
inline constexpr uint8_t kDTypeCount = 6;

struct DTypeTraits {
  std::string_view name;
  uint32_t block_elements;  // consecutive elements of one row stored together
  uint32_t block_bytes;
};

constexpr DTypeTraits TraitsOf(DType dtype) {
  switch (dtype) {
    case DType::kF32: return {"F32", 1, 4};
    case DType::kF16: return {"F16", 1, 2};
    case DType::kBF16: return {"BF16", 1, 2};
    case DType::kQ8_0: return {"Q8_0", 32, 34};
    case DType::kQ4_0: return {"Q4_0", 32, 18};
    case DType::kQ4_1: return {"Q4_1", 32, 20};
  }
  return {"?", 1, 4};
}
constexpr std::string_view DTypeName(DType dtype) {
  return TraitsOf(dtype).name;
}

// For messages that say what would have been accepted.
inline constexpr std::string_view kAcceptedDTypes = "F32, F16, BF16, Q8_0, Q4_0, Q4_1";

}  // namespace weir
