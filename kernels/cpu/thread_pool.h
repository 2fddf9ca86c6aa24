#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace weir::cpu {

// A borrowed callable `void(int task)`: two words, no allocation. The callable must outlive the
// call it is passed to, which for ParallelFor is always so.
class TaskRef {
 public:
  template <typename F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, TaskRef>)
      TaskRef(F&& f)  // NOLINT(google-explicit-constructor)
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* object, int task) {
          (*static_cast<std::remove_reference_t<F>*>(object))(task);
        }) {}
  void operator()(int task) const { call_(object_, task); }

 private:
  void* object_;
  void (*call_)(void*, int);
};

// Threads for the loops inside kernels. Represents `threads` lanes of execution: the caller and
// threads-1 workers named "weir-cpu-<i>". Workers spin for about 50 microseconds after a loop and
// then sleep on a futex, so an idle pool costs nothing.
//
// One loop at a time uses the workers: a ParallelFor from inside a task, or from a second thread
// while one is running, runs inline on its caller, which is correct and merely slower. Tasks must
// not throw. If the system refuses a thread the pool has fewer lanes; threads() tells.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // < 1 counts as 1; 1 starts no thread
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(0) ... fn(tasks-1), each exactly once, in any order on any lane; returns when all are
  // done, with their writes visible to the caller. Tasks are handed out in increasing order, so a
  // caller balances by putting long tasks first.
  void ParallelFor(int tasks, TaskRef fn);

 private:
  // The loop being run, in one word, so that a claim is checked against the loop it belongs to:
  // epoch << 48 | tasks << 24 | next. A worker that claims next < tasks keeps that loop alive
  // until it reports the task done, and only then reads fn_.
  static constexpr int kTaskBits = 24;
  static constexpr uint64_t kTaskMask = (uint64_t{1} << kTaskBits) - 1;

  void RunLoop(int tasks, const TaskRef& fn);
  void WorkerMain(int index);
  int RunTasks();  // claims and runs until none is left; how many it ran
  bool HasWork() const;
  void ReportDone(int count);

  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> done_{0};
  std::atomic<int> done_target_{0};  // > 0: the caller sleeps until done_ reaches it
  alignas(64) const TaskRef* fn_ = nullptr;
  uint64_t epoch_ = 0;
  std::atomic<bool> busy_{false};
  alignas(64) std::atomic<uint32_t> signal_{0};  // what workers sleep on
  std::atomic<int> parked_{0};
  std::atomic<bool> stop_{false};
  int64_t spin_ns_ = 0;
  std::vector<std::thread> workers_;
};

}  // namespace weir::cpu
