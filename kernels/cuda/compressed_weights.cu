#include "kernels/cuda/compressed_weights.h"

#include "kernels/cuda/compressed_block.cuh"
#include "kernels/cuda/enqueue.cuh"

namespace weir::cuda {
namespace {

using compressed::ColOf;
using compressed::kAllValues;
using compressed::kBlockBytes;
using compressed::kCodesAt;
using compressed::kCols;
using compressed::kFirstPatch;
using compressed::kHeaderAt;
using compressed::kMostPatches;
using compressed::kRows;
using compressed::kThreads;
using compressed::kValues;
using compressed::kWeightsPerThread;
using compressed::RowOf;
using compressed::SignBit;
using compressed::ValueBit;
using compressed::ValueOf;

constexpr int kPairs = kWeightsPerThread / 2;
constexpr int kWarps = kThreads / 32;
constexpr int kHeaderWords = (kBlockBytes - kHeaderAt) / 4;
static_assert(kHeaderWords == kMostPatches + kFirstPatch && kAllValues <= kThreads);

struct CompressShared {
  uint32_t counts[kAllValues];
  uint32_t chosen[kAllValues / 32];  // a bit a value
  uint8_t code_of[kAllValues];       // kValues: none
  uint32_t warp_patches[kWarps];
  uint32_t header[kHeaderWords];
};

// The thread's weights of a block, i = 2 j and 2 j + 1 in pairs[j], that one in its low half; those
// of rows beyond the last are 0.
struct Weights {
  uint32_t pairs[kPairs];
  bool in_matrix[2];  // of the rows of even and of odd pairs
};

__device__ Weights LoadWeights(const CompressParams& p, int64_t tile, int64_t column_block) {
  const auto t = static_cast<int>(threadIdx.x);
  Weights w;
#pragma unroll
  for (int j = 0; j < 2; ++j) w.in_matrix[j] = tile * kRows + RowOf(t, 2 * j) < p.rows;
  const Bf16* block = p.weights + tile * kRows * p.cols + column_block * kCols;
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const Bf16* pair = block + RowOf(t, 2 * j) * p.cols + ColOf(t, 2 * j);
    w.pairs[j] = w.in_matrix[j % 2] ? *reinterpret_cast<const uint32_t*>(pair) : 0;
  }
  return w;
}

// Chooses the values that most weights have, the smaller of two that as many have; they are in
// code_of and in the header's table, ascending, for every thread. The rest of the header is 0.
__device__ void ChooseValues(const Weights& w, CompressShared& shared) {
  const uint32_t t = threadIdx.x;
  if (t < kAllValues) shared.counts[t] = 0;
  if (t < kHeaderWords) shared.header[t] = 0;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    if (!w.in_matrix[j % 2]) continue;
    atomicAdd(&shared.counts[ValueOf(w.pairs[j])], 1u);
    atomicAdd(&shared.counts[ValueOf(w.pairs[j] >> 16)], 1u);
  }
  __syncthreads();
  uint32_t before = 0;  // values that come first
  if (t < kAllValues) {
    const uint32_t mine = shared.counts[t];
    for (uint32_t v = 0; v < kAllValues; ++v) {
      const uint32_t other = shared.counts[v];
      before += other > mine || (other == mine && v < t) ? 1 : 0;
    }
    const uint32_t chosen = __ballot_sync(0xffffffffu, before < kValues);
    if (t % 32 == 0) shared.chosen[t / 32] = chosen;
  }
  __syncthreads();
  if (t < kAllValues) {
    uint32_t code = __popc(shared.chosen[t / 32] & ((1u << t % 32) - 1));
    for (uint32_t i = 0; i < t / 32; ++i) code += __popc(shared.chosen[i]);
    const bool chosen = before < kValues;
    shared.code_of[t] = static_cast<uint8_t>(chosen ? code : kValues);
    if (chosen) atomicOr(&shared.header[1 + code / 4], t << (8 * (code % 4)));
  }
  __syncthreads();
}

// Low bytes and codes. Gives the weights that need a patch: bit i.
__device__ uint32_t StoreWeights(const Weights& w, const CompressShared& shared, uint8_t* block) {
  uint32_t low[kPairs / 2] = {};
  uint32_t codes[kPairs / 4] = {};
  uint32_t patched = 0;
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t weight = w.pairs[j] >> (16 * half) & 0xffff;
      const int i = 2 * j + half;
      low[j / 2] |= (weight & 0xff) << (8 * (i % 4));
      codes[j / 4] |= weight >> 15 << SignBit(i);
      if (!w.in_matrix[j % 2]) continue;
      const uint32_t code = shared.code_of[ValueOf(weight)];
      if (code < kValues) {
        codes[j / 4] |= code << ValueBit(i);
      } else {
        patched |= 1u << i;
      }
    }
  }
  auto* vectors = reinterpret_cast<uint4*>(block);
  const uint32_t t = threadIdx.x;
  vectors[t] = {low[0], low[1], low[2], low[3]};
  vectors[kThreads + t] = {low[4], low[5], low[6], low[7]};
  vectors[kCodesAt / 16 + t] = {codes[0], codes[1], codes[2], codes[3]};
  return patched;
}

// The header, patches in the order of threads. Gives how many the block needs, to every thread; the
// header is not written if there is no room for them.
__device__ uint32_t StoreHeader(const Weights& w, uint32_t patched, CompressShared& shared,
                                uint8_t* block) {
  const uint32_t t = threadIdx.x;
  const uint32_t lane = t % 32;
  const auto mine = static_cast<uint32_t>(__popc(patched));
  uint32_t up_to_here = mine;  // of the warp
#pragma unroll
  for (uint32_t step = 1; step < 32; step *= 2) {
    const uint32_t below = __shfl_up_sync(0xffffffffu, up_to_here, step);
    if (lane >= step) up_to_here += below;
  }
  if (lane == 31) shared.warp_patches[t / 32] = up_to_here;
  __syncthreads();
  uint32_t total = 0;
  uint32_t slot = kFirstPatch + up_to_here - mine;
  uint32_t warps = 0;
#pragma unroll
  for (uint32_t warp = 0; warp < kWarps; ++warp) {
    const uint32_t patches = shared.warp_patches[warp];
    total += patches;
    if (warp < t / 32) slot += patches;
    if (patches > 0) warps |= 1u << warp;
  }
  if (total > kMostPatches) return total;
  if (patched != 0) {
#pragma unroll
    for (int i = 0; i < kWeightsPerThread; ++i) {
      if ((patched >> i & 1) == 0) continue;
      const uint32_t value = ValueOf(w.pairs[i / 2] >> (16 * (i % 2)));
      shared.header[slot++] = t | static_cast<uint32_t>(i) << 8 | value << 16;
    }
  }
  if (t == 0) shared.header[0] = warps << 8 | total << 16;
  __syncthreads();
  if (t < kHeaderWords) reinterpret_cast<uint32_t*>(block + kHeaderAt)[t] = shared.header[t];
  return total;
}

__global__ void __launch_bounds__(kThreads) CompressKernel(const CompressParams p) {
  __shared__ CompressShared shared;
  TriggerDependents();
  WaitForPredecessor();
  const int64_t column_blocks = p.cols / kCols;
  const int64_t index = blockIdx.x;
  const Weights w = LoadWeights(p, index / column_blocks, index % column_blocks);
  ChooseValues(w, shared);
  uint8_t* block = p.out + index * kBlockBytes;
  const uint32_t patched = StoreWeights(w, shared, block);
  const uint32_t patches = StoreHeader(w, patched, shared, block);
  if (patches > kMostPatches && threadIdx.x == 0) atomicAdd(p.failed, 1u);
}

// A block goes through shared memory, so that whole lines are written.
__global__ void __launch_bounds__(kThreads) ExpandKernel(const ExpandParams p) {
  constexpr uint32_t kVectors = kCols * sizeof(Bf16) / sizeof(uint4);  // of a row
  constexpr uint32_t kRowWords = kVectors * 4 + 4;  // one vector more: rows begin in other banks
  __shared__ alignas(16) uint32_t rows[kRows * kRowWords];
  TriggerDependents();
  WaitForPredecessor();
  const int64_t column_blocks = p.cols / kCols;
  const int64_t tile = blockIdx.x / column_blocks;
  const PackedWeights packed(p.compressed + int64_t{blockIdx.x} * kBlockBytes);
  const auto t = static_cast<int>(threadIdx.x);
  uint32_t a[PackedWeights::kWords];
  packed.Unpack(0, a);
#pragma unroll
  for (int p = 0; p < PackedWeights::kWords; ++p) {
    rows[RowOf(t, 2 * p) * kRowWords + ColOf(t, 2 * p) / 2] = a[p];
  }
  __syncthreads();
  Bf16* block = p.weights + tile * kRows * p.cols + blockIdx.x % column_blocks * kCols;
#pragma unroll
  for (uint32_t i = threadIdx.x; i < kRows * kVectors; i += kThreads) {
    const uint32_t row = i / kVectors;
    if (tile * kRows + row >= p.rows) return;
    reinterpret_cast<uint4*>(block + row * p.cols)[i % kVectors] =
        reinterpret_cast<const uint4*>(rows + row * kRowWords)[i % kVectors];
  }
}

LaunchStatus CheckShape(const char* what, int64_t rows, int64_t cols) {
  constexpr int64_t kMost = int64_t{1} << 31;  // products of them are no concern
  if (rows >= 1 && rows <= kMost && cols <= kMost && compressed::Fits(cols)) return {};
  return LaunchStatus::Invalid(std::string(what) +
                               ": rows at least 1 and cols a multiple of 64, at most 2^31, got " +
                               std::to_string(rows) + ", " + std::to_string(cols));
}

}  // namespace

LaunchStatus ExpandWeights(const ExpandParams& p, const Launch& launch) {
  if (LaunchStatus s = CheckShape("expand", p.rows, p.cols); !s.ok()) return s;
  if (!Aligned16(p.weights, p.compressed)) {
    return LaunchStatus::Invalid("expand: compressed and weights must be 16-byte aligned");
  }
  return Enqueue("expand", ExpandKernel, compressed::Tiles(p.rows) * (p.cols / kCols), kThreads,
                 launch, p);
}

LaunchStatus CompressWeights(const CompressParams& p, const Launch& launch) {
  if (LaunchStatus s = CheckShape("compress", p.rows, p.cols); !s.ok()) return s;
  if (!Aligned16(p.weights, p.out)) {
    return LaunchStatus::Invalid("compress: weights and out must be 16-byte aligned");
  }
  if (p.failed == nullptr || reinterpret_cast<uintptr_t>(p.failed) % alignof(uint32_t) != 0) {
    return LaunchStatus::Invalid("compress: failed must be given, 4-byte aligned");
  }
  return Enqueue("compress", CompressKernel, compressed::Tiles(p.rows) * (p.cols / kCols), kThreads,
                 launch, p);
}

}  // namespace weir::cuda
