// Mutex with a rank, its guard and condition variable.
//
// One lock order for the whole program (outer to inner), checked in debug builds: a thread may only
// lock a mutex whose rank is greater than every rank it holds.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "vmm/check.h"
#include "vmm/thread_annotations.h"

namespace weir {

enum class LockRank : uint8_t {
  kApiRequest,    // a request of the API. Held: its connection may be written
  kEngineQueue,   // requests coming in, tokens going out. Held: nothing is waited for
  kIoRing,        // submissions of a file ring. Held: io_uring_submit allowed
  kBackingStore,  // which pieces of a backing store are there. Held: giving them back
  kDriver,        // a driver's tables. Held: no callbacks, no waits for work
  kDriverStream,  // one stream's queue
  kHttpAnswer,    // bytes of one HTTP answer. Held: posting to its connection allowed
  kTrace,         // registry of trace rings (leaf)
};

namespace lock_internal {
inline thread_local uint32_t held_ranks = 0;  // bit per rank
}

class WEIR_CAPABILITY("mutex") Mutex {
 public:
  explicit Mutex(LockRank rank) : rank_(rank) {}
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;
  void Lock() WEIR_ACQUIRE() {
    Enter();
    mutex_.lock();
  }
  void Unlock() WEIR_RELEASE() {
    mutex_.unlock();
    Leave();
  }

 private:
  friend class MutexLock;
  void Enter() {
    WEIR_DCHECK((lock_internal::held_ranks >> static_cast<unsigned>(rank_)) == 0,
                "lock order: a lock of equal or inner rank is already held");
    lock_internal::held_ranks |= 1U << static_cast<unsigned>(rank_);
  }
  void Leave() { lock_internal::held_ranks &= ~(1U << static_cast<unsigned>(rank_)); }

  std::mutex mutex_;
  LockRank rank_;
};

// Holds a Mutex for a scope; the only way to wait on a condition variable.
class WEIR_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) WEIR_ACQUIRE(mutex) : mutex_(mutex) {
    mutex_.Enter();
    lock_ = std::unique_lock<std::mutex>(mutex_.mutex_);
  }
  ~MutexLock() WEIR_RELEASE() {
    lock_.unlock();
    mutex_.Leave();
  }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

  // Releases the mutex while waiting. Callers re-check their condition in a loop.
  void Wait(std::condition_variable& cv) { cv.wait(lock_); }
  // False when |timeout_ns| passed without a notification.
  bool WaitFor(std::condition_variable& cv, uint64_t timeout_ns) {
    return cv.wait_for(lock_, std::chrono::nanoseconds(timeout_ns)) == std::cv_status::no_timeout;
  }

 private:
  Mutex& mutex_;
  std::unique_lock<std::mutex> lock_;
};

}  // namespace weir
