#include "kernels/cpu/kv.h"

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/row_tasks.h"

namespace weir::cpu {
namespace {

template <typename T>
void ScatterK(const T* in, int64_t head_dim, T* slab, int64_t offset) {
  for (int64_t d = 0; d < head_dim; ++d) slab[d * kBlockTokens + offset] = in[d];
}

}  // namespace

void KvAppend(const KvPool& kv, const KvAppendParams& p, ThreadPool& pool) {
  const KernelTable& kernels = ActiveKernels();
  const KvLayout layout = kv.layout;
  const int64_t dim = layout.head_dim;
  const int64_t padded = layout.PaddedHeadDim();
  ForRows(pool, p.m, 4 * layout.kv_heads * dim, [&](int64_t i) {
    if (p.slots[i] < 0) return;
    const int64_t offset = p.slots[i] % kBlockTokens;
    uint8_t* block =
        static_cast<uint8_t*>(kv.base) + p.slots[i] / kBlockTokens * kv.block_stride_bytes;
    for (int64_t h = 0; h < layout.kv_heads; ++h) {
      const float* k = p.k + i * p.row_stride + h * dim;
      const float* v = p.v + i * p.row_stride + h * dim;
      void* k_slab = block + layout.KOffset(p.layer, h);
      void* v_slab = block + layout.VOffset(p.layer, h);
      if (layout.dtype == KvDtype::kBf16) {
        uint16_t narrow[kMaxHeadDim];
        kernels.float_to_bf16(k, dim, narrow);
        ScatterK(narrow, dim, static_cast<uint16_t*>(k_slab), offset);
        kernels.float_to_bf16(v, dim, static_cast<uint16_t*>(v_slab) + offset * padded);
      } else {
        ScatterK(k, dim, static_cast<float*>(k_slab), offset);
        std::copy_n(v, dim, static_cast<float*>(v_slab) + offset * padded);
      }
    }
  });
}

}  // namespace weir::cpu
