#include "bench/kernels/machine_ceilings.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include <sys/mman.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace weir::bench {
namespace {

volatile float g_sink;

#if defined(__x86_64__)

#define WEIR_AVX512 __attribute__((target("avx512f,avx512dq,avx512vl,fma")))
#define WEIR_AVX2 __attribute__((target("avx2,fma")))

WEIR_AVX512 float Fma512(int64_t steps) {
  __m512 a[12];
  const __m512 x = _mm512_set1_ps(0.999f);
  for (auto& v : a) v = _mm512_set1_ps(1.0f);
  for (int64_t i = 0; i < steps; ++i) {
    for (auto& v : a) v = _mm512_fmadd_ps(v, x, x);
  }
  for (int i = 1; i < 12; ++i) a[0] = _mm512_add_ps(a[0], a[i]);
  return _mm512_cvtss_f32(a[0]);
}
WEIR_AVX2 float Fma256(int64_t steps) {
  __m256 a[12];
  const __m256 x = _mm256_set1_ps(0.999f);
  for (auto& v : a) v = _mm256_set1_ps(1.0f);
  for (int64_t i = 0; i < steps; ++i) {
    for (auto& v : a) v = _mm256_fmadd_ps(v, x, x);
  }
  for (int i = 1; i < 12; ++i) a[0] = _mm256_add_ps(a[0], a[i]);
  return _mm256_cvtss_f32(a[0]);
}
WEIR_AVX2 float Read(const float* p, int64_t n, int64_t ahead) {
  __m256 a[8];
  for (auto& v : a) v = _mm256_setzero_ps();
  for (int64_t i = 0; i + 64 <= n; i += 64) {
    for (int j = 0; j < 4; ++j) {
      _mm_prefetch(reinterpret_cast<const char*>(p + i + 16 * j + ahead), _MM_HINT_T0);
    }
    for (int j = 0; j < 8; ++j) {
      a[j] = _mm256_xor_ps(a[j], _mm256_loadu_ps(p + i + 8 * j));
    }
  }
  for (int i = 1; i < 8; ++i) a[0] = _mm256_xor_ps(a[0], a[i]);
  return _mm256_cvtss_f32(a[0]);
}
bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") != 0;
}

#else

float Read(const float* p, int64_t n, int64_t) {
  float a[32] = {};
  for (int64_t i = 0; i + 32 <= n; i += 32) {
    for (int j = 0; j < 32; ++j) a[j] += p[i + j];
  }
  for (int j = 1; j < 32; ++j) a[0] += a[j];
  return a[0];
}
float Fma256(int64_t steps) {
  float a[96] = {};
  for (int64_t i = 0; i < steps; ++i) {
    for (float& v : a) v = __builtin_fmaf(v, 0.999f, 0.999f);
  }
  for (int j = 1; j < 96; ++j) a[0] += a[j];
  return a[0];
}
float Fma512(int64_t steps) {
  return Fma256(steps);
}
bool HasAvx512() {
  return false;
}

#endif

}  // namespace

double NowSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void* AllocatePages(size_t bytes) {
  constexpr size_t kHuge = size_t{2} << 20;
  void* memory = std::aligned_alloc(kHuge, (bytes + kHuge - 1) / kHuge * kHuge);
#if defined(MADV_HUGEPAGE)
  const char* pages = std::getenv("WEIR_BENCH_PAGES");
  if (pages == nullptr || *pages != '4') madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

double ReadBandwidth(cpu::ThreadPool& pool) {
  constexpr int64_t kFloats = int64_t{64} << 20;  // 256 MiB
  constexpr int64_t kSegment = int64_t{4} << 20;  // 16 MiB timed at once
  constexpr int64_t kChunk = int64_t{32} << 10;   // 128 KiB a task
  const std::unique_ptr<float, decltype(&std::free)> data(
      static_cast<float*>(AllocatePages((kFloats + 4096) * sizeof(float))), &std::free);
  std::fill_n(data.get(), kFloats + 4096, 1.0f);
  double best = 0;
  for (const int64_t ahead : {0, 256, 512, 1024}) {  // the best prefetch distance counts
    int64_t segment = 0;
    const double seconds = FastestSeconds(64, [&] {
      const float* from = data.get() + segment;
      segment = (segment + kSegment) % kFloats;
      pool.ParallelFor(static_cast<int>(kSegment / kChunk),
                       [&](int task) { g_sink = Read(from + task * kChunk, kChunk, ahead); });
    });
    const double rate = static_cast<double>(kSegment) * 4 / seconds;
    best = rate > best ? rate : best;
  }
  return best;
}

double ReadRunsBandwidth(cpu::ThreadPool& pool, int64_t run_bytes) {
  constexpr int64_t kFloats = int64_t{64} << 20;
  constexpr int64_t kRunsPerTask = 64;
  const std::unique_ptr<float, decltype(&std::free)> data(
      static_cast<float*>(AllocatePages((kFloats + 4096) * sizeof(float))), &std::free);
  std::fill_n(data.get(), kFloats + 4096, 1.0f);
  const int64_t run = run_bytes / 4;
  std::vector<int64_t> order(static_cast<size_t>(kFloats / run));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  const int64_t tasks = static_cast<int64_t>(order.size()) / kRunsPerTask / 16;
  int64_t round = 0;
  const double seconds = FastestSeconds(48, [&] {
    const int64_t first = round++ % 16 * tasks * kRunsPerTask;
    pool.ParallelFor(static_cast<int>(tasks), [&](int task) {
      for (int64_t i = 0; i < kRunsPerTask; ++i) {
        const int64_t at = order[static_cast<size_t>(first + task * kRunsPerTask + i)];
        g_sink = Read(data.get() + at * run, run, 0);
      }
    });
  });
  return static_cast<double>(tasks * kRunsPerTask * run) * 4 / seconds;
}

double FmaPeak(cpu::ThreadPool& pool) {
  constexpr int64_t kSteps = 1 << 16;
  const bool wide = HasAvx512();
  const double seconds = FastestSeconds(200, [&] {
    pool.ParallelFor(pool.threads(), [&](int) { g_sink = wide ? Fma512(kSteps) : Fma256(kSteps); });
  });
  return 2.0 * 12 * (wide ? 16 : 8) * static_cast<double>(kSteps) * pool.threads() / seconds;
}

}  // namespace weir::bench
