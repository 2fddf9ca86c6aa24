// A few threads for work that is too long for an I/O thread: JSON, templates, tokenizing.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "vmm/mutex.h"

namespace weir::server {

class WorkerPool {
 public:
  WorkerPool(unsigned threads, uint32_t max_jobs, uint64_t max_bytes);
  ~WorkerPool();  // drops jobs not begun, joins
  // False when jobs or their |bytes| that wait would exceed the limit, or the pool is stopping.
  bool Post(uint64_t bytes, std::function<void()> job);

 private:
  struct Job {
    uint64_t bytes = 0;
    std::function<void()> run;
  };
  void Run();

  const uint32_t max_jobs_;
  const uint64_t max_bytes_;
  Mutex mutex_{LockRank::kApiRequest};
  std::condition_variable wake_;
  std::deque<Job> jobs_ WEIR_GUARDED_BY(mutex_);
  uint64_t bytes_ WEIR_GUARDED_BY(mutex_) = 0;
  bool stop_ WEIR_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace weir::server
