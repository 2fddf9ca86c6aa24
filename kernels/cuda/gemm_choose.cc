// Which algorithm makes a product: what is proposed, timed.
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/cuda/gemm_state.h"

namespace weir::cuda {
namespace {

// What cuBLASLt proposes for one number of rows often lacks the best algorithm, which it proposes
// for others (H100, Llama-3.1-8B, 832 rows: 545 us a layer, with others' 482). Products of so many
// rows choose among what it proposes for all of these numbers.
constexpr SharedRows kShared[] = {{136, 512, 24}, {528, 2048, 32}};
constexpr int kSharedEach = 4;
const SharedRows* SharedOf(int64_t m) {
  const auto* found = std::find_if(std::begin(kShared), std::end(kShared), [m](const auto& rows) {
    return m >= rows.from && m <= rows.to;
  });
  return found == std::end(kShared) ? nullptr : found;
}
constexpr int kSharedTimed = 3;  // of these, the fastest when each is tried once

// Some algorithms clear memory before their kernel. 32 of these make the launch of a step's graph
// take 100 us of the host's time instead of 5.
constexpr float kMemsetMs = 3e-3F;

}  // namespace

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

}  // namespace weir::cuda
