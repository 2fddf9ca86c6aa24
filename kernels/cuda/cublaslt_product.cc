#include "kernels/cuda/cublaslt_product.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace weir::cuda {
namespace {

// Represents what is asked of cuBLASLt's proposals.
class Preference {
 public:
  explicit Preference(const CublasLtApi& api) : api_(api) {}
  ~Preference() {
    if (preference_ != nullptr) api_.cublasLtMatmulPreferenceDestroy(preference_);
  }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;

  LaunchStatus Set(const LtLimits& limits) {
    LaunchStatus status =
        FromCublas(api_.cublasLtMatmulPreferenceCreate(&preference_), "preferences");
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      if (!status.ok()) return;
      status = FromCublas(
          api_.cublasLtMatmulPreferenceSetAttribute(preference_, attribute, &value, sizeof(value)),
          "preferences");
    };
    const uint32_t reductions = limits.allow_split_k ? uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE} |
                                                           CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
                                                     : uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE};
    const uint32_t alignment = 16;
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, limits.workspace_bytes);
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      set(attribute, alignment);
    }
    return status;
  }
  cublasLtMatmulPreference_t get() const { return preference_; }

 private:
  const CublasLtApi& api_;
  cublasLtMatmulPreference_t preference_ = nullptr;
};

}  // namespace

LaunchStatus FromCublas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return {};
  return {cudaErrorUnknown, std::string("gemm: ") + what + ": " + CublasStatusName(status)};
}

std::string Describe(const GemmKind& kind, int64_t m) {
  return "[" + std::to_string(m) + ", " + std::to_string(kind.k) + "] x [" +
         std::to_string(kind.n) + ", " + std::to_string(kind.k) + "]^T";
}

void AppendNew(const cublasLtMatmulAlgo_t& algorithm, Algorithms* to) {
  const auto same = [&](const cublasLtMatmulAlgo_t& other) {
    return std::memcmp(&algorithm, &other, sizeof(other)) == 0;
  };
  if (std::none_of(to->begin(), to->end(), same)) to->push_back(algorithm);
}

LtProduct::~LtProduct() {
  if (op_ != nullptr) api_.cublasLtMatmulDescDestroy(op_);
  for (cublasLtMatrixLayout_t layout : {a_, b_, d_}) {
    if (layout != nullptr) api_.cublasLtMatrixLayoutDestroy(layout);
  }
}

LaunchStatus LtProduct::Create(const CublasLtApi& api, cublasLtHandle_t handle, const GemmParams& p,
                               std::unique_ptr<LtProduct>* product) {
  std::unique_ptr<LtProduct> made(new LtProduct(api, handle, p.kind));
  made->rows_ = p.m;
  const auto n = static_cast<uint64_t>(p.kind.n);
  const auto k = static_cast<uint64_t>(p.kind.k);
  const auto m = static_cast<uint64_t>(p.m);
  const cudaDataType_t out = p.kind.type == GemmOutputType::kF32 ? CUDA_R_32F : CUDA_R_16BF;
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    return api.cublasLtMatmulDescSetAttribute(made->op_, attribute, &value, sizeof(value));
  };
  std::array<cublasStatus_t, 9> results{};
  size_t i = 0;
  results[i++] = api.cublasLtMatmulDescCreate(&made->op_, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  if (results[0] != CUBLAS_STATUS_SUCCESS) return FromCublas(results[0], "describing a product");
  results[i++] = set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  results[i++] = set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  if (p.kind.bias) {
    results[i++] = set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    results[i++] = set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_16BF);
    results[i++] = set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  }
  results[i++] = api.cublasLtMatrixLayoutCreate(&made->a_, CUDA_R_16BF, k, n, p.kind.k);
  results[i++] = api.cublasLtMatrixLayoutCreate(&made->b_, CUDA_R_16BF, k, m, p.kind.k);
  results[i++] = api.cublasLtMatrixLayoutCreate(&made->d_, out, n, m, p.kind.YStride());
  for (const cublasStatus_t status : results) {
    if (status != CUBLAS_STATUS_SUCCESS) return FromCublas(status, "describing a product");
  }
  *product = std::move(made);
  return {};
}

LaunchStatus LtProduct::SetRows(int64_t m) {
  if (rows_ == m) return {};
  const auto columns = static_cast<uint64_t>(m);
  for (cublasLtMatrixLayout_t layout : {b_, d_}) {
    LaunchStatus s = FromCublas(api_.cublasLtMatrixLayoutSetAttribute(
                                    layout, CUBLASLT_MATRIX_LAYOUT_COLS, &columns, sizeof(columns)),
                                "setting the rows");
    if (!s.ok()) return s;
  }
  rows_ = m;
  return {};
}

LaunchStatus LtProduct::Propose(const LtLimits& limits, std::span<const int64_t> rows, int count,
                                Algorithms* algorithms) {
  Preference preference(api_);
  if (LaunchStatus s = preference.Set(limits); !s.ok()) return s;
  std::vector<cublasLtMatmulHeuristicResult_t> found(static_cast<size_t>(count));
  for (const int64_t m : rows) {
    if (LaunchStatus s = SetRows(m); !s.ok()) return s;
    int results = 0;
    LaunchStatus s = FromCublas(
        api_.cublasLtMatmulAlgoGetHeuristic(handle_, op_, a_, b_, d_, d_, preference.get(), count,
                                            found.data(), &results),
        "no algorithm");
    if (!s.ok()) return {s.code(), s.message() + " for " + Describe(kind_, m)};
    for (size_t i = 0; i < static_cast<size_t>(results); ++i) {
      if (found[i].state == CUBLAS_STATUS_SUCCESS &&
          found[i].workspaceSize <= limits.workspace_bytes) {
        AppendNew(found[i].algo, algorithms);
      }
    }
  }
  return {};
}

LaunchStatus LtProduct::Run(const GemmParams& p, const cublasLtMatmulAlgo_t& algorithm,
                            const LtLimits& limits, cudaStream_t stream) {
  if (LaunchStatus s = SetRows(p.m); !s.ok()) return s;
  if (p.kind.bias) {
    LaunchStatus s =
        FromCublas(api_.cublasLtMatmulDescSetAttribute(op_, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                                       &p.bias, sizeof(p.bias)),
                   "setting the bias");
    if (!s.ok()) return s;
  }
  const float alpha = 1.0f;
  const float beta = p.kind.output == GemmOutput::kAccumulate ? 1.0f : 0.0f;
  return FromCublas(
      api_.cublasLtMatmul(handle_, op_, &alpha, p.weights, a_, p.x, b_, &beta, p.y, d_, p.y, d_,
                          &algorithm, limits.workspace, limits.workspace_bytes, stream),
      "cublasLtMatmul");
}

}  // namespace weir::cuda
