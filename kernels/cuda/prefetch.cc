#include "kernels/cuda/prefetch.h"

#include <algorithm>

namespace weir::cuda {

WeightPrefetch PrefetchOf(const Bf16* weights, int64_t n, int64_t k, const WeightGate& gate,
                          PrefetchOrder order, int64_t bytes) {
  constexpr int64_t kLeastPiece = 512;  // of a row
  constexpr int64_t kPieceUnit = 128;   // a cache line
  const int64_t width = k * static_cast<int64_t>(sizeof(Bf16));
  WeightPrefetch p{.weights = weights, .row_bytes = width, .stride = width, .gate = gate};
  if (order == PrefetchOrder::kColumns) {
    const int64_t piece = bytes / n / kPieceUnit * kPieceUnit;
    p.row_bytes = std::min(width, std::max(kLeastPiece, piece));
  }
  p.row_bytes = std::min(p.row_bytes, kMaxPrefetchRowBytes);
  p.rows = std::min(n, bytes / p.row_bytes);
  return p;
}

LaunchStatus CheckPrefetch(const WeightPrefetch& p, const char* what) {
  if (p.rows == 0) return {};
  constexpr int64_t kUnit = 16;  // of bulk requests
  if (p.rows < 0 || p.row_bytes < kUnit || p.row_bytes % kUnit != 0 || p.stride < p.row_bytes ||
      p.stride % kUnit != 0 || p.row_bytes > kMaxPrefetchRowBytes) {
    return LaunchStatus::Invalid(
        std::string(what) + ": a prefetch has rows of 16 to " +
        std::to_string(kMaxPrefetchRowBytes) + " bytes and a stride of at least as many, both " +
        "multiples of 16, got " + std::to_string(p.rows) + " rows of " +
        std::to_string(p.row_bytes) + ", stride " + std::to_string(p.stride));
  }
  if (p.weights == nullptr || reinterpret_cast<uintptr_t>(p.weights) % kUnit != 0) {
    return LaunchStatus::Invalid(std::string(what) + ": weights to prefetch are 16-byte aligned");
  }
  return CheckWeightGate(p.gate, what);
}

int64_t PrefetchBlocks(const WeightPrefetch& p) {
  // Half of a Hopper's multiprocessors: each has then a handful of requests for what device memory
  // delivers in two microseconds.
  constexpr int64_t kBlocks = 64;
  if (p.rows == 0 || DeviceArchitecture() < 90) return 0;
  return std::min(p.rows, kBlocks);
}

}  // namespace weir::cuda
