#include "kernels/cpu/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <system_error>

#if defined(__linux__)
#include <pthread.h>
#endif

namespace weir::cpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kSpinNs = 50'000;
// With more threads than cores a spinning thread keeps a working one off its core.
constexpr int64_t kOversubscribedSpinNs = 2'000;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// Spins until `ready` or the time is up; whether ready.
template <typename Ready>
bool SpinFor(int64_t nanoseconds, const Ready& ready) {
  if (ready()) return true;
  const auto start = Clock::now();
  do {
    for (int i = 0; i < 32; ++i) {
      Pause();
      if (ready()) return true;
    }
  } while ((Clock::now() - start).count() < nanoseconds);
  return ready();
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  const unsigned cores = std::thread::hardware_concurrency();
  const bool oversubscribed = cores != 0 && threads > static_cast<int>(cores);
  spin_ns_ = oversubscribed ? kOversubscribedSpinNs : kSpinNs;
  for (int i = 1; i < threads; ++i) {
    try {
      workers_.emplace_back([this, i] { WorkerMain(i); });
    } catch (const std::system_error&) {
      break;  // fewer lanes; threads() tells
    }
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_seq_cst);
  signal_.fetch_add(1, std::memory_order_seq_cst);
  signal_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::ParallelFor(int tasks, TaskRef fn) {
  if (tasks <= 0) return;
  if (tasks == 1 || workers_.empty() || busy_.exchange(true, std::memory_order_acquire)) {
    for (int i = 0; i < tasks; ++i) fn(i);
    return;
  }
  constexpr int kMost = static_cast<int>(kTaskMask);
  for (int first = 0; first < tasks; first += std::min(tasks - first, kMost)) {
    if (first == 0 && tasks <= kMost) {
      RunLoop(tasks, fn);
    } else {
      const auto shifted = [&](int task) { fn(first + task); };
      RunLoop(std::min(tasks - first, kMost), shifted);
    }
  }
  busy_.store(false, std::memory_order_release);
}

void ThreadPool::RunLoop(int tasks, const TaskRef& fn) {
  fn_ = &fn;  // no worker reads fn_ before it has claimed a task of the ticket stored below
  done_.store(0, std::memory_order_relaxed);
  epoch_ = (epoch_ + 1) & 0xffff;
  // seq_cst with parked_: either this sees the worker parked or the worker sees this ticket.
  ticket_.store(epoch_ << 48 | static_cast<uint64_t>(tasks) << kTaskBits,
                std::memory_order_seq_cst);
  if (const int parked = parked_.load(std::memory_order_seq_cst); parked > 0) {
    signal_.fetch_add(1, std::memory_order_seq_cst);
    const int wanted = tasks - 1;
    if (wanted >= parked) {
      signal_.notify_all();
    } else {
      for (int i = 0; i < wanted; ++i) signal_.notify_one();
    }
  }
  if (const int ran = RunTasks(); ran > 0) done_.fetch_add(ran, std::memory_order_acq_rel);
  const auto finished = [&] { return done_.load(std::memory_order_acquire) == tasks; };
  if (SpinFor(spin_ns_, finished)) return;
  done_target_.store(tasks, std::memory_order_seq_cst);
  for (int seen = done_.load(std::memory_order_seq_cst); seen != tasks;
       seen = done_.load(std::memory_order_seq_cst)) {
    done_.wait(seen, std::memory_order_acquire);
  }
  done_target_.store(0, std::memory_order_seq_cst);
}

int ThreadPool::RunTasks() {
  int ran = 0;
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  for (;;) {
    const uint64_t next = ticket & kTaskMask;
    if (next >= ((ticket >> kTaskBits) & kTaskMask)) return ran;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire)) {
      continue;
    }
    // The loop cannot end before this task is reported, so fn_ is the claimed ticket's.
    (*fn_)(static_cast<int>(next));
    ++ran;
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

bool ThreadPool::HasWork() const {
  const uint64_t ticket = ticket_.load(std::memory_order_seq_cst);
  return (ticket & kTaskMask) < ((ticket >> kTaskBits) & kTaskMask);
}

void ThreadPool::ReportDone(int count) {
  const int done = done_.fetch_add(count, std::memory_order_seq_cst) + count;
  if (done == done_target_.load(std::memory_order_seq_cst)) done_.notify_all();
}

void ThreadPool::WorkerMain(int index) {
#if defined(__linux__)
  char name[16];
  std::snprintf(name, sizeof name, "weir-cpu-%d", index);
  pthread_setname_np(pthread_self(), name);
#else
  static_cast<void>(index);
#endif
  const auto wanted = [this] { return HasWork() || stop_.load(std::memory_order_relaxed); };
  while (!stop_.load(std::memory_order_acquire)) {
    if (!SpinFor(spin_ns_, wanted)) {
      const uint32_t signal = signal_.load(std::memory_order_seq_cst);
      parked_.fetch_add(1, std::memory_order_seq_cst);
      if (!HasWork() && !stop_.load(std::memory_order_seq_cst)) {
        signal_.wait(signal, std::memory_order_seq_cst);
      }
      parked_.fetch_sub(1, std::memory_order_seq_cst);
    }
    if (const int ran = RunTasks(); ran > 0) ReportDone(ran);
  }
}

}  // namespace weir::cpu
