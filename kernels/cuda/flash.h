// FlashInfer's FA2 and FA3 kernels, one translation unit a head size. Internal to attention.cc:
// parameters have been checked. These functions may throw flashinfer::Error (a std::exception).
#pragma once

#include "kernels/cuda/attention.h"

namespace weir::cuda::flash {

cudaError_t PlanFa2(const PlanRequest& request, const PlanBuffers& buffers, cudaStream_t stream,
                    AttentionPlan* plan);
cudaError_t PlanFa3(const PlanRequest& request, const PlanBuffers& buffers, cudaStream_t stream,
                    AttentionPlan* plan);
cudaError_t Fa2PlanSizes(const PlanRequest& request, PlanSizes* sizes);

template <int kHeadDim>
cudaError_t RunFa2(const AttentionPlan& plan, const PlanBuffers& buffers, const AttentionRun& run,
                   const Launch& launch);
template <int kHeadDim>
cudaError_t RunFa3(const AttentionPlan& plan, const PlanBuffers& buffers, const AttentionRun& run,
                   const Launch& launch);

extern template cudaError_t RunFa2<64>(const AttentionPlan&, const PlanBuffers&,
                                       const AttentionRun&, const Launch&);
extern template cudaError_t RunFa2<128>(const AttentionPlan&, const PlanBuffers&,
                                        const AttentionRun&, const Launch&);
extern template cudaError_t RunFa2<256>(const AttentionPlan&, const PlanBuffers&,
                                        const AttentionRun&, const Launch&);
extern template cudaError_t RunFa3<64>(const AttentionPlan&, const PlanBuffers&,
                                       const AttentionRun&, const Launch&);
extern template cudaError_t RunFa3<128>(const AttentionPlan&, const PlanBuffers&,
                                        const AttentionRun&, const Launch&);
extern template cudaError_t RunFa3<256>(const AttentionPlan&, const PlanBuffers&,
                                        const AttentionRun&, const Launch&);

}  // namespace weir::cuda::flash
