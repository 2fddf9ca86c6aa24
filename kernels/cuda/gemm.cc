#include "kernels/cuda/gemm.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/cuda/compressed_weights.h"
#include "kernels/cuda/gemm_state.h"

namespace weir::cuda {
namespace {

// From so many rows on products of compressed weights are made by cuBLASLt, of weights that were
// expanded: what that costs is made up by its products being faster.
constexpr int64_t kExpandedFrom = 1537;

}  // namespace

GemmPlanner::GemmPlanner(const GemmPlannerOptions& options)
    : options_(options), lt_(std::make_unique<Lt>()) {
  lt_->limits = {.workspace = options.workspace,
                 .workspace_bytes = options.workspace_bytes,
                 .allow_split_k = options.allow_split_k};
}
GemmPlanner::~GemmPlanner() = default;

LaunchStatus GemmPlanner::Create(const GemmPlannerOptions& options,
                                 std::unique_ptr<GemmPlanner>* planner) {
  if (options.candidates < 1 || options.rounds < 1 ||
      (options.workspace_bytes > 0 && options.workspace == nullptr) ||
      (options.expanded_bytes > 0 && options.expanded == nullptr) ||
      reinterpret_cast<uintptr_t>(options.workspace) % 256 != 0 ||
      reinterpret_cast<uintptr_t>(options.expanded) % 256 != 0) {
    return LaunchStatus::Invalid(
        "gemm: candidates and rounds are at least 1, and the workspace and the memory for expanded "
        "weights are 256-byte aligned");
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
  if (kind.y_stride % 8 != 0 || kind.YStride() < kind.n || kind.y_stride > kMax) {
    return LaunchStatus::Invalid(
        "gemm: rows of y must be n or more elements apart, a multiple of 8, got " +
        std::to_string(kind.y_stride));
  }
  if (kind.bias != (p.bias != nullptr)) {
    return LaunchStatus::Invalid(
        "gemm: a bias pointer must be given exactly when kind.bias is set");
  }
  if (kind.compressed && !lt_->skinny.Supports(kind, 1)) {
    return {cudaErrorNotSupported,
            "gemm: compressed weights need a GPU of compute capability 9.0, a build for 90a, k a "
            "multiple of 64, n of 4 and bf16 outputs, not " +
                Describe(kind, p.m)};
  }
  if (kind.output == GemmOutput::kAccumulate && kind.type == GemmOutputType::kF32) {
    return LaunchStatus::Invalid("gemm: only bf16 outputs accumulate");
  }
  return CheckWeightGate(p.gate, "gemm");
}

LaunchStatus GemmPlanner::Enqueue(Bucket& bucket, const GemmParams& p, const Launch& launch) const {
  return bucket.cluster > 0 ? lt_->skinny.Run(p, bucket.cluster, launch)
                            : bucket.product->Run(p, bucket.algorithm, lt_->limits, launch.stream);
}

bool GemmPlanner::CanMake(const GemmParams& p, int cluster) const {
  if (!lt_->skinny.Supports(p.kind, p.m)) return false;
  const std::vector<int> sizes = lt_->skinny.Clusters(p.kind, p.m);
  return std::find(sizes.begin(), sizes.end(), cluster) != sizes.end();
}

LaunchStatus GemmPlanner::Prepare(const GemmParams& p, std::span<const Bf16* const> weights,
                                  cudaStream_t stream) {
  if (LaunchStatus s = Check(p); !s.ok()) return s;
  if (PartRows(p) > 0) return PrepareExpanded(p, weights, stream);
  const Bf16* const own[] = {p.weights};
  if (weights.empty()) weights = own;
  std::unique_ptr<Bucket>& slot = buckets_[{p.kind, p.m}];
  LaunchStatus status;
  if (slot == nullptr || !slot->prepared) {
    auto bucket = std::make_unique<Bucket>();
    const bool imported = slot != nullptr && slot->chosen;
    if (imported) {
      bucket->algorithm = slot->algorithm;
      bucket->chosen = true;
      bucket->cluster = slot->cluster;
      if ((bucket->cluster > 0 || p.kind.compressed) && !CanMake(p, bucket->cluster)) {
        return LaunchStatus::Invalid("gemm: imported: the kernel for few rows in clusters of " +
                                     std::to_string(bucket->cluster) + ", which cannot make " +
                                     Describe(p.kind, p.m));
      }
    }
    if (!p.kind.compressed) {
      status = LtProduct::Create(*lt_->api, lt_->handle, p, &bucket->product);
    }
    if (status.ok() && !imported) status = Choose(p, weights, stream, bucket.get());
    bucket->prepared = true;
    if (status.ok()) slot = std::move(bucket);
  }
  if (status.ok()) status = Enqueue(*slot, p, {.stream = stream});
  if (status.ok()) status = LaunchStatus::Of(cudaStreamSynchronize(stream), "gemm: first run");
  if (!status.ok()) buckets_.erase({p.kind, p.m});
  return status;
}

// Rows of compressed weights that are expanded at a time, all parts alike; 0: the product is not
// made of expanded weights.
int64_t GemmPlanner::PartRows(const GemmParams& p) const {
  constexpr int64_t kLeast = 1024;  // fewer do not fill a GPU
  if (!p.kind.compressed || p.m < kExpandedFrom || p.kind.n % compressed::kRows != 0) return 0;
  const int64_t tiles = p.kind.n / compressed::kRows;
  const int64_t room = static_cast<int64_t>(options_.expanded_bytes) /
                       (compressed::kRows * p.kind.k * static_cast<int64_t>(sizeof(Bf16)));
  for (int64_t part = std::min(tiles, room); part * compressed::kRows >= kLeast; --part) {
    if (tiles % part == 0) return part * compressed::kRows;
  }
  return 0;
}

// Expands |rows| rows of the weights from |first| on, and gives the product of these.
LaunchStatus GemmPlanner::Expand(const GemmParams& p, int64_t first, int64_t rows,
                                 cudaStream_t stream, GemmParams* part) const {
  *part = p;
  part->kind.n = rows;
  part->kind.compressed = false;
  part->kind.y_stride = p.kind.n;
  part->weights = options_.expanded;
  if (p.kind.bias) part->bias = p.bias + first;
  part->y = static_cast<Bf16*>(p.y) + first;
  const auto* all = reinterpret_cast<const uint8_t*>(p.weights);
  return ExpandWeights({.compressed = all + compressed::Bytes(first, p.kind.k),
                        .rows = rows,
                        .cols = p.kind.k,
                        .weights = options_.expanded},
                       {.stream = stream});
}

LaunchStatus GemmPlanner::PrepareExpanded(const GemmParams& p, std::span<const Bf16* const> weights,
                                          cudaStream_t stream) {
  GemmParams part = p;
  part.m = kExpandedFrom - 1;  // for fewer rows
  LaunchStatus status = Prepare(part, weights, stream);
  if (status.ok()) status = Expand(p, 0, PartRows(p), stream, &part);
  return status.ok() ? Prepare(part, {}, stream) : status;
}

LaunchStatus GemmPlanner::RunExpanded(const GemmParams& p, const Launch& launch) {
  GemmParams part = p;
  const int64_t rows = PartRows(p);
  for (int64_t first = 0; first < p.kind.n; first += rows) {
    LaunchStatus status = Expand(p, first, rows, launch.stream, &part);
    if (status.ok()) status = Run(part, launch);
    if (!status.ok()) return status;
  }
  return {};
}

LaunchStatus GemmPlanner::Run(const GemmParams& p, const Launch& launch) {
  if (LaunchStatus s = Check(p); !s.ok()) return s;
  if (PartRows(p) > 0) return RunExpanded(p, launch);
  auto at = buckets_.lower_bound({p.kind, p.m});
  while (at != buckets_.end() && !at->second->prepared) ++at;  // imported only
  if (at == buckets_.end() || std::get<0>(at->first) != p.kind) {
    return LaunchStatus::Invalid("gemm: no bucket was prepared for " + Describe(p.kind, p.m));
  }
  return Enqueue(*at->second, p, launch);
}

double GemmPlanner::SecondsOf(const GemmKind& kind, int64_t m) const {
  const auto at = buckets_.find({kind, m});
  return at == buckets_.end() ? 0 : at->second->seconds;
}

}  // namespace weir::cuda
