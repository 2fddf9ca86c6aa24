// TimeLimit: ends the process when a section takes too long, with its name: a call into a driver
// that does not return can be ended in no other way.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

#include "vmm/types.h"

namespace weir::bench {

class TimeLimit {
 public:
  // |what| outlives the object.
  TimeLimit(TimeNs limit_ns, const char* what);
  ~TimeLimit();
  TimeLimit(const TimeLimit&) = delete;
  TimeLimit& operator=(const TimeLimit&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  bool end_ = false;
  std::thread thread_;
};

}  // namespace weir::bench
