#include "kernels/cpu/norm.h"

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/row_tasks.h"

namespace weir::cpu {

void RmsNorm(const RmsNormParams& p, ThreadPool& pool) {
  const KernelTable& kernels = ActiveKernels();
  ForRows(pool, p.m, p.h, [&](int64_t i) {
    kernels.rms_norm(p.x + i * p.ldx, p.weight, p.eps, p.h, p.y + i * p.ldy);
  });
}

void HeadRmsNorm(const HeadRmsNormParams& p, ThreadPool& pool) {
  const KernelTable& kernels = ActiveKernels();
  ForRows(pool, p.m, p.heads * p.head_dim, [&](int64_t i) {
    for (int64_t h = 0; h < p.heads; ++h) {
      float* x = p.x + i * p.row_stride + h * p.head_dim;
      kernels.rms_norm(x, p.weight, p.eps, p.head_dim, x);
    }
  });
}

}  // namespace weir::cpu
