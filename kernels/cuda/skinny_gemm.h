// Dense products of few rows on Hopper: Y[m, n] = X[m, k] · W[n, k]ᵀ (+ bias) (+ Y), m <= 64. Such
// a product is the reading of W, and cuBLASLt loses 4 to 6 us of it (H100: 8 % of 235 MB, 30 % of
// 34 MB) to starting and ending. Here
//   * a cluster of blocks shares a tile of Y and splits k, so that a matrix of any shape keeps
//     every multiprocessor reading until the end; the partial tiles meet in shared memory, in a
//     fixed order ("split-K" with distributed shared memory: CUDA programming guide, thread block
//     clusters);
//   * the first stages of W are asked for before the kernel before has ended (programmatic
//     dependent launch): memory is busy while small kernels run. W is constant; where it is on its
//     way (WeightGate) the kernel waits first.
//
// Of compressed weights (kernels/compressed_weights.h) m is any: they are read as they are, and
// every thread unpacks into registers what its tensor core multiplies. In clusters of the same size
// every row has the bits that the same weights give uncompressed, 64 rows at a time.
//
// Determinism: bits depend on the inputs, the shape and the size of the clusters alone; the order
// of the sum does not depend on m.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <vector>

#include "kernels/compressed_weights.h"
#include "kernels/cuda/gemm.h"

namespace weir::cuda {

inline constexpr int64_t kMaxSkinnyRows = 64;
inline constexpr int64_t kMaxSharedRows = 128;  // of products whose tiles blocks can share
inline constexpr int kMaxSkinnyCluster = 8;     // blocks; what every Hopper GPU can place

// Rows that kernels compute at a time.
inline constexpr int kSkinnyRows[] = {8,   16,  32,  64,  80,  96,  112, 128, 144,
                                      160, 176, 192, 200, 208, 224, 240, 256};

// Passes over W that a product of |m| rows takes, and the rows of each.
inline int64_t SkinnyPasses(int64_t m) {
  constexpr int64_t kMost = std::end(kSkinnyRows)[-1];
  return (m + kMost - 1) / kMost;
}
inline int SkinnyRows(int64_t m) {
  const int64_t passes = SkinnyPasses(m);
  return *std::lower_bound(std::begin(kSkinnyRows), std::end(kSkinnyRows),
                           (m + passes - 1) / passes);
}

// Represents what such products need of a device; made once, outside captures.
class SkinnyGemm {
 public:
  // Of the calling thread's device. Not supported on other GPUs than Hopper, or in builds without
  // sm_90a.
  static LaunchStatus Create(SkinnyGemm* skinny);

  bool Supports(const GemmKind& kind, int64_t m) const {
    if (processors_ == 0 || m < 1 || kind.n % 4 != 0 || kind.y_stride != 0) return false;
    if (!kind.compressed) return m <= kMaxSkinnyRows && kind.k % 8 == 0;
    return compressed::Fits(kind.k) && kind.type == GemmOutputType::kBf16;
  }
  // Sizes of clusters worth trying for a supported |kind|, the most promising one first.
  std::vector<int> Clusters(const GemmKind& kind, int64_t m) const;
  // |params| as GemmPlanner checks them; |cluster| is one of Clusters(params.kind, m), of
  // |params|'s or more rows.
  LaunchStatus Run(const GemmParams& params, int cluster, const Launch& launch) const;

 private:
  int processors_ = 0;  // 0: nothing is supported
  // Clusters of so many blocks that the GPU holds at once, a block a multiprocessor.
  std::array<int, kMaxSkinnyCluster + 1> clusters_{};
  void* encode_ = nullptr;  // the driver's cuTensorMapEncodeTiled
};

}  // namespace weir::cuda
