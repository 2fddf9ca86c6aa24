#include <limits>

#include "kernels/cuda/sampling.h"
#include "kernels/cuda/sampling_row.cuh"

namespace weir::cuda {
namespace {

using sampling::kRanks;
using sampling::kStep;
using sampling::kThreads;
using sampling::kWarps;

// What is wrong with a row whose best is |best|.
__device__ SampleError ErrorOf(uint64_t best) {
  if (best == sampling::kNanFound) return SampleError::kNan;
  const float max = sampling::PackedLogit(best);
  if (max == INFINITY) return SampleError::kInfinite;
  return max == -INFINITY ? SampleError::kNothingPossible : SampleError::kNone;
}

__device__ int32_t DrawToken(sampling::Row& row, const SampleRow& want, float max, int32_t vocab) {
  const float min_weight = want.min_p > 0 ? static_cast<float>(want.min_p) : 0.0f;
  row.SetWeights(max, static_cast<float>(1.0 / want.temperature), min_weight);
  sampling::Cut cut{-INFINITY, sampling::kNoLimit};
  if (want.top_k > 0 && want.top_k < vocab) cut.least = row.KthLargest(want.top_k);
  if (want.top_p < 1) {
    cut = row.TopP(cut.least, want.top_p, row.MassFrom(cut.least));
  }
  return row.Draw(cut, want.uniform);
}

// The whole procedure; all threads of the cluster return the same.
__device__ SampleResult SampleOne(sampling::Row& row, const SampleParams& p, int64_t index,
                                  const SampleRow& want, int slice_tokens, bool aligned) {
  const float* logits = p.logits + index * p.vocab;
  const auto vocab = static_cast<int32_t>(p.vocab);
  const bool greedy = want.temperature < 1e-5;
  const bool edited = want.edits_begin < want.edits_end;
  SampleResult result;
  double log_total = 0;
  row.Load(logits, aligned, !greedy || edited || want.logprobs >= 0);
  uint64_t best = 0;
  if (!edited || want.logprobs >= 0) {
    best = row.Best();
    result.error = ErrorOf(best);
    if (result.error != SampleError::kNone) return result;
  }
  if (want.logprobs >= 0) {
    const float max = sampling::PackedLogit(best);
    row.SetWeights(max, 1.0f, 0.0f);
    const auto total = static_cast<double>(row.MassFrom(-INFINITY));
    log_total = log(total * (1.0 / (uint64_t{1} << sampling::kMassBits))) + max;
  }
  if (want.logprobs > 0) {
    const int32_t count = want.logprobs < kMaxTopLogprobs ? want.logprobs : kMaxTopLogprobs;
    row.GatherTop(count);
    row.MergeTop(count, log_total, p.top_tokens + index * kMaxTopLogprobs,
                 p.top_logprobs + index * kMaxTopLogprobs);
  }
  if (edited) {
    row.Edit(p.edits, want.edits_begin, want.edits_end, slice_tokens);
    row.Rescan();
    best = row.Best();
    result.error = ErrorOf(best);
    if (result.error != SampleError::kNone) return result;
  }
  result.token = greedy ? sampling::PackedToken(best)
                        : DrawToken(row, want, sampling::PackedLogit(best), vocab);
  if (want.logprobs >= 0) {
    const double raw = logits[result.token];
    result.logprob = static_cast<float>(raw - log_total);
  }
  return result;
}

__global__ void __launch_bounds__(kThreads, 2)
    SampleKernel(SampleParams p, int slice_tokens, bool aligned) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) unsigned char memory[];
  auto* shared = reinterpret_cast<sampling::Shared*>(memory);
  auto* slice = reinterpret_cast<float*>(memory + sizeof(sampling::Shared));
  asm volatile("griddepcontrol.wait;" ::: "memory");  // all of the predecessor's writes are visible
  const int64_t index = blockIdx.x / kRanks;
  const auto rank = static_cast<int>(blockIdx.x % kRanks);
  const SampleRow& want = p.row[index];  // read again where needed: registers are short
  SampleResult result;
  if (want.active != 0) {
    // No block's memory is written before it runs.
    sampling::ClusterSync();
    sampling::Row row(shared, slice, rank, slice_tokens, static_cast<int32_t>(p.vocab));
    result = SampleOne(row, p, index, want, slice_tokens, aligned);
  }
  if (rank == 0 && threadIdx.x == 0) {
    p.tokens[index] = result.token;
    p.results[index] = result;
  }
#endif
}

LaunchStatus CheckParams(const SampleParams& p) {
  if (p.rows < 0 || p.rows > std::numeric_limits<int32_t>::max() / kRanks) {
    return LaunchStatus::Invalid("Sample: rows must be between 0 and " +
                                 std::to_string(std::numeric_limits<int32_t>::max() / kRanks) +
                                 ", got " + std::to_string(p.rows));
  }
  if (p.vocab < 1 || p.vocab > kMaxSampleVocab) {
    return LaunchStatus::Invalid("Sample: vocab must be between 1 and " +
                                 std::to_string(kMaxSampleVocab) + ", got " +
                                 std::to_string(p.vocab));
  }
  if (p.rows > 0 &&
      (p.logits == nullptr || p.row == nullptr || p.tokens == nullptr || p.results == nullptr)) {
    return LaunchStatus::Invalid("Sample: logits, row, tokens and results must not be null");
  }
  if (DeviceArchitecture() < 90) {
    return LaunchStatus::Invalid("Sample: the GPU must have compute capability 9.0 or later, got " +
                                 std::to_string(DeviceArchitecture() / 10) + "." +
                                 std::to_string(DeviceArchitecture() % 10));
  }
  return {};
}

}  // namespace

LaunchStatus Sample(const SampleParams& params, const Launch& launch) {
  LaunchStatus valid = CheckParams(params);
  if (!valid.ok() || params.rows == 0) return valid;
  constexpr int64_t kGrain = kWarps * kStep;
  const int64_t share = (params.vocab + kRanks - 1) / kRanks;
  const int64_t slice_tokens = (share + kGrain - 1) / kGrain * kGrain;
  const size_t bytes = sizeof(sampling::Shared) + static_cast<size_t>(slice_tokens) * sizeof(float);
  LaunchStatus fits = LaunchStatus::Of(
      cudaFuncSetAttribute(SampleKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(bytes)),
      "Sample: shared memory for this vocabulary");
  if (!fits.ok()) return fits;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = kRanks;
  attributes[0].val.clusterDim.y = 1;
  attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(params.rows) * kRanks);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = launch.stream;
  config.attrs = attributes;
  config.numAttrs = launch.overlap == Overlap::kPrologue ? 2 : 1;
  const bool aligned =
      params.vocab % 4 == 0 && reinterpret_cast<uintptr_t>(params.logits) % sizeof(float4) == 0;
  return LaunchStatus::Of(
      cudaLaunchKernelEx(&config, SampleKernel, params, static_cast<int>(slice_tokens), aligned),
      "Sample");
}

}  // namespace weir::cuda
