#include "kernels/cpu/rope.h"

#include <cmath>

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/row_tasks.h"

namespace weir::cpu {

void DefaultInvFreq(double theta, int64_t rotary_dim, float* inv_freq) {
  for (int64_t i = 0; i < rotary_dim / 2; ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(rotary_dim);
    inv_freq[i] = static_cast<float>(std::pow(theta, -exponent));
  }
}

void FillRopeTable(const float* inv_freq, int64_t half, int64_t pos_begin, int64_t pos_end,
                   double attention_scale, float* cos, float* sin) {
  for (int64_t pos = pos_begin; pos < pos_end; ++pos) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = inv_freq[i] * static_cast<float>(pos);
      cos[pos * half + i] = static_cast<float>(std::cos(angle) * attention_scale);
      sin[pos * half + i] = static_cast<float>(std::sin(angle) * attention_scale);
    }
  }
}

void ApplyRope(const RopeParams& p, ThreadPool& pool) {
  const KernelTable& kernels = ActiveKernels();
  const int64_t half = p.rotary_dim / 2;
  ForRows(pool, p.m, p.heads * p.rotary_dim, [&](int64_t i) {
    const float* cos = p.cos + p.positions[i] * half;
    const float* sin = p.sin + p.positions[i] * half;
    for (int64_t h = 0; h < p.heads; ++h) {
      kernels.rope(p.x + i * p.row_stride + h * p.head_dim, cos, sin, half);
    }
  });
}

}  // namespace weir::cpu
