// Mailbox: what passes between the threads that have requests and the engine thread.
//
// Represents the bounded, fair queue in front of the engine, the places in it that are reserved,
// the wishes (cancel, drain, abort) and the health everybody sees. One mutex, held for bookkeeping
// only: no sink, engine or tokenizer is called under it. Life of a request:
//   Reserve -> Put -> waiting -> Take().feed or Take().ended -> (engine thread) -> Settle
// A reservation that is not used is given back with Unreserve. Held by shared_ptr, because an
// Admission may outlive its engine. Thread-safe; Take, Settle and Fail are the engine thread's.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/server/async_engine.h"
#include "engine/server/step_engine.h"
#include "engine/server/tenant_queue.h"
#include "vmm/mutex.h"

namespace weir::server {

// Represents one request from Put to its last output.
struct RequestEntry {
  uint64_t ticket = 0;
  std::string tenant;
  GenerationRequest request;
  std::shared_ptr<OutputSink> sink;
  RequestTimes times;
  TimeNs deadline_ns = 0;  // 0: none
  uint32_t prompt_tokens = 0;
  uint32_t max_tokens = 0;  // as asked
  QueuedDemand demand;      // of this one
  uint32_t output_tokens = 0;
  Status end;  // why the server ended it; ok: it ended by itself, or its client left
};

// Room in front of the engine, as its own queue stands.
struct Room {
  uint32_t sequences = 0;  // until max_num_seqs run or wait in it
  uint64_t tokens = 0;     // until a whole step's tokens wait in it
};

struct Intake {
  std::vector<RequestEntry> feed;                        // to be submitted, in order
  std::vector<RequestEntry> ended;                       // ended while waiting: cancelled, expired
  std::vector<std::pair<uint64_t, Status>> end_running;  // tickets; ok: the client left
  bool end_all = false;                                  // aborted: all that runs
  bool stop = false;
  QueuedDemand queued;  // what still waits
};

// What one step of the engine thread has changed.
struct Settlement {
  std::vector<std::pair<std::string, uint64_t>> output_tokens;  // by tenant
  std::vector<std::pair<uint64_t, TimeNs>> ended;               // ticket and deadline
  AsyncStats stats;
};

class Mailbox {
 public:
  Mailbox(const AsyncOptions& options, const StepLimits& limits)
      : options_(options), limits_(limits) {}

  // Errors as AsyncEngine::Admit.
  Status Reserve(const std::string& tenant) WEIR_EXCLUDES(mutex_);
  void Unreserve(const std::string& tenant) WEIR_EXCLUDES(mutex_);
  // Uses up one reservation of |entry|.tenant, unless there is an error. Returns the ticket.
  Result<uint64_t> Put(RequestEntry entry) WEIR_EXCLUDES(mutex_);
  void Cancel(uint64_t ticket) WEIR_EXCLUDES(mutex_);
  bool Drain(TimeNs timeout_ns) WEIR_EXCLUDES(mutex_);
  void Abort() WEIR_EXCLUDES(mutex_);
  // Aborts, and ends the engine thread's loop.
  void Stop() WEIR_EXCLUDES(mutex_);
  AsyncStats stats() const WEIR_EXCLUDES(mutex_);

  // What is to be done now. Waits for something up to |wait_ns| (kForever: as long as it takes).
  static constexpr TimeNs kForever = static_cast<TimeNs>(-1);
  Intake Take(Room room, TimeNs wait_ns) WEIR_EXCLUDES(mutex_);
  void Settle(Settlement settlement) WEIR_EXCLUDES(mutex_);
  // From now on everything is refused. Returns what waited; the caller ends and settles it.
  std::vector<RequestEntry> Fail(Status failure) WEIR_EXCLUDES(mutex_);
  void AwaitStop() WEIR_EXCLUDES(mutex_);

 private:
  bool HasWork() const WEIR_REQUIRES(mutex_);
  void BeginDrain() WEIR_REQUIRES(mutex_);
  void CutShort() WEIR_REQUIRES(mutex_);
  // What waits under |ticket|, taken out; nothing if it does not wait.
  bool TakeWaiting(uint64_t ticket, RequestEntry* entry) WEIR_REQUIRES(mutex_);
  RequestEntry Release(uint64_t ticket) WEIR_REQUIRES(mutex_);
  void EndOverdue(TimeNs now, Intake* intake) WEIR_REQUIRES(mutex_);
  void Feed(Room room, Intake* intake) WEIR_REQUIRES(mutex_);
  Status CheckOpen() const WEIR_REQUIRES(mutex_);

  const AsyncOptions options_;
  const StepLimits limits_;
  mutable Mutex mutex_{LockRank::kEngineQueue};
  std::condition_variable wake_;     // the engine thread: there is work
  std::condition_variable settled_;  // Drain: something ended
  TenantQueue queue_ WEIR_GUARDED_BY(mutex_);
  std::unordered_map<uint64_t, RequestEntry> waiting_ WEIR_GUARDED_BY(mutex_);  // those of queue_
  std::set<std::pair<TimeNs, uint64_t>> deadlines_ WEIR_GUARDED_BY(mutex_);  // waiting and running
  std::vector<uint64_t> cancels_ WEIR_GUARDED_BY(mutex_);
  uint32_t reserved_ WEIR_GUARDED_BY(mutex_) = 0;
  std::unordered_map<std::string, uint32_t> reserved_of_ WEIR_GUARDED_BY(mutex_);
  QueuedDemand queued_ WEIR_GUARDED_BY(mutex_);
  uint32_t unfinished_ WEIR_GUARDED_BY(mutex_) = 0;
  uint64_t next_ticket_ WEIR_GUARDED_BY(mutex_) = 1;
  Health health_ WEIR_GUARDED_BY(mutex_) = Health::kReady;
  Status failure_ WEIR_GUARDED_BY(mutex_);
  bool aborted_ WEIR_GUARDED_BY(mutex_) = false;
  bool cut_short_ WEIR_GUARDED_BY(mutex_) = false;  // aborted while there was something to do
  bool stopped_ WEIR_GUARDED_BY(mutex_) = false;
  AsyncStats stats_ WEIR_GUARDED_BY(mutex_);
};

}  // namespace weir::server
