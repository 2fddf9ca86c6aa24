#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/thread_pool.h"

namespace weir::cpu {

// Weights W[n, k] are stored as bf16 in panels of 16 output rows, [ceil(n/16)][k][16]: element
// (row, col) is at (row/16 * k + col) * 16 + row%16. Rows past n in the last panel are zero.
// A run of whole panels is itself a packed matrix, so a caller can cut W along n at multiples of
// 16 (weights + panel * k * 16, y + panel * 16). Any 2-byte alignment works; 64 is fastest.
inline constexpr int64_t kPanelRows = 16;

// Multiply-adds are chained over at most this many columns before they join the running sum.
inline constexpr int64_t kGemmKBlock = 256;

size_t PackedWeightBytes(int64_t n, int64_t k);

// Packs rows [row0, row0 + nrows) of W[n, k], given row-major from its row row0 on, rounding to
// nearest even. Any split into ranges gives the same bytes; the range that contains row n-1 also
// zeroes the padding rows, so every row must be packed before the matrix is used.
void PackRows(const float* rows, int64_t row0, int64_t nrows, int64_t n, int64_t k,
              uint16_t* packed);
void PackRows(const uint16_t* bf16_rows, int64_t row0, int64_t nrows, int64_t n, int64_t k,
              uint16_t* packed);

enum class GemmOutput {
  kOverwrite,   // y = ...
  kAccumulate,  // y = y + ... (a residual stream)
};

struct GemmParams {
  const float* x = nullptr;  // [m, k], row stride ldx (floats)
  int64_t ldx = 0;
  const uint16_t* weights = nullptr;  // packed W[n, k]
  const float* bias = nullptr;        // [n] or null
  float* y = nullptr;                 // [m, n], row stride ldy (floats); must not overlap x
  int64_t ldy = 0;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  GemmOutput output = GemmOutput::kOverwrite;
};

// y = x · Wᵀ (+ bias) (+ y). Allocates nothing. Exact semantics of each y[i, j], which depend on
// nothing but row i of x, row j of W, bias[j] and y[i, j]:
//   t = kAccumulate ? y[i, j] : +0;     if (bias) t = t + bias[j];
//   for each block [k0, min(k0 + 256, k)) in increasing order:
//     a = +0;  for c in the block, increasing:  a = fma(x[i, c], W[j, c], a);
//     t = t + a;
//   y[i, j] = t
void Gemm(const GemmParams& params, ThreadPool& pool);

}  // namespace weir::cpu
