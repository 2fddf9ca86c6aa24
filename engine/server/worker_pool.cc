#include "engine/server/worker_pool.h"

#include <utility>

#include <pthread.h>

namespace weir::server {

WorkerPool::WorkerPool(unsigned threads, uint32_t max_jobs, uint64_t max_bytes)
    : max_jobs_(max_jobs), max_bytes_(max_bytes) {
  for (unsigned i = 0; i < threads; ++i) {
    threads_.emplace_back([this] {
      pthread_setname_np(pthread_self(), "weir-api");
      Run();
    });
  }
}

WorkerPool::~WorkerPool() {
  std::deque<Job> dropped;  // destroyed without the lock: their requests are answered then
  {
    MutexLock lock(mutex_);
    stop_ = true;
    dropped = std::exchange(jobs_, {});
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool WorkerPool::Post(uint64_t bytes, std::function<void()> job) {
  {
    MutexLock lock(mutex_);
    if (stop_ || jobs_.size() >= max_jobs_ || bytes > max_bytes_ - bytes_) return false;
    bytes_ += bytes;
    jobs_.push_back({bytes, std::move(job)});
  }
  wake_.notify_one();
  return true;
}

void WorkerPool::Run() {
  for (;;) {
    Job job;
    {
      MutexLock lock(mutex_);
      while (jobs_.empty() && !stop_) lock.Wait(wake_);
      if (stop_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job.run();
    job.run = nullptr;
    MutexLock lock(mutex_);
    bytes_ -= job.bytes;
  }
}

}  // namespace weir::server
