// RunFa3 for one head size; each .cu file instantiates it once. sm_90a only.
#pragma once

#include <flashinfer/allocator.h>
#include <flashinfer/attention/hopper/default_params.cuh>
#include <flashinfer/attention/hopper/prefill_sm90.cuh>
#include <flashinfer/attention/hopper/variants.cuh>

#include "kernels/cuda/flash.h"

namespace weir::cuda::flash {

template <int kHeadDim>
cudaError_t RunFa3(const AttentionPlan& plan, const PlanBuffers& buffers, const AttentionRun& run,
                   const Launch& launch) {
  using Element = cutlass::bfloat16_t;
  using Params = flashinfer::BatchPrefillPagedParams<Element, Element, Element, int32_t>;
  // The fields of flashinfer::PrefillPlanSM90Info, whose header cannot be included beside these.
  const int64_t* f = plan.fields;
  const bool same_schedule = f[8] != 0;
  if (same_schedule) return cudaErrorNotSupported;  // refused by PlanAttention
  const auto ints = [&](int64_t offset) {
    return flashinfer::GetPtrFromBaseOffset<int32_t>(buffers.device_int, offset);
  };
  const KvLayout& layout = run.kv.layout;
  Params p{};
  p.q_ptr = reinterpret_cast<Element*>(const_cast<Bf16*>(run.q));
  p.k_ptr = reinterpret_cast<Element*>(run.kv.base + layout.KOffset(run.layer));
  p.v_ptr = reinterpret_cast<Element*>(run.kv.base + layout.VOffset(run.layer));
  p.o_ptr = reinterpret_cast<Element*>(run.out);
  p.lse_ptr = run.lse;
  p.qo_tile_indices = ints(f[0]);
  p.qo_indptr = ints(f[1]);
  p.kv_indptr = ints(f[2]);
  p.qo_lens = ints(f[3]);
  p.kv_lens = ints(f[4]);
  p.head_indices = ints(f[5]);
  p.work_indptr = ints(f[6]);
  p.batch_indices = ints(f[7]);
  p.kv_indices = run.pages.blocks;
  p.additional_params.logits_soft_cap = 0.0f;
  p.additional_params.sm_scale = run.scale;
  p.q_stride_n = run.q_stride;
  p.q_stride_h = kHeadDim;
  p.o_stride_n = int64_t{plan.shape.q_heads} * kHeadDim;
  p.o_stride_h = kHeadDim;
  p.k_stride_n = p.v_stride_n = layout.TokenStride();
  p.k_stride_h = p.v_stride_h = layout.HeadStride();
  p.k_page_stride = p.v_page_stride = run.kv.block_stride;
  p.nnz_qo = plan.rows;
  p.num_qo_heads = plan.shape.q_heads;
  p.num_kv_heads = plan.shape.kv_heads;
  p.group_size = plan.shape.q_heads / plan.shape.kv_heads;
  p.page_size = kBlockTokens;
  p.window_left = -1;
  p.causal = true;
  return flashinfer::BatchPrefillWithPagedKVCacheDispatched<
      kHeadDim, kHeadDim, flashinfer::MaskMode::kCausal, /*LEFT_SLIDING_WINDOW=*/false,
      /*SAME_SCHEDULE_FOR_ALL_HEADS=*/false, flashinfer::StandardAttention>(p, /*enable_pdl=*/false,
                                                                            launch.stream);
}

}  // namespace weir::cuda::flash
