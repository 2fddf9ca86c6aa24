// One kind of dense product as cuBLASLt sees it: descriptors, what algorithms it proposes, and the
// launch. Internal to GemmPlanner, which chooses.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/gemm.h"

namespace weir::cuda {

LaunchStatus FromCublas(cublasStatus_t status, const char* what);
std::string Describe(const GemmKind& kind, int64_t m);

using Algorithms = std::vector<cublasLtMatmulAlgo_t>;
// Appends |algorithm| if it is not among them.
void AppendNew(const cublasLtMatmulAlgo_t& algorithm, Algorithms* to);

// What algorithms may use.
struct LtLimits {
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
  bool allow_split_k = true;
};

// Represents products of one kind, of any number of rows at a time. |handle| outlives it.
class LtProduct {
 public:
  static LaunchStatus Create(const CublasLtApi& api, cublasLtHandle_t handle,
                             const GemmParams& params, std::unique_ptr<LtProduct>* product);
  ~LtProduct();
  LtProduct(const LtProduct&) = delete;
  LtProduct& operator=(const LtProduct&) = delete;

  // Appends the first |count| algorithms for each number of rows, those that are new.
  LaunchStatus Propose(const LtLimits& limits, std::span<const int64_t> rows, int count,
                       Algorithms* algorithms);
  // Enqueues. cudaErrorUnknown: cuBLASLt refuses the algorithm.
  LaunchStatus Run(const GemmParams& params, const cublasLtMatmulAlgo_t& algorithm,
                   const LtLimits& limits, cudaStream_t stream);

 private:
  LtProduct(const CublasLtApi& api, cublasLtHandle_t handle, const GemmKind& kind)
      : api_(api), handle_(handle), kind_(kind) {}
  LaunchStatus SetRows(int64_t m);

  const CublasLtApi& api_;
  cublasLtHandle_t handle_;
  const GemmKind kind_;
  // In cuBLASLt's column-major terms D[n, m] = Aᵀ·B with A = W (ld k), B = X (ld k), D = Y.
  cublasLtMatmulDesc_t op_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, d_ = nullptr;
  int64_t rows_ = 0;  // that b and d are set to now
};

}  // namespace weir::cuda
