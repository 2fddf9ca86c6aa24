#include "kernels/cuda/gemm.h"

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <limits>
#include <sstream>
#include <vector>

#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/skinny_gemm.h"

namespace weir::cuda {
namespace {

LaunchStatus FromCublas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return {};
  return {cudaErrorUnknown, std::string("gemm: ") + what + ": " + CublasStatusName(status)};
}

std::string Describe(const GemmKind& kind, int64_t m) {
  return "[" + std::to_string(m) + ", " + std::to_string(kind.k) + "] x [" +
         std::to_string(kind.n) + ", " + std::to_string(kind.k) + "]^T";
}

constexpr size_t kAlgorithmWords = sizeof(cublasLtMatmulAlgo_t::data) / sizeof(uint64_t);

}  // namespace

struct GemmPlanner::Lt {
  const CublasLtApi* api = nullptr;
  cublasLtHandle_t handle = nullptr;
  std::string gpu;
  SkinnyGemm skinny;  // supports nothing unless created
  ~Lt() {
    if (handle != nullptr) api->cublasLtDestroy(handle);
  }
};

// In cuBLASLt's column-major terms D[n, m] = Aᵀ·B with A = W (ld k), B = X (ld k), D = Y (ld n).
struct GemmPlanner::Bucket {
  const CublasLtApi* api = nullptr;
  cublasLtMatmulDesc_t op = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
  int64_t columns = 0;  // m that b and d are set to now
  cublasLtMatmulAlgo_t algorithm = {};
  bool chosen = false;
  int cluster = 0;  // of our own kernel, if that is the one; |algorithm| is all zero then
  double seconds = 0;
  ~Bucket() {
    if (op != nullptr) api->cublasLtMatmulDescDestroy(op);
    for (cublasLtMatrixLayout_t layout : {a, b, d}) {
      if (layout != nullptr) api->cublasLtMatrixLayoutDestroy(layout);
    }
  }
};

GemmPlanner::GemmPlanner(const GemmPlannerOptions& options)
    : options_(options), lt_(std::make_unique<Lt>()) {}
GemmPlanner::~GemmPlanner() = default;

LaunchStatus GemmPlanner::Create(const GemmPlannerOptions& options,
                                 std::unique_ptr<GemmPlanner>* planner) {
  if (options.candidates < 1 || options.rounds < 1 ||
      (options.workspace_bytes > 0 && options.workspace == nullptr) ||
      reinterpret_cast<uintptr_t>(options.workspace) % 256 != 0) {
    return LaunchStatus::Invalid(
        "gemm: candidates and rounds are at least 1, and the workspace is 256-byte aligned");
  }
  std::unique_ptr<GemmPlanner> made(new GemmPlanner(options));
  std::string reason;
  made->lt_->api = LoadCublasLt(&reason);
  if (made->lt_->api == nullptr) return {cudaErrorSharedObjectInitFailed, "gemm: " + reason};
  int device = 0;
  cudaDeviceProp properties = {};
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) return LaunchStatus::Of(error, "gemm: the current device");
  made->lt_->gpu = properties.name;
  LaunchStatus status =
      FromCublas(made->lt_->api->cublasLtCreate(&made->lt_->handle), "cublasLtCreate");
  if (status.ok() && options.skinny != SkinnyUse::kNever) {
    status = SkinnyGemm::Create(&made->lt_->skinny);
    if (status.code() == cudaErrorNotSupported) status = {};  // cuBLASLt makes them all
  }
  if (status.ok()) *planner = std::move(made);
  return status;
}

LaunchStatus GemmPlanner::Check(const GemmParams& p) const {
  const GemmKind& kind = p.kind;
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  if (p.m < 1 || kind.n < 1 || kind.k < 8 || kind.k % 8 != 0 || p.m > kMax || kind.n > kMax) {
    return LaunchStatus::Invalid("gemm: m and n must be at least 1 and k a multiple of 8, got " +
                                 Describe(kind, p.m));
  }
  for (const void* pointer : {static_cast<const void*>(p.x), static_cast<const void*>(p.weights),
                              static_cast<const void*>(p.y)}) {
    if (pointer == nullptr || reinterpret_cast<uintptr_t>(pointer) % 16 != 0) {
      return LaunchStatus::Invalid("gemm: x, weights and y must be 16-byte aligned pointers");
    }
  }
  if (kind.bias != (p.bias != nullptr)) {
    return LaunchStatus::Invalid(
        "gemm: a bias pointer must be given exactly when kind.bias is set");
  }
  if (kind.output == GemmOutput::kAccumulate && kind.type == GemmOutputType::kF32) {
    return LaunchStatus::Invalid("gemm: only bf16 outputs accumulate");
  }
  return CheckWeightGate(p.gate, "gemm");
}

LaunchStatus GemmPlanner::MakeBucket(const GemmParams& p, Bucket* bucket) const {
  const CublasLtApi& lt = *lt_->api;
  bucket->api = &lt;
  bucket->columns = p.m;
  const auto n = static_cast<uint64_t>(p.kind.n);
  const auto k = static_cast<uint64_t>(p.kind.k);
  const auto m = static_cast<uint64_t>(p.m);
  const cudaDataType_t out = p.kind.type == GemmOutputType::kF32 ? CUDA_R_32F : CUDA_R_16BF;
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    return lt.cublasLtMatmulDescSetAttribute(bucket->op, attribute, &value, sizeof(value));
  };
  std::array<cublasStatus_t, 9> results{};
  size_t i = 0;
  results[i++] = lt.cublasLtMatmulDescCreate(&bucket->op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
  if (results[0] != CUBLAS_STATUS_SUCCESS) return FromCublas(results[0], "describing a product");
  results[i++] = set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  results[i++] = set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  if (p.kind.bias) {
    results[i++] = set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    results[i++] = set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_16BF);
    results[i++] = set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  }
  results[i++] = lt.cublasLtMatrixLayoutCreate(&bucket->a, CUDA_R_16BF, k, n, p.kind.k);
  results[i++] = lt.cublasLtMatrixLayoutCreate(&bucket->b, CUDA_R_16BF, k, m, p.kind.k);
  results[i++] = lt.cublasLtMatrixLayoutCreate(&bucket->d, out, n, m, p.kind.n);
  for (const cublasStatus_t status : results) {
    if (status != CUBLAS_STATUS_SUCCESS) return FromCublas(status, "describing a product");
  }
  return {};
}

LaunchStatus GemmPlanner::Enqueue(Bucket& bucket, const GemmParams& p, const Launch& launch) const {
  if (bucket.cluster > 0) return lt_->skinny.Run(p, bucket.cluster, launch);
  const CublasLtApi& lt = *lt_->api;
  if (bucket.columns != p.m) {
    const auto columns = static_cast<uint64_t>(p.m);
    for (cublasLtMatrixLayout_t layout : {bucket.b, bucket.d}) {
      LaunchStatus s =
          FromCublas(lt.cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_COLS,
                                                         &columns, sizeof(columns)),
                     "setting the rows");
      if (!s.ok()) return s;
    }
    bucket.columns = p.m;
  }
  if (p.kind.bias) {
    LaunchStatus s =
        FromCublas(lt.cublasLtMatmulDescSetAttribute(bucket.op, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                                     &p.bias, sizeof(p.bias)),
                   "setting the bias");
    if (!s.ok()) return s;
  }
  const float alpha = 1.0f;
  const float beta = p.kind.output == GemmOutput::kAccumulate ? 1.0f : 0.0f;
  return FromCublas(
      lt.cublasLtMatmul(lt_->handle, bucket.op, &alpha, p.weights, bucket.a, p.x, bucket.b, &beta,
                        p.y, bucket.d, p.y, bucket.d, &bucket.algorithm, options_.workspace,
                        options_.workspace_bytes, launch.stream),
      "cublasLtMatmul");
}

LaunchStatus GemmPlanner::Time(const GemmParams& p, std::span<const Bf16* const> weights,
                               cudaStream_t stream, Bucket* bucket, float* ms) {
  cudaEvent_t begin = nullptr, end = nullptr;
  cudaError_t error = cudaEventCreate(&begin);
  if (error == cudaSuccess) error = cudaEventCreate(&end);
  LaunchStatus status = LaunchStatus::Of(error, "gemm: timing");
  // Short products are repeated: an event costs microseconds of its own.
  const double work = 2.0 * static_cast<double>(p.m) * static_cast<double>(p.kind.n) *
                      static_cast<double>(p.kind.k);
  const int repeats = work < 1e11 ? 10 : 1;
  *ms = std::numeric_limits<float>::max();
  for (int round = 0; round <= options_.rounds && status.ok(); ++round) {  // round 0 warms up
    status = LaunchStatus::Of(cudaEventRecord(begin, stream), "gemm: timing");
    const size_t passes = std::max<size_t>(1, static_cast<size_t>(repeats) / weights.size());
    for (size_t i = 0; i < passes * weights.size() && status.ok(); ++i) {
      GemmParams rotated = p;
      rotated.weights = weights[i % weights.size()];
      status = Enqueue(*bucket, rotated, {.stream = stream, .overlap = Overlap::kPrologue});
    }
    if (!status.ok()) break;
    error = cudaEventRecord(end, stream);
    if (error == cudaSuccess) error = cudaEventSynchronize(end);
    float took = 0;
    if (error == cudaSuccess) error = cudaEventElapsedTime(&took, begin, end);
    status = LaunchStatus::Of(error, "gemm: timing");
    if (round > 0) *ms = std::min(*ms, took / static_cast<float>(passes * weights.size()));
  }
  if (begin != nullptr) (void)cudaEventDestroy(begin);
  if (end != nullptr) (void)cudaEventDestroy(end);
  return status;
}

LaunchStatus GemmPlanner::Choose(const GemmParams& p, std::span<const Bf16* const> weights,
                                 cudaStream_t stream, Bucket* bucket) {
  const bool skinny = lt_->skinny.Supports(p.kind, p.m);
  if (skinny && options_.skinny == SkinnyUse::kAlways) {
    bucket->cluster = lt_->skinny.Clusters(p.kind).front();
    bucket->chosen = true;
    return {};
  }
  const CublasLtApi& lt = *lt_->api;
  cublasLtMatmulPreference_t preference = nullptr;
  LaunchStatus status = FromCublas(lt.cublasLtMatmulPreferenceCreate(&preference), "preferences");
  if (!status.ok()) return status;
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    if (!status.ok()) return;
    status = FromCublas(
        lt.cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
        "preferences");
  };
  const uint32_t reductions = options_.allow_split_k ? uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE} |
                                                           CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
                                                     : uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE};
  const uint32_t alignment = 16;
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, options_.workspace_bytes);
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    set(attribute, alignment);
  }
  std::vector<cublasLtMatmulHeuristicResult_t> found(static_cast<size_t>(options_.candidates));
  int count = 0;
  if (status.ok()) {
    status = FromCublas(lt.cublasLtMatmulAlgoGetHeuristic(
                            lt_->handle, bucket->op, bucket->a, bucket->b, bucket->d, bucket->d,
                            preference, options_.candidates, found.data(), &count),
                        "no algorithm");
  }
  lt.cublasLtMatmulPreferenceDestroy(preference);
  if (!status.ok()) return {status.code(), status.message() + " for " + Describe(p.kind, p.m)};
  float best = std::numeric_limits<float>::max();
  cublasLtMatmulAlgo_t winner = {};
  for (int i = 0; i < count; ++i) {
    const cublasLtMatmulHeuristicResult_t& candidate = found[static_cast<size_t>(i)];
    if (candidate.state != CUBLAS_STATUS_SUCCESS ||
        candidate.workspaceSize > options_.workspace_bytes) {
      continue;
    }
    bucket->algorithm = candidate.algo;
    float ms = 0;
    if (options_.candidates > 1) {
      LaunchStatus timed = Time(p, weights, stream, bucket, &ms);
      if (timed.code() == cudaErrorUnknown) continue;  // cuBLASLt refuses what it proposed
      if (!timed.ok()) return timed;
    }
    if (ms < best) {
      best = ms;
      winner = candidate.algo;
      bucket->chosen = true;
    }
  }
  bucket->algorithm = {};
  if (skinny && options_.candidates > 1) {
    float ms = 0;
    if (LaunchStatus timed = TimeSkinny(p, weights, stream, bucket, &ms); !timed.ok()) return timed;
    if (ms < best) {
      best = ms;
      winner = {};
      bucket->chosen = true;
    } else {
      bucket->cluster = 0;
    }
  }
  if (!bucket->chosen) {
    return {cudaErrorNotSupported, "gemm: cuBLASLt has no algorithm for " + Describe(p.kind, p.m)};
  }
  bucket->algorithm = winner;
  bucket->seconds = static_cast<double>(best) * 1e-3;
  return {};
}

bool GemmPlanner::CanMake(const GemmParams& p, int cluster) const {
  if (!lt_->skinny.Supports(p.kind, p.m)) return false;
  const std::vector<int> sizes = lt_->skinny.Clusters(p.kind);
  return std::find(sizes.begin(), sizes.end(), cluster) != sizes.end();
}

// Leaves the cluster size to use in |bucket|, and its time. All row counts that the same kernel
// computes have one.
LaunchStatus GemmPlanner::TimeSkinny(const GemmParams& p, std::span<const Bf16* const> weights,
                                     cudaStream_t stream, Bucket* bucket, float* ms) {
  // Of more rows the first size is the best one or close to it in a step, and products timed on
  // their own mislead (H100, Qwen3-32B: with 32 rows a step took 1.8 % longer).
  constexpr int kMostTimed = 16;
  int& chosen = skinny_clusters_[{p.kind, SkinnyRows(p.m)}];
  if (chosen == 0 && SkinnyRows(p.m) > kMostTimed) {
    chosen = lt_->skinny.Clusters(p.kind).front();
  }
  if (chosen > 0) {
    bucket->cluster = chosen;
    return Time(p, weights, stream, bucket, ms);
  }
  *ms = std::numeric_limits<float>::max();
  for (const int cluster : lt_->skinny.Clusters(p.kind)) {
    bucket->cluster = cluster;
    float took = 0;
    if (LaunchStatus timed = Time(p, weights, stream, bucket, &took); !timed.ok()) return timed;
    if (took >= *ms) continue;
    *ms = took;
    chosen = cluster;
  }
  bucket->cluster = chosen;
  return {};
}

LaunchStatus GemmPlanner::Prepare(const GemmParams& p, std::span<const Bf16* const> weights,
                                  cudaStream_t stream) {
  if (LaunchStatus s = Check(p); !s.ok()) return s;
  const Bf16* const own[] = {p.weights};
  if (weights.empty()) weights = own;
  std::unique_ptr<Bucket>& slot = buckets_[{p.kind, p.m}];
  LaunchStatus status;
  if (slot == nullptr || !slot->chosen || slot->op == nullptr) {
    auto bucket = std::make_unique<Bucket>();
    const bool imported = slot != nullptr && slot->chosen;
    if (imported) {
      bucket->algorithm = slot->algorithm;
      bucket->chosen = true;
      bucket->cluster = slot->cluster;
      if (bucket->cluster > 0 && !CanMake(p, bucket->cluster)) {
        return LaunchStatus::Invalid("gemm: imported: the kernel for few rows in clusters of " +
                                     std::to_string(bucket->cluster) + ", which cannot make " +
                                     Describe(p.kind, p.m));
      }
    }
    status = MakeBucket(p, bucket.get());
    if (status.ok() && !imported) status = Choose(p, weights, stream, bucket.get());
    if (status.ok()) slot = std::move(bucket);
  }
  if (status.ok()) status = Enqueue(*slot, p, {.stream = stream});
  if (status.ok()) status = LaunchStatus::Of(cudaStreamSynchronize(stream), "gemm: first run");
  if (!status.ok()) buckets_.erase({p.kind, p.m});
  return status;
}

LaunchStatus GemmPlanner::Run(const GemmParams& p, const Launch& launch) {
  if (LaunchStatus s = Check(p); !s.ok()) return s;
  auto at = buckets_.lower_bound({p.kind, p.m});
  while (at != buckets_.end() && at->second->op == nullptr) ++at;  // imported, not prepared
  if (at == buckets_.end() || std::get<0>(at->first) != p.kind) {
    return LaunchStatus::Invalid("gemm: no bucket was prepared for " + Describe(p.kind, p.m));
  }
  return Enqueue(*at->second, p, launch);
}

double GemmPlanner::SecondsOf(const GemmKind& kind, int64_t m) const {
  const auto at = buckets_.find({kind, m});
  return at == buckets_.end() ? 0 : at->second->seconds;
}

std::string GemmPlanner::Header() const {
  return "products 2, cublaslt " + std::to_string(lt_->api->cublasLtGetVersion()) + " " + lt_->gpu;
}

std::string GemmPlanner::Export() const {
  std::string text = Header() + "\n";
  for (const auto& [key, bucket] : buckets_) {
    const auto& [kind, m] = key;
    if (!bucket->chosen) continue;
    text += std::to_string(m) + " " + std::to_string(kind.n) + " " + std::to_string(kind.k) + " " +
            std::to_string(kind.bias) + " " + std::to_string(static_cast<int>(kind.output)) + " " +
            std::to_string(static_cast<int>(kind.type));
    // Our own kernel is a cluster size and zeros, which no algorithm of cuBLASLt is.
    cublasLtMatmulAlgo_t algorithm = bucket->algorithm;
    if (bucket->cluster > 0) algorithm.data[0] = static_cast<uint64_t>(bucket->cluster);
    for (const uint64_t word : algorithm.data) {
      char hex[20];
      std::snprintf(hex, sizeof(hex), " %016" PRIx64, word);
      text += hex;
    }
    text += "\n";
  }
  return text;
}

LaunchStatus GemmPlanner::Import(const std::string& text) {
  std::istringstream lines(text);
  std::string line;
  if (!std::getline(lines, line) || line != Header()) {
    return LaunchStatus::Invalid("gemm: the algorithms are of \"" + line.substr(0, 120) +
                                 "\", this is \"" + Header() + "\"");
  }
  std::map<Key, std::unique_ptr<Bucket>> read;
  while (std::getline(lines, line)) {
    std::istringstream in(line);
    GemmKind kind;
    int64_t m = 0;
    int bias = -1, output = -1, type = -1;
    auto bucket = std::make_unique<Bucket>();
    in >> m >> kind.n >> kind.k >> bias >> output >> type >> std::hex;
    for (size_t i = 0; i < kAlgorithmWords; ++i) in >> bucket->algorithm.data[i];
    std::string rest;
    if (in.fail() || in >> rest || bias < 0 || bias > 1 || output < 0 || output > 1 || type < 0 ||
        type > 1) {
      return LaunchStatus::Invalid("gemm: not a line of exported algorithms: " +
                                   line.substr(0, 120));
    }
    kind.bias = bias == 1;
    kind.output = static_cast<GemmOutput>(output);
    kind.type = static_cast<GemmOutputType>(type);
    bucket->chosen = true;
    if (std::all_of(std::begin(bucket->algorithm.data) + 1, std::end(bucket->algorithm.data),
                    [](uint64_t word) { return word == 0; })) {
      bucket->cluster = static_cast<int>(std::min<uint64_t>(
          bucket->algorithm.data[0], static_cast<uint64_t>(kMaxSkinnyCluster) + 1));
      bucket->algorithm = {};
      if (bucket->cluster == 0) {
        return LaunchStatus::Invalid("gemm: an algorithm of zeros: " + line.substr(0, 120));
      }
    }
    read[{kind, m}] = std::move(bucket);
  }
  for (auto& [key, bucket] : read) {
    if (!buckets_.contains(key)) buckets_[key] = std::move(bucket);
  }
  return {};
}

}  // namespace weir::cuda
