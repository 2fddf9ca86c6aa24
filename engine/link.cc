// EngineCore's part when the link to the backing copy, or the copy itself, fails: weights come home
// from what can still be read, stay there for a while, and the link is tried again. What is known
// of the link is LinkWatch's.
#include <algorithm>
#include <utility>
#include <vector>

#include "engine/core.h"

namespace weir {
namespace {

// While weights leave home again and again, or are read in place, a probe that was good holds for
// so long.
constexpr TimeNs kProbeHoldsNs = 1'000'000'000;
// At a probe or a homecoming, before its error is believed.
constexpr int kAttempts = 3;

}  // namespace

// Between steps; false: nothing can run. An error: the device is gone, and waiting is in vain.
Result<bool> EngineCore::WatchLink() {
  // What is read in place waits at no gate and is never copied: steps do not show that it fails.
  if (weights_missing_.ok() && link_.good() && reads_in_place()) weights_missing_ = LinkReads();
  if (weights_missing_.ok() && RereadBytes() > 0) {
    weights_missing_ = DriverError("the copy could not be read when weights came home");
  }
  if (!weights_missing_.ok()) {
    WEIR_TRY(driver_.device_lost());
    Drain();
    const Status why = std::exchange(weights_missing_, OkStatus());
    const Status home = BringWeightsHome();
    if (home.ok()) {
      HoldHome(why);
    } else {
      LoseLink(why, home);
    }
  } else if (link_.ProbeDue(driver_.Now())) {
    WEIR_TRY(driver_.device_lost());
    RetryLink();
  }
  return link_.state() != LinkState::kLost;
}

void EngineCore::RetryLink() {
  if (link_.state() == LinkState::kLost && BringWeightsHome().ok()) {
    HoldHome(DriverError("they could be read again, and weights are home"));
    return;
  }
  const bool slow = link_.state() == LinkState::kSlow;
  const Result<double> rate = memory_.ProbeLink();
  if (rate.status().code() == StatusCode::kShouldWait) return;
  if (link_.OnProbe(rate, driver_.Now()) && slow) cost_.SetLinkSpeed(link_.learnt_before());
}

// No step is under way. KV shrinks for it, and what runs is preempted as far as that takes.
Status EngineCore::BringWeightsHome() {
  border_goal_.reset();
  const auto room = memory_.KvBlocksAt({});
  if (!room || *room == 0) return NoMemory("the budget does not hold all weights and any KV");
  for (int attempt = 1;;) {
    Status home = MoveBorder({});
    if (home.ok()) return home;
    if (home.code() == StatusCode::kNoMemory && scheduler_.running() > 0) {
      scheduler_.PreemptLast();
    } else if (attempt++ == kAttempts) {
      return home;
    }
  }
}

// Every weight is home.
void EngineCore::HoldHome(const Status& why) {
  link_.Held(why, RereadBytes(), driver_.Now());
  reread_told_ += RereadBytes();
}

// That nobody has been told of.
uint64_t EngineCore::RereadBytes() const {
  return memory_.weights().stats().bytes_from_source - reread_told_;
}

// Every request fails, and those that come, until the backing copy can be read again.
void EngineCore::LoseLink(const Status& why, const Status& home) {
  link_.Lost(DriverError(why.message() + "; they cannot come home: " + home.message()),
             driver_.Now());
  std::vector<RequestId> ids;
  for (const auto& [id, sequence] : sequences_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  for (const RequestId id : ids) {
    Retire(*sequences_.at(id), FinishReason::kError, BadState(link_.report().cause));
  }
}

// Why the backing copy cannot be read. Ok where there is nowhere to read to: every block is used.
Status EngineCore::LinkReads() {
  const TimeNs now = driver_.Now();
  if (probed_ns_ != 0 && now - probed_ns_ < kProbeHoldsNs) return OkStatus();
  Status failed;
  for (int i = 0; i < kAttempts; ++i) {
    const Result<double> rate = memory_.ProbeLink();
    if (rate.ok()) probed_ns_ = now;
    if (rate.ok() || rate.status().code() == StatusCode::kShouldWait) return OkStatus();
    failed = rate.status();
  }
  return failed;
}

// Weights are about to leave home: their bytes will then be nowhere but in the backing copy.
bool EngineCore::MayLeaveHome() {
  if (link_.state() == LinkState::kHeld) return false;
  const Status failed = LinkReads();
  if (!failed.ok()) HoldHome(failed);
  return failed.ok();
}

bool EngineCore::reads_in_place() const {
  const EvictionTarget& away = memory_.weights().plan().target();
  return away.placement == Placement::kInPlace && !away.empty();
}

// A step ended as it should. One in which weights moved stood for other reasons too.
void EngineCore::ObserveLink(uint64_t bytes, TimeNs stall_ns, TimeNs step_ns) {
  const WeightPager& weights = memory_.weights();
  const bool moved =
      std::exchange(link_transitions_, weights.stats().transitions) != weights.stats().transitions;
  if (moved || border_under_way() || !weights.settled()) return;
  const LinkSample sample{.bytes = bytes,
                          .copies = weights.plan().chunks().size(),
                          .stall_ns = stall_ns,
                          .step_ns = step_ns};
  if (link_.ObserveStep(sample, cost_.cost().link_bytes_per_ns, driver_.Now())) {
    // What many steps have shown need not be learnt one by one: the policy backs off now.
    cost_.SetLinkSpeed(link_.report().measured_bytes_per_ns);
  }
}

}  // namespace weir
