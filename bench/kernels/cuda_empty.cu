#include "bench/kernels/cuda_empty.h"
#include "kernels/cuda/enqueue.cuh"

namespace weir::bench {
namespace {

struct Nothing {};

__global__ void __launch_bounds__(256) EmptyKernel(const Nothing) {
  cuda::WaitForPredecessor();
}

}  // namespace

cuda::LaunchStatus Empty(int blocks, const cuda::Launch& launch) {
  return cuda::Enqueue("empty", EmptyKernel, blocks, 256, launch, Nothing{});
}

}  // namespace weir::bench
