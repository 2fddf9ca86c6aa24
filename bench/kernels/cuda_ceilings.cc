#include "bench/kernels/cuda_ceilings.h"

#include <algorithm>
#include <memory>

#include "bench/kernels/cuda_empty.h"
#include "engine/cuda_graph.h"
#include "engine/cuda_layout.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/peak.h"
#include "vmm/types.h"

namespace weir::bench {
namespace {

using cuda::Bf16;

CudaCeilings::Line RateLine(std::string what, std::string unit, double work, double scale,
                            const Timing& t) {
  return {std::move(what), std::move(unit), work / t.median * scale, work / t.most * scale,
          work / t.least * scale};
}

Status MeasureRead(std::byte* arena, uint64_t bytes, uint32_t rounds, cudaStream_t stream,
                   CudaCeilings* out) {
  auto* checksum = reinterpret_cast<uint32_t*>(arena);  // outside of what is read
  for (const uint64_t size : {kGiB, 8 * kGiB, 16 * kGiB, 32 * kGiB, 64 * kGiB}) {
    if (size + kMiB > bytes) continue;
    TimingOptions options{.rounds = rounds, .warm_seconds = 0.3};
    const Timing t = WEIR_TRY(TimeCalls(stream, options, [&](uint32_t) {
      return ToStatus(cuda::ReadBandwidth(
          {.src = arena + kMiB, .bytes = static_cast<int64_t>(size), .checksum = checksum},
          {.stream = stream}));
    }));
    const auto work = static_cast<double>(size);
    out->lines.push_back(
        RateLine("read " + std::to_string(size / kGiB) + " GiB", "GB/s", work, 1e-9, t));
    // The smallest leaves a part of itself in the L2: it counts only where there is nothing else.
    out->read = size <= 8 * kGiB ? work / t.median : std::max(out->read, work / t.median);
  }
  return OkStatus();
}

Status MeasureCopy(std::byte* arena, uint64_t bytes, uint32_t rounds, cudaStream_t stream,
                   CudaCeilings* out) {
  for (const uint64_t size : {kGiB / 2, 4 * kGiB, 16 * kGiB}) {
    if (2 * size > bytes) continue;
    TimingOptions options{.rounds = rounds, .warm_seconds = 0.2};
    const Timing t = WEIR_TRY(TimeCalls(stream, options, [&](uint32_t) {
      return FromCuda(cudaMemcpyAsync(arena + size, arena, size, cudaMemcpyDeviceToDevice, stream),
                      "a copy on the device");
    }));
    out->lines.push_back(RateLine("copy " + std::to_string(size / kMiB) + " MiB, read + written",
                                  "GB/s", 2 * static_cast<double>(size), 1e-9, t));
  }
  return OkStatus();
}

struct Product {
  const char* what;
  int64_t m, n, k;
};

Status MeasureProduct(std::byte* arena, uint64_t bytes, const Product& p, uint32_t rounds,
                      cudaStream_t stream, CudaCeilings* out) {
  Bf16* x = reinterpret_cast<Bf16*>(arena + kGemmWorkspaceBytes);
  Bf16* w = x + AlignUp(static_cast<uint64_t>(p.m * p.k), 256);
  Bf16* y = w + AlignUp(static_cast<uint64_t>(p.n * p.k), 256);
  if (reinterpret_cast<std::byte*>(y + p.m * p.n) > arena + bytes) return OkStatus();
  std::unique_ptr<cuda::GemmPlanner> gemm;
  WEIR_TRY(ToStatus(cuda::GemmPlanner::Create(
      {.workspace = arena, .workspace_bytes = kGemmWorkspaceBytes, .candidates = 16}, &gemm)));
  const cuda::GemmParams params{
      .kind = {.n = p.n, .k = p.k}, .x = x, .weights = w, .y = y, .m = p.m};
  WEIR_TRY(ToStatus(gemm->Prepare(params, {}, stream)));
  TimingOptions options{.rounds = rounds, .rotation = 8, .least_calls = 8, .warm_seconds = 1.2};
  const Timing t = WEIR_TRY(TimeCalls(
      stream, options, [&](uint32_t) { return ToStatus(gemm->Run(params, {.stream = stream})); }));
  const double work =
      2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
  out->lines.push_back(RateLine("bf16 product, " + std::string(p.what) + " " + std::to_string(p.m) +
                                    " x " + std::to_string(p.n) + " x " + std::to_string(p.k),
                                "TFLOP/s", work, 1e-12, t));
  out->flops = std::max(out->flops, work / t.median);
  return OkStatus();
}

Status MeasureLaunches(uint32_t rounds, cudaStream_t stream, CudaCeilings* out) {
  int device = 0, processors = 0;
  WEIR_TRY(FromCuda(cudaGetDevice(&device), "the device"));
  WEIR_TRY(FromCuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
                    "the device"));
  for (const cuda::Overlap overlap : {cuda::Overlap::kNone, cuda::Overlap::kPrologue}) {
    for (const int blocks : {1, processors}) {
      TimingOptions options{.rounds = rounds, .rotation = 1000, .least_calls = 1000};
      const Timing t = WEIR_TRY(TimeCalls(stream, options, [&](uint32_t) {
        return ToStatus(Empty(blocks, {.stream = stream, .overlap = overlap}));
      }));
      const bool prologue = overlap == cuda::Overlap::kPrologue;
      out->lines.push_back({"empty kernel in a graph, " + std::to_string(blocks) + " blocks" +
                                (prologue ? ", prologue" : ""),
                            "us", t.median * 1e6, t.least * 1e6, t.most * 1e6});
      if (!prologue) out->launch_gap = t.median;
    }
  }
  return OkStatus();
}

}  // namespace

Result<CudaCeilings> MeasureCudaCeilings(std::byte* arena, uint64_t bytes,
                                         const ModelConfig& config, uint32_t rounds,
                                         cudaStream_t stream) {
  CudaCeilings out;
  // Products first: they want the arena's random numbers.
  WEIR_TRY(MeasureProduct(arena, bytes, {"square", 8192, 8192, 8192}, rounds, stream, &out));
  WEIR_TRY(MeasureProduct(
      arena, bytes,
      {"gate_up", 4096, 2 * int64_t{config.intermediate_size}, int64_t{config.hidden_size}}, rounds,
      stream, &out));
  WEIR_TRY(MeasureRead(arena, bytes, rounds, stream, &out));
  WEIR_TRY(MeasureCopy(arena, bytes, rounds, stream, &out));
  WEIR_TRY(MeasureLaunches(rounds, stream, &out));
  if (out.read == 0 || out.flops == 0) {
    return NoMemory("the ceilings need device memory of at least 2 GiB, there are " +
                    std::to_string(bytes / kMiB) + " MiB; raise --budget");
  }
  return out;
}

}  // namespace weir::bench
