// FlashInfer's planning: host code, no kernel is instantiated here.
#include <algorithm>
#include <vector>

#include <flashinfer/attention/scheduler.cuh>

#include "kernels/cuda/flash.h"

namespace weir::cuda::flash {
namespace {

void Keep(const PlanRequest& request, const std::vector<int64_t>& fields, AttentionPlan* plan) {
  *plan = {};
  plan->kernel = request.kernel;
  plan->use = request.use;
  plan->shape = request.shape;
  plan->sequences = request.batch.sequences;
  plan->rows = request.batch.q_indptr_host[request.batch.sequences];
  std::copy(fields.begin(), fields.end(), plan->fields);
}

// FlashInfer takes the arrays as non-const and only reads them.
int32_t* Mutable(const int32_t* p) {
  return const_cast<int32_t*>(p);
}

struct Fa2Arguments {
  uint32_t rows, batch, q_heads, kv_heads, head_dim;
  bool graph;
  int32_t split;
  int64_t uniform_rows;
};

Fa2Arguments ArgumentsOf(const PlanRequest& r) {
  return {static_cast<uint32_t>(r.batch.q_indptr_host[r.batch.sequences]),
          static_cast<uint32_t>(r.batch.sequences),
          static_cast<uint32_t>(r.shape.q_heads),
          static_cast<uint32_t>(r.shape.kv_heads),
          static_cast<uint32_t>(r.shape.head_dim),
          r.use != PlanUse::kEager,
          r.split_pages > 0 ? r.split_pages : -1,
          r.use == PlanUse::kDecodeGraph ? 1 : 0};
}

constexpr uint32_t kOutputBytes = 2;
constexpr int32_t kNoWindow = -1;

}  // namespace

cudaError_t PlanFa2(const PlanRequest& request, const PlanBuffers& buffers, cudaStream_t stream,
                    AttentionPlan* plan) {
  const Fa2Arguments a = ArgumentsOf(request);
  flashinfer::PrefillPlanInfo info;
  const cudaError_t status = flashinfer::PrefillPlan<int32_t>(
      buffers.device_float, buffers.float_bytes, buffers.device_int, buffers.host_int,
      buffers.int_bytes, info, Mutable(request.batch.q_indptr_host),
      Mutable(request.batch.page_indptr_host), a.rows, a.batch, a.q_heads, a.kv_heads, a.head_dim,
      a.head_dim, kBlockTokens, a.graph, kOutputBytes, kNoWindow, a.split,
      /*disable_split_kv=*/false, /*num_colocated_ctas=*/0, a.uniform_rows, stream);
  Keep(request, info.ToVector(), plan);
  return status;
}

cudaError_t Fa2PlanSizes(const PlanRequest& request, PlanSizes* sizes) {
  const Fa2Arguments a = ArgumentsOf(request);
  return flashinfer::PrefillPlanWorkspaceSize<int32_t>(
      sizes->float_bytes, sizes->int_bytes, Mutable(request.batch.q_indptr_host),
      Mutable(request.batch.page_indptr_host), a.rows, a.batch, a.q_heads, a.kv_heads, a.head_dim,
      a.head_dim, kBlockTokens, a.graph, kOutputBytes, kNoWindow, a.split,
      /*disable_split_kv=*/false, /*num_colocated_ctas=*/0, a.uniform_rows, /*stream=*/nullptr);
}

cudaError_t PlanFa3(const PlanRequest& request, const PlanBuffers& buffers, cudaStream_t stream,
                    AttentionPlan* plan) {
  const Fa2Arguments a = ArgumentsOf(request);
  flashinfer::PrefillPlanSM90Info info;
  const cudaError_t status = flashinfer::PrefillSM90Plan<int32_t>(
      buffers.device_float, buffers.float_bytes, buffers.device_int, buffers.host_int,
      buffers.int_bytes, info, Mutable(request.batch.q_indptr_host),
      Mutable(request.batch.page_indptr_host), Mutable(request.batch.context_host), a.rows, a.batch,
      a.q_heads, a.kv_heads, a.head_dim, a.head_dim, kBlockTokens, /*causal=*/true, a.graph,
      kOutputBytes, stream);
  Keep(request, info.ToVector(), plan);
  return status;
}

}  // namespace weir::cuda::flash
