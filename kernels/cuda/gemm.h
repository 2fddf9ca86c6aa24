// Dense products: Y[m, n] = X[m, k] · W[n, k]ᵀ (+ bias) (+ Y), all row-major, W as
// Hugging Face stores it. Products of bf16 are summed in float; Y is rounded once. cuBLASLt makes
// them, on Hopper some of few rows our own kernel (skinny_gemm.h), which makes those of compressed
// weights as well, unless they have so many rows that these are better expanded first.
//
// Tolerance: |y - reference| <= 2^-8 |y| (bf16 output) + 2^-22 * sqrt(k) * sum |x·w| (float sums in
// another order than a double reference); accumulating, + 2^-8 |x·w|: some algorithms round the
// product before they add it (seen with cuBLASLt 13 on an H100).
//
// Algorithms are chosen once, before capture, by timing what cuBLASLt proposes, for the rows at
// hand and for others (and our own kernel), and kept: a run only enqueues kernels. A product of m
// rows runs with the algorithm of the smallest prepared m' >= m of the same kind (its bucket).
//
// Determinism: an algorithm gives the same bits for the same inputs on the same library version and
// GPU model. Split-K is allowed only with partial sums kept in float in the workspace and added by
// one kernel; schemes that add into the output in place are not. Which algorithm wins the timing
// may differ between starts: Export() and Import() carry the choice over. A row's bits may differ
// between buckets (kNoSplitK narrows, but does not end, that).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <tuple>

#include "kernels/compressed_weights.h"
#include "kernels/cuda/gates.h"
#include "kernels/cuda/launch.h"

namespace weir::cuda {

enum class GemmOutput : uint8_t {
  kOverwrite,
  kAccumulate,  // y = y + ... (a residual stream); bf16 output only
};
enum class GemmOutputType : uint8_t { kBf16, kF32 };  // kF32: logits

struct GemmKind {
  int64_t n = 0;
  int64_t k = 0;  // a multiple of 8
  bool bias = false;
  GemmOutput output = GemmOutput::kOverwrite;
  GemmOutputType type = GemmOutputType::kBf16;
  bool compressed = false;  // W (kernels/compressed_weights.h); bf16 output only
  int64_t y_stride = 0;     // elements from row to row of y, a multiple of 8; 0: n
  int64_t WeightBytes() const { return compressed ? compressed::Bytes(n, k) : n * k * 2; }
  int64_t YStride() const { return y_stride == 0 ? n : y_stride; }
  friend auto operator<=>(const GemmKind&, const GemmKind&) = default;
};

struct GemmParams {
  GemmKind kind;
  const Bf16* x = nullptr;        // [m, k]; pointers are 16-byte aligned, rows contiguous
  const Bf16* weights = nullptr;  // [n, k]; compressed: its bytes
  const Bf16* bias = nullptr;     // [n], iff kind.bias
  void* y = nullptr;              // [m, n] of kind.type, rows kind.YStride() apart
  int64_t m = 0;
  WeightGate gate;  // before the weights; for launches that read them early
};

// Whether our own kernel for few rows is chosen, where the GPU and the product allow it.
enum class SkinnyUse : uint8_t { kNever, kTimed, kAlways };

struct GemmPlannerOptions {
  // Device memory that every product of this planner uses; 32 MiB is NVIDIA's advice for Hopper.
  // It stays alive as long as any graph with one of these products. One stream at a time.
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
  // Device memory that products of many rows expand compressed weights into, a part at a time; free
  // for other uses between products. Too little for a thousand rows of weights: they do without.
  Bf16* expanded = nullptr;
  size_t expanded_bytes = 0;
  bool allow_split_k = true;
  // Algorithms that are timed, at most; more may be tried once to find these. 1: cuBLASLt's own
  // first choice, untimed.
  int candidates = 8;
  int rounds = 5;  // each algorithm's time is the least of so many passes over the weights
  SkinnyUse skinny = SkinnyUse::kTimed;
};

// Represents the chosen algorithms and cuBLASLt's handle for one stream. Thread: one caller.
class GemmPlanner {
 public:
  // An error says why cuBLASLt cannot be used.
  static LaunchStatus Create(const GemmPlannerOptions& options,
                             std::unique_ptr<GemmPlanner>* planner);
  ~GemmPlanner();
  GemmPlanner(const GemmPlanner&) = delete;
  GemmPlanner& operator=(const GemmPlanner&) = delete;

  // Chooses the algorithm of |params.kind| for |params.m| rows and runs it once, so that no module
  // is loaded during a capture. Not inside a capture; waits for the stream. y is overwritten.
  // |weights|: matrices of this kind to rotate through while timing, so that they come from HBM as
  // they will in a step (the layers' own weights, say): together well over the L2 cache. Empty:
  // params.weights only. An algorithm that clears memory first counts 3 us more than it takes. A
  // bucket that was imported is only run, not timed.
  LaunchStatus Prepare(const GemmParams& params, std::span<const Bf16* const> weights,
                       cudaStream_t stream);

  // Enqueues y. Invalid when no bucket holds m rows of this kind. cuBLASLt's kernels are never
  // launched early.
  LaunchStatus Run(const GemmParams& params, const Launch& launch);

  // Seconds of the bucket's algorithm as timed in Prepare; 0 if it was not timed.
  double SecondsOf(const GemmKind& kind, int64_t m) const;

  // The chosen algorithms as text, one line each, and back. Import refuses text of another version
  // of cuBLASLt or another GPU model, and changes nothing then.
  std::string Export() const;
  LaunchStatus Import(const std::string& text);

 private:
  struct Lt;
  struct Bucket;
  struct Effort {
    int rounds,
        repeats;  // the least time of |rounds|, of |repeats| calls or a pass over the weights
  };
  using Key = std::tuple<GemmKind, int64_t>;

  explicit GemmPlanner(const GemmPlannerOptions& options);
  LaunchStatus Check(const GemmParams& params) const;
  LaunchStatus Choose(const GemmParams& params, std::span<const Bf16* const> weights,
                      cudaStream_t stream, Bucket* bucket);
  LaunchStatus Candidates(const GemmParams& params, std::span<const Bf16* const> weights,
                          cudaStream_t stream, Bucket* bucket) const;
  LaunchStatus Time(const GemmParams& params, std::span<const Bf16* const> weights, Effort effort,
                    cudaStream_t stream, Bucket* bucket, float* ms) const;
  LaunchStatus CountMemsets(const GemmParams& params, cudaStream_t stream, Bucket* bucket,
                            int* count) const;
  Effort EffortFor(const GemmParams& params) const;
  LaunchStatus TimeSkinny(const GemmParams& params, std::span<const Bf16* const> weights,
                          cudaStream_t stream, Bucket* bucket, float* ms);
  bool CanMake(const GemmParams& params, int cluster) const;
  int64_t PartRows(const GemmParams& params) const;
  LaunchStatus Expand(const GemmParams& params, int64_t first, int64_t rows, cudaStream_t stream,
                      GemmParams* part) const;
  LaunchStatus PrepareExpanded(const GemmParams& params, std::span<const Bf16* const> weights,
                               cudaStream_t stream);
  LaunchStatus RunExpanded(const GemmParams& params, const Launch& launch);
  LaunchStatus Enqueue(Bucket& bucket, const GemmParams& params, const Launch& launch) const;
  std::string Header() const;

  GemmPlannerOptions options_;
  std::unique_ptr<Lt> lt_;
  std::map<Key, std::unique_ptr<Bucket>> buckets_;
  std::map<std::pair<GemmKind, int>, int> skinny_clusters_;  // by kind and SkinnyRows
};

}  // namespace weir::cuda
