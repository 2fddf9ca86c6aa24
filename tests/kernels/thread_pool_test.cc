#include "kernels/cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <ctime>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace weir::cpu {
namespace {

void ExpectEachTaskOnce(ThreadPool& pool, int tasks) {
  std::vector<int> runs(static_cast<size_t>(tasks), 0);
  pool.ParallelFor(tasks, [&](int i) { ++runs[static_cast<size_t>(i)]; });
  for (int i = 0; i < tasks; ++i) ASSERT_EQ(runs[static_cast<size_t>(i)], 1) << i << "/" << tasks;
}

TEST(ThreadPoolTest, RunsEveryTaskOnceWithAnyNumberOfThreads) {
  for (const int threads : {0, 1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), std::max(threads, 1));
    for (const int tasks : {0, 1, 2, 3, 7, 64, 1000}) ExpectEachTaskOnce(pool, tasks);
  }
}

TEST(ThreadPoolTest, ManyShortLoopsSeeOnlyTheirOwnTasks) {
  ThreadPool pool(3);
  for (int round = 0; round < 20000; ++round) {
    std::atomic<int> sum{0};
    const int tasks = 1 + round % 5;
    pool.ParallelFor(tasks, [&](int i) { sum.fetch_add(i + round, std::memory_order_relaxed); });
    ASSERT_EQ(sum.load(), tasks * round + tasks * (tasks - 1) / 2);
  }
}

TEST(ThreadPoolTest, WorkersWakeAfterSleeping) {
  ThreadPool pool(2);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(round % 3));
    ExpectEachTaskOnce(pool, 50);
  }
}

TEST(ThreadPoolTest, WritesOfTasksAreVisibleToTheNextLoop) {
  ThreadPool pool(3);
  std::vector<int> values(64, 0);
  for (int round = 0; round < 500; ++round) {
    pool.ParallelFor(64, [&](int i) {
      // Another lane wrote the neighbour in the round before.
      values[static_cast<size_t>(i)] = round;
    });
    for (const int v : values) ASSERT_EQ(v, round);
  }
}

TEST(ThreadPoolTest, ALoopInsideATaskRunsInline) {
  ThreadPool pool(2);
  std::atomic<int> inner{0};
  pool.ParallelFor(8, [&](int) {
    pool.ParallelFor(8, [&](int) { inner.fetch_add(1, std::memory_order_relaxed); });
  });
  EXPECT_EQ(inner.load(), 64);
}

TEST(ThreadPoolTest, TwoThreadsMayShareAPool) {
  ThreadPool pool(2);
  const auto loop = [&] {
    for (int round = 0; round < 500; ++round) ExpectEachTaskOnce(pool, 9);
  };
  std::thread other(loop);
  loop();
  other.join();
}

TEST(ThreadPoolTest, AnIdlePoolUsesNoProcessorTime) {
  ThreadPool pool(2);
  ExpectEachTaskOnce(pool, 10);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // past the spin
  timespec before{};
  timespec after{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  const double used = static_cast<double>(after.tv_sec - before.tv_sec) +
                      static_cast<double>(after.tv_nsec - before.tv_nsec) * 1e-9;
  EXPECT_LT(used, 0.01);
}

TEST(ThreadPoolTest, ManyMoreThreadsThanCoresStillFinish) {
  ThreadPool pool(16);
  for (int round = 0; round < 500; ++round) ExpectEachTaskOnce(pool, 33);
}

}  // namespace
}  // namespace weir::cpu
