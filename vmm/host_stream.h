// HostStream: an in-order queue of work and the thread that does it.
//
// States: running -> stopping (Stop was called: runs what is queued, cancels waits that are not
// satisfied) -> stopped (thread joined). A stopped stream still answers for its events.
// Operations are numbered from 1; an event is "all operations up to this number". The first failure
// is kept with its number: events from there on carry it, and no later operation has an effect.
// Submit and Stop: engine thread. The rest: any thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <variant>

#include "vmm/host_counters.h"
#include "vmm/mutex.h"
#include "vmm/types.h"

namespace weir {

class HostStream {
 public:
  struct CopyOp {
    std::byte* dst;
    const std::byte* src;
    uint64_t bytes;
  };
  struct FillOp {
    std::byte* dst;
    std::byte value;
    uint64_t bytes;
  };
  struct HostFunctionOp {
    std::function<Status()> fn;
  };
  struct StreamWaitOp {
    std::shared_ptr<HostStream> other;
    uint64_t number;
  };
  struct WriteCounterOp {
    HostCounters::Cell* cell;
    uint64_t value;
  };
  struct WaitCounterOp {
    HostCounters::Cell* cell;
    uint64_t at_least;
  };
  using Op =
      std::variant<CopyOp, FillOp, HostFunctionOp, StreamWaitOp, WriteCounterOp, WaitCounterOp>;

  explicit HostStream(std::string name);
  ~HostStream();
  HostStream(const HostStream&) = delete;
  HostStream& operator=(const HostStream&) = delete;

  void Submit(Op op) WEIR_EXCLUDES(mutex_);
  uint64_t submitted() const WEIR_EXCLUDES(mutex_);
  // Whether operations up to |number| have completed; the error if one of them failed.
  Result<bool> IsComplete(uint64_t number) WEIR_EXCLUDES(mutex_);
  // Waits for that. kCancelled once |*cancelled| is set and Poke was called.
  Status WaitFor(uint64_t number, const std::atomic<bool>* cancelled) WEIR_EXCLUDES(mutex_);

  // Cancels unsatisfied waits from now on, does not wait.
  void Cancel() WEIR_EXCLUDES(mutex_);
  // Cancel, then waits for the thread to end.
  void Stop() WEIR_EXCLUDES(mutex_);
  // Engine thread.
  bool stopped() const { return !thread_.joinable(); }

 private:
  void Run() WEIR_EXCLUDES(mutex_);
  Status Execute(Op& op) WEIR_EXCLUDES(mutex_);
  Status WaitForOther(const StreamWaitOp& op) WEIR_EXCLUDES(mutex_);
  // Makes everybody who waits for this stream's events look at their flag.
  void Poke() WEIR_EXCLUDES(mutex_);
  Status ErrorAt(uint64_t number) const WEIR_REQUIRES(mutex_);

  const std::string name_;
  std::atomic<bool> cancelled_{false};
  std::atomic<HostCounters::Cell*> blocked_on_{nullptr};
  std::atomic<uint64_t> completed_{0};  // written under mutex_

  mutable Mutex mutex_{LockRank::kDriverStream};
  std::condition_variable work_;
  std::condition_variable done_;
  std::deque<Op> queue_ WEIR_GUARDED_BY(mutex_);
  uint64_t submitted_ WEIR_GUARDED_BY(mutex_) = 0;
  bool stopping_ WEIR_GUARDED_BY(mutex_) = false;
  std::shared_ptr<HostStream> blocked_stream_ WEIR_GUARDED_BY(mutex_);
  Status error_ WEIR_GUARDED_BY(mutex_);
  uint64_t error_number_ WEIR_GUARDED_BY(mutex_) = 0;
  std::thread thread_;  // last: starts when everything above exists
};

}  // namespace weir
