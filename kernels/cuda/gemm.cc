#include "kernels/cuda/gemm.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <limits>
#include <sstream>
#include <vector>

#include "kernels/cuda/compressed_weights.h"
#include "kernels/cuda/cublaslt_product.h"
#include "kernels/cuda/skinny_gemm.h"

namespace weir::cuda {
namespace {

constexpr size_t kAlgorithmWords = sizeof(cublasLtMatmulAlgo_t::data) / sizeof(uint64_t);

// What cuBLASLt proposes for one number of rows often lacks the best algorithm, which it proposes
// for others (H100, Llama-3.1-8B, 832 rows: 545 us a layer, with others' 482). Products of so many
// rows choose among what it proposes for all of these numbers.
struct SharedRows {
  int64_t from, to, step;
};
constexpr SharedRows kShared[] = {{136, 512, 24}, {528, 2048, 32}};
constexpr int kSharedEach = 4;
const SharedRows* SharedOf(int64_t m) {
  const auto* found = std::find_if(std::begin(kShared), std::end(kShared), [m](const auto& rows) {
    return m >= rows.from && m <= rows.to;
  });
  return found == std::end(kShared) ? nullptr : found;
}
constexpr int kSharedTimed = 3;  // of these, the fastest when each is tried once

// From so many rows on products of compressed weights are made by cuBLASLt, of weights that were
// expanded: what that costs is made up by its products being faster.
constexpr int64_t kExpandedFrom = 1537;

// Some algorithms clear memory before their kernel. 32 of these make the launch of a step's graph
// take 100 us of the host's time instead of 5.
constexpr float kMemsetMs = 3e-3F;

}  // namespace

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

GemmPlanner::Effort GemmPlanner::EffortFor(const GemmParams& p) const {
  const double work = 2.0 * static_cast<double>(p.m) * static_cast<double>(p.kind.n) *
                      static_cast<double>(p.kind.k);
  // Short products are repeated: an event costs microseconds of its own.
  return {.rounds = options_.rounds, .repeats = work < 1e11 ? 10 : 1};
}

LaunchStatus GemmPlanner::Time(const GemmParams& p, std::span<const Bf16* const> weights,
                               Effort effort, cudaStream_t stream, Bucket* bucket,
                               float* ms) const {
  cudaEvent_t begin = nullptr, end = nullptr;
  cudaError_t error = cudaEventCreate(&begin);
  if (error == cudaSuccess) error = cudaEventCreate(&end);
  LaunchStatus status = LaunchStatus::Of(error, "gemm: timing");
  *ms = std::numeric_limits<float>::max();
  const size_t passes = std::max<size_t>(1, static_cast<size_t>(effort.repeats) / weights.size());
  for (int round = 0; round <= effort.rounds && status.ok(); ++round) {  // round 0 warms up
    status = LaunchStatus::Of(cudaEventRecord(begin, stream), "gemm: timing");
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

// How many memsets the product in |bucket| is made with.
LaunchStatus GemmPlanner::CountMemsets(const GemmParams& p, cudaStream_t stream, Bucket* bucket,
                                       int* count) const {
  *count = 0;
  cudaError_t error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  if (error != cudaSuccess) return LaunchStatus::Of(error, "gemm: capturing");
  const LaunchStatus status = Enqueue(*bucket, p, {.stream = stream});
  cudaGraph_t graph = nullptr;
  error = cudaStreamEndCapture(stream, &graph);
  size_t nodes = 0;
  if (error == cudaSuccess) error = cudaGraphGetNodes(graph, nullptr, &nodes);
  std::vector<cudaGraphNode_t> all(nodes);
  if (error == cudaSuccess) error = cudaGraphGetNodes(graph, all.data(), &nodes);
  for (const cudaGraphNode_t node : all) {
    cudaGraphNodeType type = cudaGraphNodeTypeKernel;
    if (error == cudaSuccess) error = cudaGraphNodeGetType(node, &type);
    *count += type == cudaGraphNodeTypeMemset ? 1 : 0;
  }
  if (graph != nullptr) (void)cudaGraphDestroy(graph);
  return status.ok() ? LaunchStatus::Of(error, "gemm: looking at what was captured") : status;
}

LaunchStatus GemmPlanner::Choose(const GemmParams& p, std::span<const Bf16* const> weights,
                                 cudaStream_t stream, Bucket* bucket) {
  const bool skinny = lt_->skinny.Supports(p.kind, p.m);
  if (skinny && options_.skinny == SkinnyUse::kAlways) {
    bucket->cluster = lt_->skinny.Clusters(p.kind, p.m).front();
    bucket->chosen = true;
    return {};
  }
  if (p.kind.compressed) {
    float ms = 0;
    if (LaunchStatus timed = TimeSkinny(p, weights, stream, bucket, &ms); !timed.ok()) return timed;
    bucket->chosen = true;
    bucket->seconds = static_cast<double>(ms) * 1e-3;
    return {};
  }
  if (LaunchStatus s = Candidates(p, weights, stream, bucket); !s.ok()) return s;
  float best = std::numeric_limits<float>::max();
  cublasLtMatmulAlgo_t winner = {};
  for (const cublasLtMatmulAlgo_t& candidate : bucket->candidates) {
    bucket->algorithm = candidate;
    float ms = 0;
    if (options_.candidates > 1) {
      LaunchStatus timed = Time(p, weights, EffortFor(p), stream, bucket, &ms);
      if (timed.code() == cudaErrorUnknown) continue;  // cuBLASLt refuses what it proposed
      int memsets = 0;
      if (timed.ok()) timed = CountMemsets(p, stream, bucket, &memsets);
      if (!timed.ok()) return timed;
      ms += kMemsetMs * static_cast<float>(memsets);
    }
    if (ms < best) {
      best = ms;
      winner = candidate;
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
  bucket->candidates.clear();
  bucket->algorithm = winner;
  bucket->seconds = static_cast<double>(best) * 1e-3;
  return {};
}

// Finds the algorithms worth timing: the first that cuBLASLt proposes or, where there are others to
// choose from, those that are the fastest when each is tried once.
LaunchStatus GemmPlanner::Candidates(const GemmParams& p, std::span<const Bf16* const> weights,
                                     cudaStream_t stream, Bucket* bucket) const {
  const int64_t own[] = {p.m};
  LtProduct& product = *bucket->product;
  Algorithms* candidates = &bucket->candidates;
  LaunchStatus status = product.Propose(lt_->limits, own, options_.candidates, candidates);
  const SharedRows* sharing = SharedOf(p.m);
  if (!status.ok() || options_.candidates == 1 || sharing == nullptr) return status;
  Algorithms& shared = lt_->shared[{p.kind, sharing}];
  if (shared.empty()) {
    std::vector<int64_t> rows;
    for (int64_t m = sharing->from; m <= sharing->to; m += sharing->step) rows.push_back(m);
    if (status = product.Propose(lt_->limits, rows, kSharedEach, &shared); !status.ok()) {
      return status;
    }
  }
  for (const cublasLtMatmulAlgo_t& algorithm : shared) AppendNew(algorithm, candidates);
  std::vector<std::pair<float, cublasLtMatmulAlgo_t>> tried;
  for (const cublasLtMatmulAlgo_t& candidate : *candidates) {
    bucket->algorithm = candidate;
    float ms = 0;
    status = Time(p, weights.first(1), {.rounds = 1, .repeats = 1}, stream, bucket, &ms);
    if (status.code() == cudaErrorUnknown) continue;  // another number of rows' may not do
    if (!status.ok()) return status;
    tried.emplace_back(ms, candidate);
  }
  std::sort(tried.begin(), tried.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  candidates->clear();
  const auto timed = static_cast<size_t>(std::min(options_.candidates, kSharedTimed));
  for (size_t i = 0; i < tried.size() && i < timed; ++i) {
    candidates->push_back(tried[i].second);
  }
  return {};
}

bool GemmPlanner::CanMake(const GemmParams& p, int cluster) const {
  if (!lt_->skinny.Supports(p.kind, p.m)) return false;
  const std::vector<int> sizes = lt_->skinny.Clusters(p.kind, p.m);
  return std::find(sizes.begin(), sizes.end(), cluster) != sizes.end();
}

// Leaves the cluster size to use in |bucket|, and its time. All row counts that the same kernel
// computes have one.
LaunchStatus GemmPlanner::TimeSkinny(const GemmParams& p, std::span<const Bf16* const> weights,
                                     cudaStream_t stream, Bucket* bucket, float* ms) {
  // Of more rows the first size is the best one or close to it in a step, and products timed on
  // their own mislead (H100, Qwen3-32B: with 32 rows a step took 1.8 % longer). Of compressed
  // weights, whose unpacking no size was estimated with, all are timed.
  constexpr int kMostTimed = 16;
  int& chosen = skinny_clusters_[{p.kind, SkinnyRows(p.m)}];
  if (chosen == 0 && SkinnyRows(p.m) > kMostTimed && !p.kind.compressed) {
    chosen = lt_->skinny.Clusters(p.kind, p.m).front();
  }
  if (chosen > 0) {
    bucket->cluster = chosen;
    return Time(p, weights, EffortFor(p), stream, bucket, ms);
  }
  *ms = std::numeric_limits<float>::max();
  for (const int cluster : lt_->skinny.Clusters(p.kind, p.m)) {
    bucket->cluster = cluster;
    float took = 0;
    if (LaunchStatus timed = Time(p, weights, EffortFor(p), stream, bucket, &took); !timed.ok())
      return timed;
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
  if (PartRows(p) > 0) return PrepareMany(p, weights, stream);
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

LaunchStatus GemmPlanner::PrepareMany(const GemmParams& p, std::span<const Bf16* const> weights,
                                      cudaStream_t stream) {
  GemmParams part = p;
  part.m = kExpandedFrom - 1;  // for fewer rows
  LaunchStatus status = Prepare(part, weights, stream);
  if (status.ok()) status = Expand(p, 0, PartRows(p), stream, &part);
  return status.ok() ? Prepare(part, {}, stream) : status;
}

LaunchStatus GemmPlanner::RunMany(const GemmParams& p, const Launch& launch) {
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
  if (PartRows(p) > 0) return RunMany(p, launch);
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

std::string GemmPlanner::Header() const {
  return "products 6, cublaslt " + std::to_string(lt_->api->cublasLtGetVersion()) + " " + lt_->gpu;
}

std::string GemmPlanner::Export() const {
  std::string text = Header() + "\n";
  for (const auto& [key, bucket] : buckets_) {
    const auto& [kind, m] = key;
    if (!bucket->chosen) continue;
    text += std::to_string(m) + " " + std::to_string(kind.n) + " " + std::to_string(kind.k) + " " +
            std::to_string(kind.bias) + " " + std::to_string(static_cast<int>(kind.output)) + " " +
            std::to_string(static_cast<int>(kind.type)) + " " + std::to_string(kind.compressed) +
            " " + std::to_string(kind.y_stride);
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
    int bias = -1, output = -1, type = -1, compressed = -1;
    auto bucket = std::make_unique<Bucket>();
    in >> m >> kind.n >> kind.k >> bias >> output >> type >> compressed >> kind.y_stride >>
        std::hex;
    for (size_t i = 0; i < kAlgorithmWords; ++i) in >> bucket->algorithm.data[i];
    std::string rest;
    if (in.fail() || in >> rest || bias < 0 || bias > 1 || output < 0 || output > 1 || type < 0 ||
        type > 1 || compressed < 0 || compressed > 1 || kind.y_stride < 0) {
      return LaunchStatus::Invalid("gemm: not a line of exported algorithms: " +
                                   line.substr(0, 120));
    }
    kind.bias = bias == 1;
    kind.output = static_cast<GemmOutput>(output);
    kind.type = static_cast<GemmOutputType>(type);
    kind.compressed = compressed == 1;
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
