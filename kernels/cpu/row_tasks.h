#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/thread_pool.h"

namespace weir::cpu {

// Runs fn(row) for rows [0, m), in parallel when there are enough values (row_values each) to pay
// for a dispatch. Internal.
template <typename Fn>
void ForRows(ThreadPool& pool, int64_t m, int64_t row_values, const Fn& fn) {
  constexpr int64_t kTaskValues = 4096;
  const int64_t per_task = std::max<int64_t>(
      {1, kTaskValues / std::max<int64_t>(row_values, 1), m / (int64_t{8} * pool.threads())});
  const int64_t tasks = (m + per_task - 1) / per_task;
  pool.ParallelFor(static_cast<int>(tasks), [&](int task) {
    const int64_t stop = std::min(m, (task + 1) * per_task);
    for (int64_t row = task * per_task; row < stop; ++row) fn(row);
  });
}

}  // namespace weir::cpu
