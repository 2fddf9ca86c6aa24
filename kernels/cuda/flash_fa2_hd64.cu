#include "kernels/cuda/flash_fa2.cuh"

namespace weir::cuda::flash {
template cudaError_t RunFa2<64>(const AttentionPlan&, const PlanBuffers&, const AttentionRun&,
                                const Launch&);
}
