#include "bench/vmm/time_limit.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace weir::bench {

TimeLimit::TimeLimit(TimeNs limit_ns, const char* what)
    : thread_([this, limit_ns, what] {
        std::unique_lock lock(mutex_);
        if (ended_.wait_for(lock, std::chrono::nanoseconds(limit_ns), [this] { return end_; })) {
          return;
        }
        std::fprintf(stderr, "%s: not done after %.0f s; a call of the driver may hang\n", what,
                     static_cast<double>(limit_ns) / 1e9);
        std::fflush(nullptr);
        std::_Exit(3);
      }) {}

TimeLimit::~TimeLimit() {
  {
    const std::lock_guard lock(mutex_);
    end_ = true;
  }
  ended_.notify_one();
  thread_.join();
}

}  // namespace weir::bench
