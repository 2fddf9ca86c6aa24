// LinkWatch: whether the backing copy of the weights, and the link to it, can be relied on.
//
// Represents what is known of the link while serving, as a state machine over steps, failures and
// probes; it moves nothing and reads no clock. The engine acts on it (engine/link.cc).
//
//   good --8 steps stood too long--> slow            nothing is forced: the policy sees the speed
//   good, slow --copies failed, weights came home--> held    they stay home
//   any --copies failed, weights cannot come home--> lost    nothing runs
//   slow, held, lost --a probe is as fast as it should be (lost: succeeds at all)--> good
//
// Out of good a probe is due when a back-off has passed: 1 s, doubled by each probe that fails and
// by each trouble that comes within a minute of the one before, up to 60 s. Engine thread only.
#pragma once

#include <cstdint>
#include <string>

#include "vmm/status.h"
#include "vmm/trace_format.h"
#include "vmm/types.h"

namespace weir {

enum class LinkState : uint8_t { kGood, kSlow, kHeld, kLost };
std::string_view LinkStateName(LinkState state);

struct LinkReport {
  LinkState state = LinkState::kGood;
  Tier tier = Tier::kHost;  // of the backing copy
  // Times it came to that, since start.
  uint64_t slow = 0;
  uint64_t held = 0;
  uint64_t lost = 0;
  uint64_t recovered = 0;
  uint64_t reread = 0;  // of |held|: weights had to be read anew, for no copy could be read
  // Of the last change of state, except |backoff_ns|: until the probe after the last one.
  std::string cause;  // one clause; of a recovery: what it recovered from
  double measured_bytes_per_ns = 0;
  double expected_bytes_per_ns = 0;
  TimeNs backoff_ns = 0;

  uint64_t troubles() const { return slow + held + lost; }
};

// A step for which weights were streamed, and in which none moved.
struct LinkSample {
  uint64_t bytes = 0;
  uint64_t copies = 0;
  TimeNs stall_ns = 0;
  TimeNs step_ns = 0;
};

class LinkWatch {
 public:
  // What the link gives, measured while nothing else ran; 0: not known, steps are not judged.
  void SetExpected(Tier tier, double bytes_per_ns);
  // What a probe gives then; 0: not known, a probe that succeeds is good enough.
  void SetExpectedOfProbe(double bytes_per_ns) { expected_of_probe_ = bytes_per_ns; }

  // |learnt|: what the cost model has for the link. True: the link has just turned out to be slow.
  bool ObserveStep(const LinkSample& sample, double learnt, TimeNs now);
  // Copies failed for |cause|; every weight is home, |reread_bytes| of them from where they were
  // loaded from.
  void Held(const Status& cause, uint64_t reread_bytes, TimeNs now);
  // Likewise, but weights are away and cannot come home.
  void Lost(const Status& cause, TimeNs now);

  bool ProbeDue(TimeNs now) const { return !good() && now >= retry_at_; }
  // True: the link can be relied on again.
  bool OnProbe(const Result<double>& bytes_per_ns, TimeNs now);

  bool good() const { return report_.state == LinkState::kGood; }
  LinkState state() const { return report_.state; }
  // What the cost model had for the link before it became slow.
  double learnt_before() const { return learnt_before_; }
  const LinkReport& report() const { return report_; }

 private:
  void Enter(LinkState state, std::string cause, TimeNs now);
  void Double();
  void Trace(LinkTrouble cause) const;

  LinkReport report_;
  double expected_of_probe_ = 0;
  uint32_t slow_in_a_row_ = 0;
  double slow_bytes_ = 0, slow_ns_ = 0;  // of those
  double learnt_before_ = 0;
  TimeNs retry_at_ = 0;
  TimeNs good_since_ = 0;
};

}  // namespace weir
