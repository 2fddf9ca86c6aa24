#include "kernels/cpu/gemm.h"

#include <algorithm>

#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/kernel_table.h"

namespace weir::cpu {
namespace {

constexpr int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Less weight than this in a task costs more to hand out than it saves.
constexpr int64_t kTaskBytes = int64_t{64} << 10;
// Rows of x that share one pass over the weights: a k block of them fits a 1 MiB L2 cache.
constexpr int64_t kMaxRowsPerTask = 768;

template <typename T, typename ToBf16>
void Pack(const T* rows, int64_t row0, int64_t nrows, int64_t n, int64_t k, uint16_t* packed,
          const ToBf16& to_bf16) {
  for (int64_t r = row0; r < row0 + nrows;) {
    const int64_t stop = std::min((r / kPanelRows + 1) * kPanelRows, row0 + nrows);
    uint16_t* panel = packed + r / kPanelRows * kPanelRows * k;
    const int64_t lane = r % kPanelRows;
    const int64_t count = stop - r;
    const T* in = rows + (r - row0) * k;
    for (int64_t c = 0; c < k; ++c) {
      for (int64_t i = 0; i < count; ++i) {
        panel[c * kPanelRows + lane + i] = to_bf16(in[i * k + c]);
      }
    }
    if (stop == n) {
      for (int64_t i = lane + count; i < kPanelRows; ++i) {
        for (int64_t c = 0; c < k; ++c) panel[c * kPanelRows + i] = 0;
      }
    }
    r = stop;
  }
}

}  // namespace

size_t PackedWeightBytes(int64_t n, int64_t k) {
  return static_cast<size_t>(CeilDiv(n, kPanelRows) * kPanelRows * k) * sizeof(uint16_t);
}

void PackRows(const float* rows, int64_t row0, int64_t nrows, int64_t n, int64_t k,
              uint16_t* packed) {
  Pack(rows, row0, nrows, n, k, packed, [](float f) { return FloatToBf16(f); });
}

void PackRows(const uint16_t* bf16_rows, int64_t row0, int64_t nrows, int64_t n, int64_t k,
              uint16_t* packed) {
  Pack(bf16_rows, row0, nrows, n, k, packed, [](uint16_t b) { return b; });
}

void Gemm(const GemmParams& p, ThreadPool& pool) {
  if (p.m <= 0 || p.n <= 0) return;
  const KernelTable& kernels = ActiveKernels();
  const GemmArgs args{p.x,    p.ldx, p.weights,
                      p.bias, p.y,   p.ldy,
                      p.n,    p.k,   p.output == GemmOutput::kAccumulate ? 1 : 0};
  const int64_t panels = CeilDiv(p.n, kPanelRows);
  const int64_t threads = pool.threads();
  // Rows: one task unless there are very many, or too few panels to feed every thread.
  int64_t row_tasks = CeilDiv(p.m, kMaxRowsPerTask);
  const int64_t tiles = CeilDiv(p.m, kernels.gemm_row_tile);
  const int64_t groups = CeilDiv(panels, kernels.gemm_panel_stride);
  if (groups * row_tasks < threads * 3) {
    row_tasks = std::max(row_tasks, std::min(CeilDiv(threads * 3, groups), tiles / 4));
  }
  // Panels: several tasks a thread, so that a disturbed thread does not hold up the rest, but not
  // too small and always whole register tiles.
  const int64_t panel_bytes = kPanelRows * std::max<int64_t>(p.k, 1) * 2;
  int64_t per_task = std::max(CeilDiv(panels, threads * 4),
                              p.m == 1 ? CeilDiv(kTaskBytes, panel_bytes) : int64_t{1});
  per_task = std::min(per_task, CeilDiv(panels, threads));
  per_task = CeilDiv(per_task, kernels.gemm_panel_stride) * kernels.gemm_panel_stride;
  const int64_t panel_tasks = CeilDiv(panels, per_task);
  pool.ParallelFor(static_cast<int>(panel_tasks * row_tasks), [&](int task) {
    const int64_t rows = task / panel_tasks;
    const int64_t panel = task % panel_tasks * per_task;
    // Cut at whole tiles.
    const int64_t m_begin = rows * tiles / row_tasks * kernels.gemm_row_tile;
    const int64_t m_end = std::min(p.m, (rows + 1) * tiles / row_tasks * kernels.gemm_row_tile);
    kernels.gemm(args, panel, std::min(panels, panel + per_task), m_begin, m_end);
  });
}

}  // namespace weir::cpu
