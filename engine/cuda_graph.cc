#include "engine/cuda_graph.h"

namespace weir {

Status ToStatus(const cuda::LaunchStatus& status) {
  if (status.ok()) return OkStatus();
  if (status.code() == cudaErrorNotSupported) return Unsupported(status.message());
  if (status.code() == cudaErrorInvalidValue) return InvalidArgument(status.message());
  return DriverError(status.message());
}

Status FromCuda(cudaError_t error, const char* what) {
  return ToStatus(cuda::LaunchStatus::Of(error, what));
}

Result<CudaGraph> CaptureCudaGraph(cudaStream_t stream, const std::function<Status()>& enqueue) {
  WEIR_TRY(FromCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                    "cudaStreamBeginCapture"));
  Status status = enqueue();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  if (status.ok()) status = FromCuda(ended, "cudaStreamEndCapture");
  cudaGraphExec_t exec = nullptr;
  if (status.ok()) {
    status = FromCuda(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
  }
  CudaGraph made(exec);
  if (graph != nullptr) (void)cudaGraphDestroy(graph);
  if (status.ok()) status = FromCuda(cudaGraphUpload(exec, stream), "cudaGraphUpload");
  if (!status.ok()) return status;
  return made;
}

}  // namespace weir
