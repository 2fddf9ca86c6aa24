#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/thread_pool.h"

namespace weir::bench {

// What the machine can do, measured with code that does nothing else, by the widest instructions
// the CPU has. The kernels' figures are printed as fractions of these.

// Bytes a second read from a buffer far larger than the caches, on all threads of the pool.
double ReadBandwidth(cpu::ThreadPool& pool);

// The same when the buffer is read in runs of run_bytes in random order, as paged attention must.
double ReadRunsBandwidth(cpu::ThreadPool& pool, int64_t run_bytes);

// Single-precision operations a second (a fused multiply-add counts as two) on all threads.
double FmaPeak(cpu::ThreadPool& pool);

// Seconds for the fastest of `rounds` calls.
template <typename Fn>
double FastestSeconds(int rounds, const Fn& fn);

double NowSeconds();

// Memory in 2 MiB pages where the system grants them; WEIR_BENCH_PAGES=4k asks for small ones.
// Release with std::free.
void* AllocatePages(size_t bytes);

template <typename Fn>
double FastestSeconds(int rounds, const Fn& fn) {
  double best = 1e30;
  for (int i = 0; i < rounds; ++i) {
    const double start = NowSeconds();
    fn();
    const double took = NowSeconds() - start;
    best = took < best ? took : best;
  }
  return best;
}

}  // namespace weir::bench
