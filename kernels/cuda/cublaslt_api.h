// cuBLASLt, opened at run time: a program with these kernels starts on a machine without the
// library, and says so when a GPU is asked for.
#pragma once

#include <string>

#include <cublasLt.h>

namespace weir::cuda {

#define WEIR_CUBLASLT_FUNCTIONS(X)        \
  X(cublasLtCreate)                       \
  X(cublasLtDestroy)                      \
  X(cublasLtGetVersion)                   \
  X(cublasLtMatmul)                       \
  X(cublasLtMatmulAlgoGetHeuristic)       \
  X(cublasLtMatmulDescCreate)             \
  X(cublasLtMatmulDescDestroy)            \
  X(cublasLtMatmulDescSetAttribute)       \
  X(cublasLtMatmulPreferenceCreate)       \
  X(cublasLtMatmulPreferenceDestroy)      \
  X(cublasLtMatmulPreferenceSetAttribute) \
  X(cublasLtMatrixLayoutCreate)           \
  X(cublasLtMatrixLayoutDestroy)          \
  X(cublasLtMatrixLayoutSetAttribute)

struct CublasLtApi {
#define WEIR_MEMBER(name) decltype(&::name) name = nullptr;
  WEIR_CUBLASLT_FUNCTIONS(WEIR_MEMBER)
#undef WEIR_MEMBER
};

// The library, opened once a process and never closed; null with |reason| set when it is not there,
// is of another major version than the headers, or lacks a function.
const CublasLtApi* LoadCublasLt(std::string* reason);

// "CUBLAS_STATUS_..." in short words.
const char* CublasStatusName(cublasStatus_t status);

}  // namespace weir::cuda
