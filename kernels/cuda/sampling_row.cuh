// One row of logits in the shared memory of a cluster: what sampling.cu puts together. Device code.
//
// Each block ("rank") holds a slice of consecutive tokens, each warp a segment of the slice, and a
// thread four consecutive tokens of every 128 of its warp's segment. Past the vocabulary there are
// logits of -infinity.
//
// Every function here is called by all threads of the cluster with the same arguments and contains
// cluster barriers; each access to another block's memory lies before the last barrier of its
// function, so that a block may leave after any of them. What is sent alternates between two slots:
// a block writes a slot again only after a barrier that the readers of its last use arrived at.
#pragma once

#include <cooperative_groups.h>

#include "kernels/cuda/sampling.h"

namespace weir::cuda::sampling {

constexpr int kRanks = 8;
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kStep = 128;  // tokens that a warp reads at once
constexpr int kBins = 2048;
constexpr int kBinBits = 11;
constexpr int kBinsOfRank = kBins / kRanks;
constexpr int kMassBits = 44;  // sums of 2^19 weights of at most 2^44 fit into 64 bits
constexpr uint32_t kFullWarp = 0xffffffffu;
constexpr int32_t kNoLimit = 0x7fffffff;
constexpr uint64_t kNanFound = ~uint64_t{0};  // above every packed logit
static_assert(kMaxSampleVocab <= int64_t{1} << 19);
static_assert(kThreads >= kBinsOfRank && (kBins == 1 << kBinBits));

// Unsigned integers in the order of floats (no NaN); both zeros are equal.
__device__ inline uint32_t KeyOf(float value) {
  const uint32_t bits = value == 0.0f ? 0u : __float_as_uint(value);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ inline float LogitOf(uint32_t key) {
  return __uint_as_float((key >> 31) != 0 ? key & 0x7fffffffu : ~key);
}
// A larger number is a larger logit; of equal logits the lower token. Never 0 nor kNanFound.
__device__ inline uint64_t Pack(float value, int32_t token) {
  return (uint64_t{KeyOf(value)} << 32) | (0xffffffffu - static_cast<uint32_t>(token));
}
__device__ inline float PackedLogit(uint64_t packed) {
  return LogitOf(static_cast<uint32_t>(packed >> 32));
}
__device__ inline int32_t PackedToken(uint64_t packed) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(packed));
}

// Older GPUs have no clusters; SampleKernel is empty there, and this only compiles.
__device__ inline void ClusterSync() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();  // the barrier is a warp's instruction
  cooperative_groups::this_cluster().sync();
#endif
}

struct Max {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};
struct Sum {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};
template <typename Op>
__device__ inline uint64_t WarpReduce(uint64_t value, Op op) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value = op(value, __shfl_xor_sync(kFullWarp, value, offset));
  }
  return value;
}
__device__ inline uint64_t WarpInclusiveSum(uint64_t value, int lane) {
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint64_t other = __shfl_up_sync(kFullWarp, value, offset);
    if (lane >= offset) value += other;
  }
  return value;
}

struct Found {
  uint64_t above;    // the measure of the keys above the bin
  uint64_t measure;  // of the bin
  uint32_t bin;
  int32_t token;
};

// A block's shared memory; its slice of the row follows.
struct alignas(16) Shared {
  uint64_t slots[2][kRanks];  // written by all ranks
  uint64_t warps[kWarps];
  uint64_t top[kRanks * kMaxTopLogprobs];  // rank 0's, written by all ranks
  Found found;                             // written by the rank that found it
  uint32_t low[kBins];                     // histogram; of masses the low and the high words
  uint32_t high[kBins];
};

// Keys from |lowest| to |highest|, both included.
struct KeyRange {
  uint32_t highest;
  uint32_t lowest;
};

enum class Measure { kThreadBest, kCount, kMass };

// Tokens that can be drawn: those above |least|, and of those at it the ones up to |last|.
struct Cut {
  float least;
  int32_t last;
  __device__ bool Keeps(float value, int32_t token) const {
    return value > least || (value == least && token <= last);
  }
};

class Row {
 public:
  __device__ Row(Shared* shared, float* slice, int rank, int slice_tokens, int32_t vocab)
      : s_(*shared),
        x_(slice),
        rank_(rank),
        thread_(static_cast<int>(threadIdx.x)),
        warp_(thread_ / 32),
        lane_(thread_ % 32),
        steps_(slice_tokens / (kWarps * kStep)),
        first_(warp_ * (slice_tokens / kWarps) + lane_ * 4),
        token_(rank * slice_tokens + first_),
        vocab_(vocab) {}

  // Reads the slice; keeps it in shared memory if |keep|. Both this and Rescan() find the thread's
  // best; Best() is the cluster's: kNanFound if a logit is not a number.
  __device__ void Load(const float* logits, bool aligned, bool keep);
  __device__ void Rescan();
  __device__ uint64_t Best() { return ClusterReduce(best_, Max()); }

  // Applies those of the row's edits that lie in the slice.
  __device__ void Edit(const LogitEdit* edits, int32_t begin, int32_t end, int slice_tokens);

  // Weights are exp((logit - max) * scale), as multiples of 2^-kMassBits; none below |min_weight|.
  __device__ void SetWeights(float max, float scale, float min_weight) {
    max_ = max;
    scale_ = scale;
    min_weight_ = min_weight;
    const float reach = min_weight > 0 ? fminf(32.0f, -logf(min_weight)) : 32.0f;
    floor_ = max - reach / scale - 1e-3f;
  }
  __device__ float floor() const { return floor_; }  // below, nothing has a mass
  __device__ uint64_t MassOf(float value) const {
    const float x = __fmul_rn(__fsub_rn(value, max_), scale_);
    const float weight = x >= -87.0f ? expf(x) : 0.0f;
    if (!(weight >= min_weight_)) return 0;
    return __float2ull_rn(weight * static_cast<float>(uint64_t{1} << kMassBits));
  }
  __device__ uint64_t MassFrom(float least);

  // The k-th largest logit, or floor() if it lies below that.
  __device__ float KthLargest(int32_t k);
  // The smallest set of largest weights that holds |top_p| of |mass|, that of MassFrom(least).
  __device__ Cut TopP(float least, double top_p, uint64_t mass);
  // The token at which the running mass of the kept tokens, in token order, passes |uniform|.
  __device__ int32_t Draw(const Cut& cut, double uniform);
  // Rank 0 gets the largest |count| in s_.top, packed, and MergeTop() writes them.
  __device__ void GatherTop(int32_t count);
  __device__ void MergeTop(int32_t count, double log_total, int32_t* tokens, float* logprobs);

 private:
  // The same place in the shared memory of another block.
  template <typename T>
  __device__ T* At(T* address, int rank) {
#if __CUDA_ARCH__ >= 900
    return cooperative_groups::this_cluster().map_shared_rank(address, static_cast<unsigned>(rank));
#else
    return address + 0 * rank;
#endif
  }

  template <typename F>
  __device__ void ForEach(F f) const {
    const float4* x = reinterpret_cast<const float4*>(x_ + first_);
#pragma unroll 2
    for (int i = 0; i < steps_; ++i) {
      const float4 v = x[i * (kStep / 4)];
      const int32_t token = token_ + i * kStep;
      f(v.x, token);
      f(v.y, token + 1);
      f(v.z, token + 2);
      f(v.w, token + 3);
    }
  }

  template <typename Op>
  __device__ uint64_t BlockReduce(uint64_t value, Op op) {
    value = WarpReduce(value, op);
    __syncthreads();  // the last use of s_.warps is over
    if (lane_ == 0) s_.warps[warp_] = value;
    __syncthreads();
    uint64_t all = s_.warps[0];
    for (int w = 1; w < kWarps; ++w) all = op(all, s_.warps[w]);
    return all;
  }
  // Sends a number, the same in all threads of a block, to all ranks; returns theirs by rank.
  __device__ const uint64_t* Exchange(uint64_t value) {
    uint64_t* slots = s_.slots[phase_];
    phase_ ^= 1;
    if (thread_ < kRanks) *At(&slots[rank_], thread_) = value;
    ClusterSync();
    return slots;
  }
  template <typename Op>
  __device__ uint64_t ClusterReduce(uint64_t value, Op op) {
    const uint64_t* slots = Exchange(BlockReduce(value, op));
    uint64_t all = slots[0];
    for (int r = 1; r < kRanks; ++r) all = op(all, slots[r]);
    return all;
  }
  __device__ void Send(const Found& found) {
    for (int r = 0; r < kRanks; ++r) *At(&s_.found, r) = found;
  }

  struct ThreadBest {
    float value;
    int32_t token;
    bool nan = false;
    __device__ void See(float v, int32_t t) {
      if (v > value) {
        value = v;
        token = t;
      }
      nan |= v != v;
    }
  };
  __device__ ThreadBest Nothing() const {
    return {-INFINITY, token_};
  }
  __device__ void Keep(const ThreadBest& best) {
    best_ = best.nan ? kNanFound : best.token < vocab_ ? Pack(best.value, best.token) : 0;
  }

  template <Measure kMeasure>
  __device__ void FillHistogram(const KeyRange& range, int shift);
  // Narrows the range to the bin in which the measure, from the highest key down and counting
  // *above, reaches |target|; *above and *measure become those of found. False: it is not reached.
  template <Measure kMeasure>
  __device__ bool Narrow(uint64_t target, KeyRange* range, uint64_t* above, uint64_t* measure);
  // The token at which the running sum of of(value, token), in token order, exceeds
  // target_of(sum over all), which is less than that sum.
  template <typename Of, typename TargetOf>
  __device__ int32_t Locate(Of of, TargetOf target_of);

  Shared& s_;
  float* const x_;
  const int rank_, thread_, warp_, lane_;
  const int steps_;
  const int first_;      // in the slice
  const int32_t token_;  // of first_
  const int32_t vocab_;
  int phase_ = 0;
  uint64_t best_ = 0;  // packed; 0: the thread has no token
  float max_ = 0, scale_ = 1, min_weight_ = 0, floor_ = 0;
};

__device__ inline void Row::Load(const float* logits, bool aligned, bool keep) {
  constexpr int kInFlight = 8;
  ThreadBest best = Nothing();
  for (int i = 0; i < steps_; i += kInFlight) {
    float4 v[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int32_t token = token_ + (i + j) * kStep;
      v[j] = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
      if (i + j >= steps_) continue;
      if (aligned) {
        if (token < vocab_) v[j] = *reinterpret_cast<const float4*>(logits + token);
      } else {
        if (token < vocab_) v[j].x = logits[token];
        if (token + 1 < vocab_) v[j].y = logits[token + 1];
        if (token + 2 < vocab_) v[j].z = logits[token + 2];
        if (token + 3 < vocab_) v[j].w = logits[token + 3];
      }
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (i + j >= steps_) continue;
      const int32_t token = token_ + (i + j) * kStep;
      best.See(v[j].x, token);
      best.See(v[j].y, token + 1);
      best.See(v[j].z, token + 2);
      best.See(v[j].w, token + 3);
      if (keep) *reinterpret_cast<float4*>(x_ + first_ + (i + j) * kStep) = v[j];
    }
  }
  Keep(best);
}

__device__ inline void Row::Rescan() {
  ThreadBest best = Nothing();
  ForEach([&](float v, int32_t token) { best.See(v, token); });
  Keep(best);
}

// The arithmetic of Sampler::Process, each operation rounded.
__device__ inline void Row::Edit(const LogitEdit* edits, int32_t begin, int32_t end,
                                 int slice_tokens) {
  __syncthreads();  // other threads' logits are there
  for (int32_t i = begin + thread_; i < end; i += kThreads) {
    const LogitEdit edit = edits[i];
    if (edit.token < 0 || edit.token >= vocab_) continue;
    const int32_t at = edit.token - rank_ * slice_tokens;
    if (at < 0 || at >= slice_tokens) continue;
    float v = __fadd_rn(x_[at], edit.bias);
    if (edit.masked != 0) v = -INFINITY;
    v = v > 0 ? __fdiv_rn(v, edit.repetition) : __fmul_rn(v, edit.repetition);
    v = __fsub_rn(__fsub_rn(v, edit.frequency), edit.presence);
    x_[at] = v;
  }
  __syncthreads();
}

__device__ inline uint64_t Row::MassFrom(float least) {
  uint64_t mass = 0;
  const float from = fmaxf(least, floor_);
  ForEach([&](float v, int32_t) {
    if (v >= from) mass += MassOf(v);
  });
  return ClusterReduce(mass, Sum());
}

template <Measure kMeasure>
__device__ inline void Row::FillHistogram(const KeyRange& range, int shift) {
  for (int i = thread_; i < kBins; i += kThreads) {
    s_.low[i] = 0;
    s_.high[i] = 0;
  }
  __syncthreads();
  if constexpr (kMeasure == Measure::kThreadBest) {
    const uint32_t key = static_cast<uint32_t>(best_ >> 32);
    if (key >= range.lowest && key <= range.highest) {
      atomicAdd(&s_.low[(range.highest - key) >> shift], 1u);
    }
    return;
  }
  ForEach([&](float v, int32_t) {
    const uint32_t key = KeyOf(v);
    if (key < range.lowest || key > range.highest) return;
    const uint32_t bin = (range.highest - key) >> shift;
    if constexpr (kMeasure == Measure::kCount) {
      atomicAdd(&s_.low[bin], 1u);
    } else {
      // 64-bit sums by 32-bit atomics: whoever makes the low word wrap carries.
      const uint64_t mass = MassOf(v);
      const uint32_t low = static_cast<uint32_t>(mass);
      const uint32_t before = low != 0 ? atomicAdd(&s_.low[bin], low) : 0;
      const uint32_t high = static_cast<uint32_t>(mass >> 32) + (before + low < before ? 1u : 0u);
      if (high != 0) atomicAdd(&s_.high[bin], high);
    }
  });
}

template <Measure kMeasure>
__device__ inline bool Row::Narrow(uint64_t target, KeyRange* range, uint64_t* above,
                                   uint64_t* measure) {
  const int bits = 32 - __clz(static_cast<int>(range->highest - range->lowest));
  const int shift = bits > kBinBits ? bits - kBinBits : 0;
  FillHistogram<kMeasure>(*range, shift);
  ClusterSync();
  uint64_t mine = 0;  // each rank adds up its share of the bins
  if (thread_ < kBinsOfRank) {
    const int bin = rank_ * kBinsOfRank + thread_;
    for (int r = 0; r < kRanks; ++r) {
      mine += *At(&s_.low[bin], r);
      if constexpr (kMeasure == Measure::kMass) mine += uint64_t{*At(&s_.high[bin], r)} << 32;
    }
  }
  uint64_t up_to = WarpInclusiveSum(mine, lane_);
  const uint64_t all = BlockReduce(mine, Sum());  // leaves the warps' sums in s_.warps
  for (int w = 0; w < warp_; ++w) up_to += s_.warps[w];
  const uint64_t* ranks = Exchange(all);
  uint64_t before = *above, total = *above;
  for (int r = 0; r < kRanks; ++r) {
    if (r < rank_) before += ranks[r];
    total += ranks[r];
  }
  if (total < target) return false;
  up_to += before;
  if (up_to - mine < target && up_to >= target) {  // false in all but one thread of the cluster
    Send({up_to - mine, mine, static_cast<uint32_t>(rank_ * kBinsOfRank + thread_), 0});
  }
  ClusterSync();
  const Found found = s_.found;
  *above = found.above;
  *measure = found.measure;
  range->highest -= found.bin << shift;
  const uint32_t width = (1u << shift) - 1;
  if (range->highest - range->lowest > width) range->lowest = range->highest - width;
  return true;
}

__device__ inline float Row::KthLargest(int32_t k) {
  const auto target = static_cast<uint64_t>(k);
  KeyRange range{KeyOf(max_), KeyOf(floor_)};
  uint64_t above = 0, measure = 0;
  // The k-th largest of the threads' best is a lower bound: far fewer logits to count.
  if (k <= kRanks * kThreads) {
    KeyRange bound = range;
    if (Narrow<Measure::kThreadBest>(target, &bound, &above, &measure)) range.lowest = bound.lowest;
  }
  above = 0;
  do {
    if (!Narrow<Measure::kCount>(target, &range, &above, &measure)) return floor_;
  } while (range.highest != range.lowest);
  return LogitOf(range.lowest);
}

__device__ inline Cut Row::TopP(float least, double top_p, uint64_t mass) {
  uint64_t target = static_cast<uint64_t>(ceil(top_p * static_cast<double>(mass)));
  target = target < 1 ? 1 : target > mass ? mass : target;
  // Tokens less likely than (1 - top_p) / vocab hold less than 1 - top_p together: none is needed.
  const double total = static_cast<double>(mass) / static_cast<double>(uint64_t{1} << kMassBits);
  const float needless = logf(static_cast<float>(0.5 * (1 - top_p) * total / vocab_));
  const float from = fmaxf(fmaxf(least, floor_), max_ + needless / scale_ - 1e-3f);
  KeyRange range{KeyOf(max_), KeyOf(fminf(from, max_))};
  uint64_t above = 0, measure = 0;
  do {
    if (!Narrow<Measure::kMass>(target, &range, &above, &measure)) return {least, kNoLimit};
  } while (range.highest != range.lowest);
  // Equal logits have equal masses: of those at the threshold the first |needed| stay.
  const float value = LogitOf(range.lowest);
  const uint64_t each = MassOf(value);
  const uint64_t needed = (target - above + each - 1) / each;
  if (needed * each >= measure) return {value, kNoLimit};
  const int32_t last = Locate([&](float v, int32_t) { return uint64_t{v == value}; },
                              [&](uint64_t) { return needed - 1; });
  return {value, last};
}

__device__ inline int32_t Row::Draw(const Cut& cut, double uniform) {
  const uint64_t bits = static_cast<uint64_t>(uniform * 0x1p53) << 11;
  const float floor = floor_;
  return Locate(
      [&](float v, int32_t token) {
        return v >= floor && cut.Keeps(v, token) ? MassOf(v) : uint64_t{0};
      },
      [&](uint64_t total) { return __umul64hi(bits, total); });
}

template <typename Of, typename TargetOf>
__device__ inline int32_t Row::Locate(Of of, TargetOf target_of) {
  uint64_t mine = 0;
  ForEach([&](float v, int32_t token) { mine += of(v, token); });
  const uint64_t* ranks = Exchange(BlockReduce(mine, Sum()));
  uint64_t before = 0, total = 0;
  for (int r = 0; r < kRanks; ++r) {
    if (r < rank_) before += ranks[r];
    total += ranks[r];
  }
  const uint64_t target = target_of(total);
  for (int w = 0; w < warp_; ++w) before += s_.warps[w];
  if (before <= target && target < before + s_.warps[warp_]) {  // one warp of the cluster
    const float4* x = reinterpret_cast<const float4*>(x_ + first_);
    for (int i = 0; i < steps_; ++i) {
      const float4 v = x[i * (kStep / 4)];
      const int32_t token = token_ + i * kStep;
      const uint64_t a = of(v.x, token), b = of(v.y, token + 1), c = of(v.z, token + 2),
                     d = of(v.w, token + 3);
      const uint64_t up_to = before + WarpInclusiveSum(a + b + c + d, lane_);
      const uint64_t from = up_to - (a + b + c + d);
      if (from <= target && target < up_to) {
        const int32_t ahead = (from + a <= target ? 1 : 0) + (from + a + b <= target ? 1 : 0) +
                              (from + a + b + c <= target ? 1 : 0);
        Send({0, 0, 0, token + ahead});
      }
      before = __shfl_sync(kFullWarp, up_to, 31);
      if (before > target) break;
    }
  }
  ClusterSync();
  return s_.found.token;
}

__device__ inline void Row::GatherTop(int32_t count) {
  uint64_t mine = best_;
  for (int32_t n = 0; n < count; ++n) {
    const uint64_t best = BlockReduce(mine, Max());
    if (thread_ == 0) *At(&s_.top[rank_ * kMaxTopLogprobs + n], 0) = best;
    if (mine != best || best == 0) continue;
    mine = 0;  // this thread's next
    ForEach([&](float v, int32_t token) {
      const uint64_t packed = token < vocab_ ? Pack(v, token) : 0;
      if (packed < best && packed > mine) mine = packed;
    });
  }
  ClusterSync();
}

__device__ inline void Row::MergeTop(int32_t count, double log_total, int32_t* tokens,
                                     float* logprobs) {
  if (rank_ != 0 || warp_ != 0) return;
  constexpr int kEach = (kRanks * kMaxTopLogprobs + 31) / 32;
  uint64_t mine[kEach];
  for (int j = 0; j < kEach; ++j) {
    const int at = lane_ + 32 * j;  // by rank, then by place
    const bool filled = at < kRanks * kMaxTopLogprobs && at % kMaxTopLogprobs < count;
    mine[j] = filled ? s_.top[at] : 0;
  }
  for (int32_t n = 0; n < kMaxTopLogprobs; ++n) {
    uint64_t best = 0;
    for (const uint64_t packed : mine) best = Max()(best, packed);
    best = n < count ? WarpReduce(best, Max()) : 0;
    for (uint64_t& packed : mine) packed = packed == best ? 0 : packed;
    if (lane_ != 0) continue;
    tokens[n] = best != 0 ? PackedToken(best) : -1;
    const double logprob = static_cast<double>(PackedLogit(best)) - log_total;
    logprobs[n] = best != 0 ? static_cast<float>(logprob) : 0.0f;
  }
}

}  // namespace weir::cuda::sampling
