// CUDA graphs with owners, and errors of the CUDA runtime as Status.
#pragma once

#include <functional>
#include <memory>
#include <type_traits>

#include <cuda_runtime_api.h>

#include "kernels/cuda/launch.h"
#include "vmm/status.h"

namespace weir {

Status ToStatus(const cuda::LaunchStatus& status);
// |what| was being done.
Status FromCuda(cudaError_t error, const char* what);

struct CudaGraphDeleter {
  void operator()(cudaGraphExec_t graph) const { (void)cudaGraphExecDestroy(graph); }
};
using CudaGraph = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, CudaGraphDeleter>;

// What |enqueue| puts on |stream|, ready to be launched on it. Its error, or CUDA's; the capture
// has ended either way.
Result<CudaGraph> CaptureCudaGraph(cudaStream_t stream, const std::function<Status()>& enqueue);

}  // namespace weir
