#include "engine/model/convert.h"

#include <cstring>

#include "vmm/check.h"
#include "vmm/checked_math.h"

namespace weir {

namespace {

uint16_t LoadU16(const std::byte* p) {
  uint16_t v = 0;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// The block layouts are those of ggml-common.h: block_q8_0 {half d; int8 qs[32]}, block_q4_0 {half
// d; uint8 qs[16]}, block_q4_1 {half d, m; uint8 qs[16]}. In the 4-bit formats byte j holds element
// j in its low nibble and element j + 16 in its high nibble.
constexpr size_t kBlock = 32;

void Q8_0Block(const std::byte* src, float* out) {
  const float d = F16ToFloat(LoadU16(src));
  for (size_t j = 0; j < kBlock; ++j) {
    out[j] = static_cast<float>(static_cast<int8_t>(src[2 + j])) * d;
  }
}

void Q4_0Block(const std::byte* src, float* out) {
  const float d = F16ToFloat(LoadU16(src));
  for (size_t j = 0; j < kBlock / 2; ++j) {
    const int q = std::to_integer<int>(src[2 + j]);
    out[j] = static_cast<float>((q & 15) - 8) * d;
    out[j + kBlock / 2] = static_cast<float>((q >> 4) - 8) * d;
  }
}

void Q4_1Block(const std::byte* src, float* out) {
  const float d = F16ToFloat(LoadU16(src));
  const float m = F16ToFloat(LoadU16(src + 2));
  for (size_t j = 0; j < kBlock / 2; ++j) {
    const int q = std::to_integer<int>(src[4 + j]);
    out[j] = static_cast<float>(q & 15) * d + m;
    out[j + kBlock / 2] = static_cast<float>(q >> 4) * d + m;
  }
}

// splitmix64's finaliser (Steele, Lea, Flood 2014): a bijection, every input bit reaches every
// output.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ull;

}  // namespace

float F16ToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 31u;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  // Subnormal: mantissa * 2^-24, exact in float.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}

uint16_t FloatToF16Rne(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half = 0;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 0.5 aligns the mantissa so that the FPU rounds at half's last subnormal
    // bit.
    const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
    half = std::bit_cast<uint32_t>(aligned) - 0x3f000000u;
  } else {
    const uint32_t odd = (magnitude >> 13) & 1u;
    half = (magnitude - (112u << 23) + 0xfffu + odd) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

std::optional<uint64_t> RowBytes(DType dtype, uint64_t cols) {
  const DTypeTraits traits = TraitsOf(dtype);
  if (cols % traits.block_elements != 0) return std::nullopt;
  return CheckedMul(cols / traits.block_elements, traits.block_bytes);
}

void DequantizeRows(DType dtype, const std::byte* src, size_t rows, size_t cols, float* out) {
  // Rows are whole blocks, so consecutive rows are one run of blocks.
  WEIR_CHECK(cols % TraitsOf(dtype).block_elements == 0, "rows are whole blocks");
  const size_t n = rows * cols;
  switch (dtype) {
    case DType::kF32:
      if (n != 0) std::memcpy(out, src, n * sizeof(float));
      return;
    case DType::kF16:
      for (size_t i = 0; i < n; ++i) out[i] = F16ToFloat(LoadU16(src + 2 * i));
      return;
    case DType::kBF16:
      for (size_t i = 0; i < n; ++i) out[i] = Bf16ToFloat(LoadU16(src + 2 * i));
      return;
    case DType::kQ8_0:
      for (size_t b = 0; b < n / kBlock; ++b) Q8_0Block(src + b * 34, out + b * kBlock);
      return;
    case DType::kQ4_0:
      for (size_t b = 0; b < n / kBlock; ++b) Q4_0Block(src + b * 18, out + b * kBlock);
      return;
    case DType::kQ4_1:
      for (size_t b = 0; b < n / kBlock; ++b) Q4_1Block(src + b * 20, out + b * kBlock);
      return;
  }
}

void FillDummyRows(uint64_t seed, uint64_t tensor_id, uint64_t first_row, size_t rows, size_t cols,
                   float scale, float* out) {
  const uint64_t tensor_key = Mix(Mix(seed + kGolden) + tensor_id * kGolden + kGolden);
  // The sum of four uniform 16-bit numbers (Irwin-Hall) has mean 131070 and variance 4*(2^32-1)/12.
  constexpr float kUnitStd = 1.0f / 37837.228f;
  const float multiplier = scale * kUnitStd;
  for (size_t r = 0; r < rows; ++r) {
    const uint64_t row_key = Mix(tensor_key + (first_row + r) * kGolden);
    for (size_t c = 0; c < cols; ++c) {
      const uint64_t h = Mix(row_key + c * kGolden);
      const auto sum = static_cast<int32_t>((h & 0xffff) + ((h >> 16) & 0xffff) +
                                            ((h >> 32) & 0xffff) + (h >> 48));
      out[r * cols + c] = static_cast<float>(sum - 131070) * multiplier;
    }
  }
}

}  // namespace weir
