#include "kernels/cuda/qkv.h"

#include "kernels/cuda/bf16x8.cuh"
#include "kernels/cuda/enqueue.cuh"

namespace weir::cuda {
namespace {

constexpr int kThreads = 128;

struct QkvLaunch {
  QkvParams p;
  Bf16* k_slab;  // of block 0
  Bf16* v_slab;
  int64_t token_stride;
  int64_t head_stride;
  uint32_t heads;   // q, k and v of a row
  uint32_t groups;  // m * heads
};

// Sum over the kLanes lanes of a head, the same in each of them and in every launch. Lanes of other
// heads in the warp may be elsewhere.
template <int kLanes>
__device__ __forceinline__ float HeadSum(float x) {
  const unsigned first = threadIdx.x % 32 / kLanes * kLanes;
  const unsigned mask = ((1u << kLanes) - 1u) << first;
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(mask, x, offset);
  return x;
}

// |low_weight|, |high_weight|: of the lane's two vectors.
template <int kLanes>
__device__ __forceinline__ void Normalise(const float (&low_weight)[kVector],
                                          const float (&high_weight)[kVector], float eps,
                                          int head_dim, bool active, float (&low)[kVector],
                                          float (&high)[kVector]) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kVector; ++j) sum = __fmaf_rn(low[j], low[j], sum);
#pragma unroll
  for (int j = 0; j < kVector; ++j) sum = __fmaf_rn(high[j], high[j], sum);
  sum = HeadSum<kLanes>(active ? sum : 0.0f);
  if (!active) return;
  const float r = 1.0f / sqrtf(sum / static_cast<float>(head_dim) + eps);
#pragma unroll
  for (int j = 0; j < kVector; ++j) low[j] = low[j] * r * low_weight[j];
#pragma unroll
  for (int j = 0; j < kVector; ++j) high[j] = high[j] * r * high_weight[j];
}

// The products are spelled out so that they round as kernels/cpu/rope.h says.
__device__ __forceinline__ void Rotate(const float (&cos)[kVector], const float (&sin)[kVector],
                                       float (&low)[kVector], float (&high)[kVector]) {
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    const float x = low[j];
    low[j] = __fmaf_rn(x, cos[j], -__fmul_rn(high[j], sin[j]));
    high[j] = __fmaf_rn(high[j], cos[j], __fmul_rn(x, sin[j]));
  }
}

// kLanes threads have one head of kLanes * 16 values (padding included) of one row. Lane i of a q
// or k head has values [8 i, 8 i + 8) and their partners half a head on; lanes past the real head
// have two vectors of padding.
//
// What does not come from the step's own kernels is read before the predecessor has ended: norms
// and tables are constant, positions and slots were there before the step's first kernel, which is
// not launched early.
template <int kLanes>
__global__ void __launch_bounds__(kThreads) QkvKernel(const QkvLaunch launch) {
  constexpr int kPadded = kLanes * 2 * kVector;
  const QkvParams& p = launch.p;
  TriggerDependents();
  const uint32_t group = blockIdx.x * (kThreads / kLanes) + threadIdx.x / kLanes;
  if (group >= launch.groups) return;  // all lanes of a head, or none
  const uint32_t row = group / launch.heads;
  const auto head = static_cast<int32_t>(group - row * launch.heads);
  const auto lane = static_cast<int>(threadIdx.x % kLanes);
  const int32_t kv_heads = p.kv.layout.kv_heads;
  const bool is_q = head < p.q_heads;
  const bool is_v = head >= p.q_heads + kv_heads;
  const int32_t slot = p.slots[row];
  if (!is_q && slot < 0) return;

  Bf16* x = p.qkv + row * p.ldqkv + int64_t{head} * kPadded;
  Bf16* out = x;
  if (!is_q) {
    const int32_t kv_head = head - p.q_heads - (is_v ? kv_heads : 0);
    out = (is_v ? launch.v_slab : launch.k_slab) + int64_t{slot / kBlockTokens} * p.kv.block_stride +
          slot % kBlockTokens * launch.token_stride + kv_head * launch.head_stride;
  }
  const int half = p.head_dim / 2;
  const bool active = lane * kVector < half;
  // Where this lane's two vectors are: of v, simply the lane's share of the copy.
  int at = lane * kVector;
  int partner = at + half;
  if (is_v || !active) {
    at = is_v ? 2 * lane * kVector : p.head_dim + 2 * (lane * kVector - half);
    partner = at + kVector;
  }
  const float* norm = is_v ? nullptr : is_q ? p.q_norm : p.k_norm;
  float cos[kVector], sin[kVector], low_norm[kVector], high_norm[kVector];
  if (!is_v && active) {
    const int32_t position = min(max(p.positions[row], 0), p.max_positions - 1);
    const int64_t angle = int64_t{position} * half + at;
    Load8(p.cos + angle, cos);
    Load8(p.sin + angle, sin);
    if (norm != nullptr) {
      Load8(norm + at, low_norm);
      Load8(norm + half + at, high_norm);
    }
  }
  WaitForPredecessor();
  uint4 low = *reinterpret_cast<const uint4*>(x + at);
  uint4 high = *reinterpret_cast<const uint4*>(x + partner);
  if (!is_v) {
    float a[kVector], b[kVector];
    Unpack(low, a);
    Unpack(high, b);
    if (norm != nullptr) {
      Normalise<kLanes>(low_norm, high_norm, p.eps, p.head_dim, active, a, b);
    }
    if (active) {
      Rotate(cos, sin, a, b);
      low = Pack(a);
      high = Pack(b);
    } else {
      low = high = uint4{0, 0, 0, 0};
    }
  }
  if (is_q && !active) return;  // q's padding stays
  *reinterpret_cast<uint4*>(out + at) = low;
  *reinterpret_cast<uint4*>(out + partner) = high;
}

template <int kLanes>
LaunchStatus Run(const QkvLaunch& q, const Launch& launch) {
  constexpr int64_t kHeadsPerBlock = kThreads / kLanes;
  const int64_t blocks = (int64_t{q.groups} + kHeadsPerBlock - 1) / kHeadsPerBlock;
  return Enqueue("qkv", QkvKernel<kLanes>, blocks, kThreads, launch, q);
}

LaunchStatus Check(const QkvParams& p) {
  if (LaunchStatus s = CheckKvPool(p.kv, p.layer); !s.ok()) return s;
  const KvLayout& layout = p.kv.layout;
  if (p.head_dim < 16 || p.head_dim % 16 != 0 || p.head_dim > layout.head_dim) {
    return LaunchStatus::Invalid("qkv: head_dim must be a multiple of 16, at most the pool's " +
                                 std::to_string(layout.head_dim) + ", got " +
                                 std::to_string(p.head_dim));
  }
  const int64_t heads = int64_t{p.q_heads} + 2 * int64_t{layout.kv_heads};
  if (p.m < 1 || p.q_heads < 1 || p.m > std::numeric_limits<int32_t>::max() / heads) {
    return LaunchStatus::Invalid("qkv: rows and q_heads must be at least 1 and heads fewer than "
                                 "2^31, got " +
                                 std::to_string(p.m) + " and " + std::to_string(p.q_heads));
  }
  if (p.ldqkv < heads * layout.head_dim || p.ldqkv % kVector != 0) {
    return LaunchStatus::Invalid("qkv: a row stride must be a multiple of 8, at least " +
                                 std::to_string(heads * layout.head_dim) + ", got " +
                                 std::to_string(p.ldqkv));
  }
  if (!Aligned16(p.qkv, p.cos, p.sin) || p.positions == nullptr || p.slots == nullptr ||
      p.max_positions < 1 || (p.q_norm != nullptr && !Aligned16(p.q_norm)) ||
      (p.k_norm != nullptr && !Aligned16(p.k_norm))) {
    return LaunchStatus::Invalid(
        "qkv: qkv, tables and norms must be 16-byte aligned, positions and slots be given");
  }
  return {};
}

}  // namespace

LaunchStatus FinishQkv(const QkvParams& p, const Launch& launch) {
  if (LaunchStatus s = Check(p); !s.ok()) return s;
  const KvLayout& layout = p.kv.layout;
  QkvLaunch q{};
  q.p = p;
  q.k_slab = p.kv.base + layout.KOffset(p.layer);
  q.v_slab = p.kv.base + layout.VOffset(p.layer);
  q.token_stride = layout.TokenStride();
  q.head_stride = layout.HeadStride();
  q.heads = static_cast<uint32_t>(p.q_heads + 2 * layout.kv_heads);
  q.groups = static_cast<uint32_t>(p.m * int64_t{q.heads});
  switch (layout.head_dim) {
    case 64: return Run<4>(q, launch);
    case 128: return Run<8>(q, launch);
    default: return Run<16>(q, launch);
  }
}

}  // namespace weir::cuda
