// Weights into the L2 cache while a kernel of few bytes runs, so that device memory is not idle
// between two products. For products that cannot read early themselves (cuBLASLt's). A hint: it
// changes no bit, and a GPU older than Hopper ignores it.
//
// It rides in the kernel before the product: of a norm or activation in blocks of its own in front
// of that kernel's, so that nothing waits for it; of our attention in its blocks as they end. They
// ask behind WaitForPredecessor(): what runs until then uses the memory well. Where the weights'
// gate is armed and their chunk has not come they ask for nothing; a slot that is not mapped may be
// behind it.
#pragma once

#include <cstdint>

#include "kernels/cuda/gates.h"
#include "kernels/cuda/launch.h"

namespace weir::cuda {

enum class PrefetchOrder : uint8_t {
  kColumns,  // the first columns of every row, with which the blocks of a product begin
  kRows,     // the first rows
};

// A request is of one row's bytes.
inline constexpr int64_t kMaxPrefetchRowBytes = int64_t{1} << 20;

struct WeightPrefetch {
  const Bf16* weights = nullptr;  // 16-byte aligned
  int64_t rows = 0;               // 0: nothing
  int64_t row_bytes = 0;          // of each; a multiple of 16, at most kMaxPrefetchRowBytes
  int64_t stride = 0;             // bytes from row to row; a multiple of 16, at least row_bytes
  WeightGate gate;
};

// About |bytes| of W[n, k] (row-major, k a multiple of 8), never more than the matrix has; columns
// in pieces that device memory reads well, of fewer rows if there are too many. 0 bytes: nothing.
WeightPrefetch PrefetchOf(const Bf16* weights, int64_t n, int64_t k, const WeightGate& gate,
                          PrefetchOrder order, int64_t bytes);

// Invalid when a prefetch that is not empty is not as above. |what| names the launch.
LaunchStatus CheckPrefetch(const WeightPrefetch& prefetch, const char* what);

// What it adds to a launch.
int64_t PrefetchBlocks(const WeightPrefetch& prefetch);

}  // namespace weir::cuda
