#pragma once

#include <bit>
#include <cstdint>

#include "kernels/cpu/thread_pool.h"

namespace weir::cpu {

// bf16 is the upper half of binary32. Rounding is to nearest even; NaN stays NaN.
constexpr float Bf16ToFloat(uint16_t b) {
  return std::bit_cast<float>(uint32_t{b} << 16);
}
constexpr uint16_t FloatToBf16(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
void ConvertBf16ToFloat(const uint16_t* in, int64_t n, float* out);
void ConvertFloatToBf16(const float* in, int64_t n, uint16_t* out);

// The exponential every kernel uses, within 2 ulp of exp and bit-identical on all instruction
// sets. Exact semantics, with the constants of kernels/cpu/exp_constants.h:
//   x' = min(max(x, kExpLow), kExpHigh);  t = fma(x', kLog2e, kRound);  n = t - kRound;
//   r = fma(n, -kLn2Low, fma(n, -kLn2High, x'));
//   e = Horner of kExpPoly in r, by fma;  result = e * 2^n;  0 where x < kExpLow.
// Exp(0) is exactly 1; NaN gives NaN.
void Exp(const float* in, int64_t n, float* out);  // in may be out

// y[i, j] = silu(gate) * up of a fused row [gate(ffn) | up(ffn)]:
//   (gate / (1 + Exp(-gate))) * up
struct SiluMulParams {
  const float* gate_up = nullptr;  // [m, 2*ffn], row stride ld_gate_up (floats)
  int64_t ld_gate_up = 0;
  float* y = nullptr;  // [m, ffn], row stride ldy; may be the gate half itself
  int64_t ldy = 0;
  int64_t m = 0;
  int64_t ffn = 0;
};
void SiluMul(const SiluMulParams& params, ThreadPool& pool);

// y[i, :] = row ids[i] of W[n, h], widened to float. Ids are in [0, n). The packed form reads
// gemm.h panels, so tied embeddings need one copy of the matrix.
struct EmbedParams {
  const uint16_t* table = nullptr;
  int64_t h = 0;
  const int32_t* ids = nullptr;  // [m]
  int64_t m = 0;
  float* y = nullptr;  // [m, h], row stride ldy (floats)
  int64_t ldy = 0;
};
void EmbedPacked(const EmbedParams& params, ThreadPool& pool);
void EmbedRowMajor(const EmbedParams& params, ThreadPool& pool);

// y[i, :] = x[rows[i], :] (the hidden states whose logits are wanted). y must not overlap x.
void GatherRows(const float* x, int64_t ldx, const int32_t* rows, int64_t m, int64_t h, float* y,
                int64_t ldy);

// y[i, j] = y[i, j] + x[i, j]
void AddRows(const float* x, int64_t ldx, int64_t m, int64_t h, float* y, int64_t ldy);

// The smallest index of the largest value; NaN never wins (0 when all are NaN). n > 0.
int64_t Argmax(const float* x, int64_t n);
void ArgmaxRows(const float* x, int64_t ldx, int64_t m, int64_t n, int64_t* index,
                ThreadPool& pool);

}  // namespace weir::cpu
