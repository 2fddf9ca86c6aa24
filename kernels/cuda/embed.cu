#include "kernels/cuda/embed.h"

#include "kernels/cuda/bf16x8.cuh"
#include "kernels/cuda/enqueue.cuh"
#include "kernels/cuda/gates.cuh"

namespace weir::cuda {
namespace {

constexpr int kThreads = 256;

__device__ int64_t TokenOf(const EmbedParams& p, int64_t row) {
  int32_t token = p.tokens[row];
  if (token < 0) {
    const int32_t index = ~token;  // -token - 1
    token = index < p.sampled_count ? p.sampled[index] : 0;
  }
  return token >= 0 && token < p.vocab ? token : 0;
}

// One row a block.
__global__ void __launch_bounds__(kThreads) EmbedKernel(const EmbedParams p) {
  WaitForPredecessor();
  const int64_t row = blockIdx.x;
  if (p.begin != nullptr && row == 0 && threadIdx.x == kThreads - 1) {
    StepLog log;
    log.begin_ns = gates::Now();
    *p.begin = log;
  }
  const auto* from = reinterpret_cast<const uint4*>(p.table + TokenOf(p, row) * p.h);
  auto* to = reinterpret_cast<uint4*>(p.y + row * p.h);
  const auto vectors = static_cast<int>(p.h / kVector);
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < vectors; i += kThreads) to[i] = from[i];
}

}  // namespace

LaunchStatus Embed(const EmbedParams& p, const Launch& launch) {
  constexpr int64_t kMaxWidth = int64_t{1} << 30;
  if (p.m < 1 || p.h < kVector || p.h % kVector != 0 || p.h > kMaxWidth || p.vocab < 1) {
    return LaunchStatus::Invalid("embed: rows, vocab at least 1 and h a multiple of 8, got " +
                                 std::to_string(p.m) + ", " + std::to_string(p.vocab) + ", " +
                                 std::to_string(p.h));
  }
  if (!Aligned16(p.table, p.y) || p.tokens == nullptr) {
    return LaunchStatus::Invalid("embed: table and y must be 16-byte aligned, tokens be given");
  }
  if ((p.sampled == nullptr) != (p.sampled_count == 0) || p.sampled_count < 0) {
    return LaunchStatus::Invalid("embed: sampled and its count must be given together");
  }
  return Enqueue("embed", EmbedKernel, p.m, kThreads, launch, p);
}

}  // namespace weir::cuda
