// What a GemmPlanner keeps. Internal to gemm.cc, gemm_choose.cc and gemm_choices.cc.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "kernels/cuda/cublaslt_product.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/skinny_gemm.h"

namespace weir::cuda {

// Numbers of rows that share what cuBLASLt proposes (gemm_choose.cc).
struct SharedRows {
  int64_t from, to, step;
};

struct GemmPlanner::Lt {
  const CublasLtApi* api = nullptr;
  cublasLtHandle_t handle = nullptr;
  std::string gpu;
  SkinnyGemm skinny;  // supports nothing unless created
  LtLimits limits;
  std::map<std::pair<GemmKind, const SharedRows*>, Algorithms> shared;
  ~Lt() {
    if (handle != nullptr) api->cublasLtDestroy(handle);
  }
};

struct GemmPlanner::Bucket {
  std::unique_ptr<LtProduct> product;  // null: of compressed weights, or not prepared
  bool prepared = false;               // otherwise imported only
  cublasLtMatmulAlgo_t algorithm = {};
  bool chosen = false;
  int cluster = 0;  // of our own kernel, if that is the one; |algorithm| is all zero then
  double seconds = 0;
  Algorithms candidates;  // worth timing; while the algorithm is being chosen
};

}  // namespace weir::cuda
