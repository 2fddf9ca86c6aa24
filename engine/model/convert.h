// Number formats of model files, exactly as their owners define them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "engine/model/dtype.h"

namespace weir {

// bfloat16 is the upper half of a float: exact.
inline float Bf16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}
// Round to nearest, ties to even; NaN stays NaN (quiet).
inline uint16_t FloatToBf16Rne(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 64u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
// IEEE binary16: exact, including subnormals, infinities and NaN payloads.
float F16ToFloat(uint16_t bits);
// Round to nearest, ties to even; overflow gives infinity.
uint16_t FloatToF16Rne(float value);

// Bytes of one row of |cols| elements; nullopt if |cols| is not whole blocks or the size overflows.
std::optional<uint64_t> RowBytes(DType dtype, uint64_t cols);

// |rows| rows of |cols| elements, stored one after the other, to float. |cols| is whole blocks.
// Q8_0: d*q. Q4_0: d*(q-8). Q4_1: d*q+m, product rounded before the sum (GGML's reference order).
void DequantizeRows(DType dtype, const std::byte* src, size_t rows, size_t cols, float* out);

// Rows [first_row, first_row+rows) of the made-up tensor |tensor_id|: about normal with mean 0 and
// standard deviation |scale|, |value| <= 3.5 scale. Each element depends on (seed, tensor_id, row,
// column) only, so any order and any split gives the same tensor on every machine.
void FillDummyRows(uint64_t seed, uint64_t tensor_id, uint64_t first_row, size_t rows, size_t cols,
                   float scale, float* out);

}  // namespace weir
