// EngineLoop: what the engine thread does, step after step.
//
// Represents the requests the engine knows and how far each is. Per turn: take what the mailbox
// has, end what is to be ended, submit what there is room for, step, give outputs to their sinks
// (no lock held), settle. When nothing runs it lets the policy bring weights home, step by step,
// and then sleeps. Engine thread only.
#pragma once

#include <string>
#include <unordered_map>

#include "engine/server/mailbox.h"
#include "engine/server/metrics.h"
#include "engine/server/step_engine.h"

namespace weir::server {

class EngineLoop {
 public:
  // |metrics| may be null. All outlive the loop.
  EngineLoop(StepEngine& engine, Mailbox& mailbox, const AsyncOptions& options)
      : engine_(engine), mailbox_(mailbox), options_(options) {}

  // Until the mailbox is stopped; every request known has then had its last output.
  void Run();

 private:
  Status Turn(const Intake& intake);
  Status Step();
  void EndRunning(const Intake& intake);
  void Submit(RequestEntry entry);
  void Deliver(GenerationOutput output, TimeNs now);
  // The last output of a request the engine does not know.
  void EndUnknown(RequestEntry entry, FinishReason reason, Status error);
  void Count(RequestEntry& entry, const GenerationOutput& output, TimeNs now);
  void Ended(const RequestEntry& entry, FinishReason reason, TimeNs now);
  Status CheckProgress();
  void Settle();
  void FailAll(const Status& failure);
  Room RoomLeft() const;
  TimeNs WaitTime() const;

  StepEngine& engine_;
  Mailbox& mailbox_;
  const AsyncOptions& options_;
  std::unordered_map<RequestId, RequestEntry> running_;   // known to the engine
  std::unordered_map<uint64_t, RequestId> id_of_ticket_;  // of those
  Settlement settlement_;                                 // of the turn under way
  uint64_t iteration_tokens_ = 0;                         // likewise
  bool was_busy_ = true;       // the next idle turn is the first one: check for leaks
  uint32_t idle_turns_ = 0;    // until the thread sleeps for good
  uint64_t border_moves_ = 0;  // at the last idle turn
  uint64_t steps_ = 0;
  uint64_t failed_before_ = 0;  // failed steps when the last one succeeded, but for want of weights
  bool link_lost_ = false;      // nothing can run, and the engine looks whether it can again
  std::string last_error_;      // of a request that failed
};

}  // namespace weir::server
