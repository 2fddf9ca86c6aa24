// TraceSession: the tracer of a process that serves, and who reads it.
//
// Represents the process's rings, in shared memory so that a recorder of the same user can attach,
// and one thread that either writes a trace file or watches over the recorder outside. Where shared
// memory is refused the rings are private: a file can still be written. Writing that fails (a full
// disk) is reported once on stderr and ends the recording, not the serving. Destroyed after
// everything that emits.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/options.h"
#include "vmm/trace.h"
#include "vmm/trace_file.h"

namespace weir {

class TraceSession {
 public:
  // Null, without an error, when |options| ask for nothing or the process has a tracer already.
  static Result<std::unique_ptr<TraceSession>> Start(const TraceOptions& options);
  ~TraceSession();
  TraceSession(const TraceSession&) = delete;
  TraceSession& operator=(const TraceSession&) = delete;

  Tracer& tracer() { return *tracer_; }

 private:
  TraceSession() = default;
  void Run();
  void WriteBlock();
  void GiveUp(const Status& error);

  std::unique_ptr<Tracer> tracer_;
  std::unique_ptr<TraceFileWriter> file_;  // the thread's, once it runs
  std::vector<TraceRecord> block_;
  uint64_t lost_ = 0;
  uint64_t metadata_version_ = 0;
  Mutex mutex_{LockRank::kTrace};
  std::condition_variable wake_;
  bool stop_ WEIR_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace weir
