#include "kernels/cpu/elementwise.h"

#include <algorithm>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/row_tasks.h"

namespace weir::cpu {

void ConvertBf16ToFloat(const uint16_t* in, int64_t n, float* out) {
  ActiveKernels().bf16_to_float(in, n, out);
}

void ConvertFloatToBf16(const float* in, int64_t n, uint16_t* out) {
  ActiveKernels().float_to_bf16(in, n, out);
}

void Exp(const float* in, int64_t n, float* out) {
  ActiveKernels().exp(in, n, out);
}

void SiluMul(const SiluMulParams& p, ThreadPool& pool) {
  const KernelTable& kernels = ActiveKernels();
  ForRows(pool, p.m, 4 * p.ffn, [&](int64_t i) {
    const float* gate = p.gate_up + i * p.ld_gate_up;
    kernels.silu_mul(gate, gate + p.ffn, p.ffn, p.y + i * p.ldy);
  });
}

void EmbedPacked(const EmbedParams& p, ThreadPool& pool) {
  ForRows(pool, p.m, 4 * p.h, [&](int64_t i) {
    const int64_t id = p.ids[i];
    const uint16_t* in = p.table + id / kPanelRows * kPanelRows * p.h + id % kPanelRows;
    float* y = p.y + i * p.ldy;
    for (int64_t c = 0; c < p.h; ++c) y[c] = Bf16ToFloat(in[c * kPanelRows]);
  });
}

void EmbedRowMajor(const EmbedParams& p, ThreadPool& pool) {
  const KernelTable& kernels = ActiveKernels();
  ForRows(pool, p.m, p.h, [&](int64_t i) {
    kernels.bf16_to_float(p.table + p.ids[i] * p.h, p.h, p.y + i * p.ldy);
  });
}

void GatherRows(const float* x, int64_t ldx, const int32_t* rows, int64_t m, int64_t h, float* y,
                int64_t ldy) {
  for (int64_t i = 0; i < m; ++i) std::copy_n(x + rows[i] * ldx, h, y + i * ldy);
}

void AddRows(const float* x, int64_t ldx, int64_t m, int64_t h, float* y, int64_t ldy) {
  const KernelTable& kernels = ActiveKernels();
  for (int64_t i = 0; i < m; ++i) kernels.add(x + i * ldx, h, y + i * ldy);
}

int64_t Argmax(const float* x, int64_t n) {
  const float best = ActiveKernels().max(x, n);
  const float* found = std::find(x, x + n, best);
  return found == x + n ? 0 : found - x;
}

void ArgmaxRows(const float* x, int64_t ldx, int64_t m, int64_t n, int64_t* index,
                ThreadPool& pool) {
  ForRows(pool, m, n, [&](int64_t i) { index[i] = Argmax(x + i * ldx, n); });
}

}  // namespace weir::cpu
