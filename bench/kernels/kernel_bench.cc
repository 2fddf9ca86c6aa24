// weir_kernel_bench [threads]: the CPU kernels on SmolLM2-135M shapes, against the measured read
// bandwidth and multiply-add rate of this machine. Every figure is the fastest of a few rounds.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "bench/kernels/machine_ceilings.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kv.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/rope.h"

namespace weir::bench {
namespace {

using cpu::ThreadPool;

constexpr int64_t kHidden = 576;
constexpr int64_t kQkv = 960;
constexpr int64_t kFfn = 1536;
constexpr int64_t kVocab = 49152;
constexpr int64_t kLayers = 30;

struct Ceilings {
  double read;
  double fma;
};

// Memory whose lines are as aligned as an engine's.
template <typename T>
struct Buffer {
  explicit Buffer(int64_t count)
      : data(static_cast<T*>(std::aligned_alloc(
                 4096, (static_cast<size_t>(count) * sizeof(T) + 8192) / 4096 * 4096)),
             &std::free) {
    for (int64_t i = 0; i < count; ++i) {
      if constexpr (sizeof(T) == 2) {
        data.get()[i] = cpu::FloatToBf16(0.01f * static_cast<float>(i % 7 - 3));
      } else {
        data.get()[i] = static_cast<T>(0.01f * static_cast<float>(i % 11 - 5));
      }
    }
  }
  T* get() const { return data.get(); }
  std::unique_ptr<T, decltype(&std::free)> data;
};

void BenchPool(ThreadPool& pool) {
  constexpr int kLoops = 2000;
  const double seconds = FastestSeconds(10, [&] {
    for (int i = 0; i < kLoops; ++i) pool.ParallelFor(pool.threads(), [](int) {});
  });
  std::printf("pool: %.2f us a dispatch back to back\n", seconds / kLoops * 1e6);
  double slept = 1e30;
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::microseconds(500));
    slept =
        std::min(slept, FastestSeconds(1, [&] { pool.ParallelFor(pool.threads(), [](int) {}); }));
  }
  std::printf("pool: %.2f us a dispatch with sleeping workers\n", slept * 1e6);
}

struct Matrix {
  const char* name;
  int64_t n, k;
};
constexpr Matrix kMatrices[] = {{"qkv", kQkv, kHidden},
                                {"o", kHidden, kHidden},
                                {"gate_up", 2 * kFfn, kHidden},
                                {"down", kHidden, kFfn}};

void BenchGemv(ThreadPool& pool, const Ceilings& top) {
  std::printf("\nGEMV, m = 1, weights of %d layers so that no cache holds them\n",
              static_cast<int>(4 * kLayers));
  const Buffer<float> x(kFfn);
  const Buffer<float> y(kVocab);
  const auto run = [&](const char* name, int64_t n, int64_t k, int64_t copies) {
    const int64_t stride = static_cast<int64_t>(cpu::PackedWeightBytes(n, k)) / 2;
    const Buffer<uint16_t> w(stride * copies);
    // Timed in pieces of about 16 MiB, so that another process rarely falls into the best one.
    const int64_t piece = std::clamp<int64_t>((8 << 20) / stride, 1, copies);
    int64_t c = 0;
    const double seconds = FastestSeconds(80,
                                          [&] {
                                            for (int64_t i = 0; i < piece; ++i) {
                                              cpu::Gemm({.x = x.get(),
                                                         .ldx = k,
                                                         .weights = w.get() + c * stride,
                                                         .y = y.get(),
                                                         .ldy = n,
                                                         .m = 1,
                                                         .n = n,
                                                         .k = k},
                                                        pool);
                                              c = (c + 1) % copies;
                                            }
                                          }) /
                           static_cast<double>(piece);
    const double rate = static_cast<double>(stride) * 2 / seconds;
    std::printf("  %-8s %6lld x %-5lld %8.1f us  %6.1f GB/s  %3.0f %% of read\n", name,
                static_cast<long long>(n), static_cast<long long>(k), seconds * 1e6, rate * 1e-9,
                rate / top.read * 100);
  };
  for (const Matrix& m : kMatrices) run(m.name, m.n, m.k, 4 * kLayers);
  run("lm_head", kVocab, kHidden, 4);
}

void BenchGemm(ThreadPool& pool, const Ceilings& top) {
  std::printf("\nGEMM, gate_up (3072 x 576), then down (576 x 1536)\n");
  constexpr int64_t kMaxRows = 2048;
  const Buffer<float> x(kMaxRows * kFfn);
  const Buffer<float> y(kMaxRows * 2 * kFfn);
  const auto run = [&](int64_t m, int64_t n, int64_t k) {
    const Buffer<uint16_t> w(n * k);
    const double work = 2.0 * static_cast<double>(m * n * k);
    const int repeats = static_cast<int>(std::max(1.0, 5e7 / work));
    const double seconds = FastestSeconds(8,
                                          [&] {
                                            for (int i = 0; i < repeats; ++i) {
                                              cpu::Gemm({.x = x.get(),
                                                         .ldx = k,
                                                         .weights = w.get(),
                                                         .y = y.get(),
                                                         .ldy = n,
                                                         .m = m,
                                                         .n = n,
                                                         .k = k},
                                                        pool);
                                            }
                                          }) /
                           repeats;
    std::printf("  m %4lld n %4lld k %4lld %10.1f us  %6.1f GFLOP/s  %3.0f %% of peak\n",
                static_cast<long long>(m), static_cast<long long>(n), static_cast<long long>(k),
                seconds * 1e6, work / seconds * 1e-9, work / seconds / top.fma * 100);
  };
  for (const int64_t m : {1, 2, 4, 6, 8, 12, 16, 32, 64, 128, 512, 2048}) run(m, 2 * kFfn, kHidden);
  for (const int64_t m : {8, 64, 512, 2048}) run(m, kHidden, kFfn);
}

void BenchAttention(ThreadPool& pool, const Ceilings& top, cpu::KvDtype dtype) {
  constexpr int64_t kHeads = 9;
  constexpr int64_t kKvHeads = 3;
  constexpr int64_t kDim = 64;
  std::printf("\nAttention, 9 heads on 3 kv heads of 64, %s\n",
              dtype == cpu::KvDtype::kBf16 ? "bf16" : "f32");
  const cpu::KvLayout layout{.layers = 8, .kv_heads = kKvHeads, .head_dim = kDim, .dtype = dtype};
  constexpr int64_t kBlocks = 2048;
  std::printf("  ceiling for runs of one kv head's K or V: %.1f GB/s\n",
              ReadRunsBandwidth(pool, layout.KHeadBytes()) * 1e-9);
  const Buffer<uint16_t> memory(layout.BlockBytes() * kBlocks / 2);
  if (dtype == cpu::KvDtype::kF32) {
    std::memset(memory.get(), 0, static_cast<size_t>(layout.BlockBytes() * kBlocks));
  }
  const cpu::KvPool kv{
      .base = memory.get(), .block_stride_bytes = layout.BlockBytes(), .layout = layout};
  std::vector<int32_t> blocks(kBlocks);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::shuffle(blocks.begin(), blocks.end(), std::mt19937(1));
  const auto run = [&](int64_t seqs, int64_t context, int64_t queries) {
    const Buffer<float> q(seqs * queries * kHeads * kDim);
    const Buffer<float> out(seqs * queries * kHeads * kDim);
    std::vector<cpu::AttentionSeq> list;
    for (int64_t i = 0; i < seqs; ++i) {
      list.push_back({.q_begin = i * queries,
                      .q_end = (i + 1) * queries,
                      .context = context,
                      .blocks = blocks.data() + i * (context / 16)});
    }
    const size_t bytes = cpu::AttentionScratchBytes(seqs, seqs * context, kHeads, kDim);
    const Buffer<uint16_t> scratch(static_cast<int64_t>(bytes / 2));
    const double seconds =
        FastestSeconds(6,
                       [&] {
                         for (int64_t layer = 0; layer < layout.layers; ++layer) {
                           cpu::PagedAttention(kv,
                                               {.q = q.get(),
                                                .q_stride = kHeads * kDim,
                                                .out = out.get(),
                                                .out_stride = kHeads * kDim,
                                                .q_heads = kHeads,
                                                .layer = layer,
                                                .scale = 0.125f,
                                                .seqs = list.data(),
                                                .num_seqs = seqs,
                                                .scratch = scratch.get(),
                                                .scratch_bytes = bytes},
                                               pool);
                         }
                       }) /
        static_cast<double>(layout.layers);
    const double read = static_cast<double>(seqs * context / 16 * layout.LayerBytes()) / seconds;
    const double pairs = static_cast<double>(seqs * kHeads) * static_cast<double>(queries) *
                         static_cast<double>(2 * context - queries + 1) / 2;
    const double flops = pairs * 4 * kDim / seconds;
    std::printf("  %3lld seqs, context %5lld, %4lld queries each %9.1f us  ",
                static_cast<long long>(seqs), static_cast<long long>(context),
                static_cast<long long>(queries), seconds * 1e6);
    if (queries == 1) {
      std::printf("%6.1f GB/s  %3.0f %% of read\n", read * 1e-9, read / top.read * 100);
    } else {
      std::printf("%6.1f GFLOP/s  %3.0f %% of peak\n", flops * 1e-9, flops / top.fma * 100);
    }
  };
  run(1, 512, 1);
  run(1, 4096, 1);
  run(1, 16384, 1);
  run(16, 2048, 1);
  run(64, 512, 1);
  run(1, 512, 512);
  run(1, 2048, 2048);
  run(1, 8192, 256);
}

void BenchRows(ThreadPool& pool) {
  std::printf("\nRow kernels\n");
  const Buffer<float> x(512 * 2 * kFfn);
  const Buffer<float> y(512 * 2 * kFfn);
  const Buffer<float> weight(kHidden);
  const Buffer<float> table(512 * 32);
  const Buffer<uint16_t> kv_memory(64 * 16 * 2 * 192 * 2);
  const cpu::KvPool kv{.base = kv_memory.get(),
                       .block_stride_bytes = 16 * 2 * 192 * 2,
                       .layout = {.layers = 1, .kv_heads = 3, .head_dim = 64}};
  std::vector<int32_t> positions(512);
  std::iota(positions.begin(), positions.end(), 0);
  std::vector<int64_t> slots(positions.begin(), positions.end());
  const auto report = [](const char* name, int64_t m, double seconds) {
    std::printf("  %-10s m %3lld %9.2f us\n", name, static_cast<long long>(m), seconds * 1e6);
  };
  for (const int64_t m : {1, 16, 512}) {
    report("rms_norm", m, FastestSeconds(50, [&] {
             cpu::RmsNorm({.x = x.get(),
                           .ldx = kHidden,
                           .weight = weight.get(),
                           .eps = 1e-5f,
                           .y = y.get(),
                           .ldy = kHidden,
                           .m = m,
                           .h = kHidden},
                          pool);
           }));
    report("silu_mul", m, FastestSeconds(50, [&] {
             cpu::SiluMul({.gate_up = x.get(),
                           .ld_gate_up = 2 * kFfn,
                           .y = y.get(),
                           .ldy = kFfn,
                           .m = m,
                           .ffn = kFfn},
                          pool);
           }));
    report("rope", m, FastestSeconds(50, [&] {
             cpu::ApplyRope({.x = y.get(),
                             .row_stride = kQkv,
                             .m = m,
                             .heads = 12,
                             .head_dim = 64,
                             .rotary_dim = 64,
                             .positions = positions.data(),
                             .cos = table.get(),
                             .sin = table.get()},
                            pool);
           }));
    report("kv_append", m, FastestSeconds(50, [&] {
             cpu::KvAppend(kv,
                           {.k = x.get() + 576,
                            .v = x.get() + 768,
                            .row_stride = kQkv,
                            .m = m,
                            .layer = 0,
                            .slots = slots.data()},
                           pool);
           }));
  }
  const Buffer<float> logits(kVocab);
  int64_t best = 0;
  report("argmax", 1, FastestSeconds(20, [&] { best += cpu::Argmax(logits.get(), kVocab); }));
  if (best < 0) std::printf("%lld\n", static_cast<long long>(best));
}

int Main(int argc, char** argv) {
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  const int threads = argc > 1 ? std::atoi(argv[1]) : static_cast<int>(cores);
  const char* only = argc > 2 ? argv[2] : "";
  const auto wanted = [&](const char* what) { return *only == '\0' || !std::strcmp(only, what); };
  ThreadPool pool(threads);
  const std::string_view isa = cpu::IsaName(cpu::ActiveIsa());
  std::printf("isa %.*s, %d threads on %u cores\n", static_cast<int>(isa.size()), isa.data(),
              pool.threads(), cores);
  Ceilings top{ReadBandwidth(pool), FmaPeak(pool)};
  std::printf("ceilings: read %.1f GB/s, multiply-add %.0f GFLOP/s\n", top.read * 1e-9,
              top.fma * 1e-9);
  if (wanted("pool")) BenchPool(pool);
  if (wanted("gemv")) BenchGemv(pool, top);
  if (wanted("gemm")) BenchGemm(pool, top);
  if (wanted("attention")) BenchAttention(pool, top, cpu::KvDtype::kBf16);
  if (wanted("attention")) BenchAttention(pool, top, cpu::KvDtype::kF32);
  if (wanted("rows")) BenchRows(pool);
  const Ceilings again{ReadBandwidth(pool), FmaPeak(pool)};
  std::printf("\nceilings, measured again: read %.1f GB/s, multiply-add %.0f GFLOP/s\n",
              again.read * 1e-9, again.fma * 1e-9);
  return 0;
}

}  // namespace
}  // namespace weir::bench

int main(int argc, char** argv) {
  return weir::bench::Main(argc, argv);
}
