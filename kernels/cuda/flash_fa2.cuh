// RunFa2 for one head size; each .cu file instantiates it once.
#pragma once

#include <vector>

#include <cuda_bf16.h>
#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <flashinfer/attention/variants.cuh>

#include "kernels/cuda/flash.h"

namespace weir::cuda::flash {

using Fa2Params = flashinfer::BatchPrefillPagedParams<Bf16, Bf16, Bf16, int32_t>;
using Fa2Variant = flashinfer::DefaultAttention</*custom_mask=*/false, /*sliding_window=*/false,
                                                /*soft_cap=*/false, /*alibi=*/false>;

template <int kHeadDim>
Fa2Params MakeFa2Params(const AttentionPlan& plan, const AttentionRun& run) {
  const KvLayout& layout = run.kv.layout;
  // In the order of the layout's axes, which paged_kv_t takes apart again.
  const bool token_head = layout.order == KvOrder::kTokenHead;
  const int64_t strides[3] = {run.kv.block_stride,
                              token_head ? layout.TokenStride() : layout.HeadStride(),
                              token_head ? layout.HeadStride() : layout.TokenStride()};
  const flashinfer::paged_kv_t<Bf16, int32_t> kv(
      static_cast<uint32_t>(layout.kv_heads), kBlockTokens, kHeadDim,
      static_cast<uint32_t>(plan.sequences),
      token_head ? flashinfer::QKVLayout::kNHD : flashinfer::QKVLayout::kHND,
      run.kv.base + layout.KOffset(run.layer), run.kv.base + layout.VOffset(run.layer), strides,
      run.pages.blocks, run.pages.page_indptr, run.pages.last_page_len);
  return Fa2Params(const_cast<Bf16*>(run.q), kv, /*maybe_custom_mask=*/nullptr, run.pages.q_indptr,
                   /*maybe_mask_indptr=*/nullptr, /*maybe_q_rope_offset=*/nullptr, run.out, run.lse,
                   /*maybe_alibi_slopes=*/nullptr, static_cast<uint32_t>(plan.shape.q_heads),
                   static_cast<int32_t>(run.q_stride), kHeadDim, /*window_left=*/-1,
                   /*logits_soft_cap=*/0.0f, run.scale, /*rope_scale=*/1.0f,
                   /*rope_theta=*/10000.0f);
}

template <int kHeadDim>
cudaError_t RunFa2(const AttentionPlan& plan, const PlanBuffers& buffers, const AttentionRun& run,
                   const Launch& launch) {
  using flashinfer::GetPtrFromBaseOffset;
  flashinfer::PrefillPlanInfo info;
  info.FromVector(std::vector<int64_t>(plan.fields, plan.fields + 15));
  Fa2Params params = MakeFa2Params<kHeadDim>(plan, run);
  const auto ints = [&](int64_t offset) {
    return GetPtrFromBaseOffset<int32_t>(buffers.device_int, offset);
  };
  params.request_indices = ints(info.request_indices_offset);
  params.qo_tile_indices = ints(info.qo_tile_indices_offset);
  params.kv_tile_indices = ints(info.kv_tile_indices_offset);
  params.o_indptr = ints(info.o_indptr_offset);
  params.kv_chunk_size_ptr = ints(info.kv_chunk_size_ptr_offset);
  Bf16* partial = nullptr;
  float* partial_lse = nullptr;
  if (info.split_kv) {
    params.merge_indptr = ints(info.merge_indptr_offset);
    partial = GetPtrFromBaseOffset<Bf16>(buffers.device_float, info.v_offset);
    partial_lse = GetPtrFromBaseOffset<float>(buffers.device_float, info.s_offset);
    if (info.enable_cuda_graph) {
      params.block_valid_mask =
          GetPtrFromBaseOffset<bool>(buffers.device_int, info.block_valid_mask_offset);
    }
  }
  params.padded_batch_size = static_cast<uint32_t>(info.padded_batch_size);
  params.max_total_num_rows = static_cast<uint32_t>(info.total_num_rows);
  if (info.enable_cuda_graph) {
    params.total_num_rows =
        GetPtrFromBaseOffset<uint32_t>(buffers.device_int, info.total_num_rows_offset);
  }
  const bool pdl = launch.overlap == Overlap::kPrologue && DeviceArchitecture() >= 90;
  const auto run_tile = [&]<uint32_t kTile>() {
    return flashinfer::BatchPrefillWithPagedKVCacheDispatched<
        kTile, kHeadDim, kHeadDim, flashinfer::PosEncodingMode::kNone,
        /*USE_FP16_QK_REDUCTION=*/false, flashinfer::MaskMode::kCausal, Fa2Variant, Fa2Params>(
        params, partial, partial_lse, pdl, launch.stream);
  };
  switch (info.cta_tile_q) {
    case 16: return run_tile.template operator()<16>();
    case 64: return run_tile.template operator()<64>();
    case 128:
      if constexpr (kHeadDim < 256) return run_tile.template operator()<128>();
  }
  return cudaErrorNotSupported;
}

}  // namespace weir::cuda::flash
