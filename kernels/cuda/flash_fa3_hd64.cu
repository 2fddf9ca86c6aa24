#include "kernels/cuda/flash_fa3.cuh"

namespace weir::cuda::flash {
template cudaError_t RunFa3<64>(const AttentionPlan&, const PlanBuffers&, const AttentionRun&,
                                const Launch&);
}
