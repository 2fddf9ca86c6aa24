// Gates, copies and steps: no step reads bytes that have not arrived (M3), no mapping changes under
// a copy that writes to it or a step that may read from it (M2), and the accounts of bytes and
// stall (A1, A2).
#include <algorithm>
#include <tuple>

#include "tools/trace/check.h"
#include "tools/trace/schema.h"

namespace weir::trace_tool {

bool InvariantChecker::InRing(const Granule& granule) const {
  return std::any_of(granule.slots.begin(), granule.slots.end(), [this](const SlotKey& slot) {
    return static_cast<int64_t>(slot.first) == meta_.ring_region;
  });
}

// Bytes of |slots| slots have arrived where they are mapped now.
void InvariantChecker::SetHolds(uint64_t region, uint64_t first, uint64_t slots, uint64_t begin_ns,
                                uint64_t end_ns, const char* what) {
  if (begin_ns > end_ns) Fail("M3", std::string(what) + " ends before it begins");
  if (first > UINT64_MAX - slots) {
    Fail("R1", std::string(what) + " of more slots than any region has");
    return;
  }
  uint64_t seen = 0;
  for (auto it = slots_.lower_bound({region, first});
       it != slots_.end() && it->first.first == region && it->first.second < first + slots; ++it) {
    const uint64_t s = it->first.second;
    ++seen;
    Granule& granule = GranuleOf(it->second.granule, 0);
    // Other slots that show the granule may come and go meanwhile.
    if (begin_ns != 0 && it->second.made_ns > begin_ns) {
      Fail("M2", meta_.RegionName(region) + " slot " + std::to_string(s) + " was remapped while " +
                     what + " wrote to it");
      return;
    }
    if (granule.foreign) {
      Fail("O1", std::string(what) + " writes to slot " + std::to_string(s) + " of " +
                     meta_.RegionName(region) + ", which shows the backing copy itself");
      return;
    }
    granule.holds = s;
    unfilled_.erase(s);
    unfilled_behind_.erase(s);
  }
  if (seen < slots && !adopting_) {
    Fail("M3", std::string(what) + " to " + std::to_string(slots) + " slots of " +
                   meta_.RegionName(region) + " from " + std::to_string(first) + " on, of which " +
                   std::to_string(slots - seen) + " are not mapped");
  }
}

void InvariantChecker::OnEvict() {
  const TraceRecord& r = event_.record;
  if (static_cast<int64_t>(r.args[0]) != meta_.weights_region) {
    if (meta_.weights_region >= 0) {
      Fail("O1", "only weights have backing copies; " + meta_.RegionName(r.args[0]) +
                     " cannot be evicted");
    }
    return;
  }
  if (adopting_ || !Recorded(TraceType::kMap)) return;
  // Ends at the first slot that is not mapped, however many are claimed.
  for (uint64_t s = r.args[1]; s - r.args[1] < r.args[2]; ++s) {
    const auto it = slots_.find({r.args[0], s});
    if (it != slots_.end()) {
      const Granule& granule = GranuleOf(it->second.granule, 0);
      if (granule.foreign || InRing(granule)) continue;
    }
    Fail("M3", "slot " + std::to_string(s) + " of the weights is evicted, but no ring granule " +
                   "stands in for it, nor its backing copy");
    return;
  }
}

void InvariantChecker::OnFill() {
  const TraceRecord& r = event_.record;
  if (meta_.granule_bytes != 0 && r.args[3] != r.args[2] * meta_.granule_bytes) {
    Fail("A1", "a fill of " + std::to_string(r.args[2]) + " slots has " +
                   std::to_string(r.args[3]) + " bytes");
  }
  SetHolds(r.args[0], r.args[1], r.args[2], r.args[4], r.args[5], "a fill");
}

void InvariantChecker::OnCopy() {
  const TraceRecord& r = event_.record;
  InForce().copied += r.args[3];
  if (meta_.granule_bytes == 0) return;
  const uint64_t slots = r.args[3] / meta_.granule_bytes;
  if (slots * meta_.granule_bytes != r.args[3] || slots == 0) {
    Fail("A1", "a stripe is whole granules; " + std::to_string(r.args[3]) + " bytes are not");
    return;
  }
  SetHolds(r.args[1], r.args[2], slots, r.args[4], r.args[5], "a copy");
  chunk_slots_[r.args[0]] = {r.args[2], slots};
  if (transition_) transition_->open.Set(r.args[2], slots, true);
}

// --- Rounds of copies ----------------------------------------------------------------------------

// What is away, once a step, and what was copied ahead.
void InvariantChecker::CheckBytes(const Round& round, bool at_end) {
  if (!round.known || !round.clean || !Recorded(TraceType::kCopy)) return;
  if (round.bytes != 0 && round.ended > UINT64_MAX / round.bytes / 2) return;
  const uint64_t least = round.bytes * round.ended;
  // Behind closed gates the first step has its own copies only.
  const bool ahead = !round.behind || round.ended >= 2;
  const uint64_t exact = least + (ahead ? round.ahead_bytes : 0);
  // At the end of the trace steps may be under way, and their copies with them.
  const uint64_t most = least + round.ahead_bytes + round.bytes * std::max<uint64_t>(1, round.open);
  const bool fits = at_end ? round.copied >= least && round.copied <= most : round.copied == exact;
  if (fits) return;
  const TraceEvent now = event_;
  event_ = round.event;
  Fail("A1", "under this placement " + std::to_string(round.ended) + " steps ended and " +
                 std::to_string(round.copied) + " bytes were copied; bytes a step x steps + " +
                 "ahead is " + std::to_string(exact));
  event_ = now;
}

void InvariantChecker::BeginRound(Round round) {
  round.event = event_;
  round.known = true;
  // In a snapshot the copies ahead were made before recording began.
  round.clean = !in_snapshot_;
  rounds_[++round_] = std::move(round);
  if (!in_snapshot_) chunk_slots_.clear();
}

void InvariantChecker::MoveStep(Step& step, uint64_t round) {
  --rounds_[step.round].open;
  step.round = round;
  ++rounds_[round].open;
}

// A round that is no longer in force: its account is due once its steps have ended.
void InvariantChecker::CloseRound(uint64_t round) {
  const auto it = rounds_.find(round);
  if (it == rounds_.end() || round == round_ || it->second.open > 0) return;
  CheckBytes(it->second, /*at_end=*/false);
  rounds_.erase(it);
}

void InvariantChecker::OnPlacement() {
  const TraceRecord& r = event_.record;
  const uint64_t before = round_;
  const bool copied = r.cause != kPlacementInPlace;
  BeginRound({.bytes = copied ? r.args[3] : 0, .stripes = r.args[4], .ahead_bytes = r.args[5]});
  if (!copied && (r.args[4] != 0 || r.args[5] != 0)) {
    Fail("A1", "weights that are read in place are not copied, but there are " +
                   std::to_string(r.args[4]) + " stripes and " + std::to_string(r.args[5]) +
                   " bytes ahead");
  }
  // The step of a transition has ended, and so has its round. Any other one that has begun waits
  // for this round; if there is none of a transition, the one before was given up.
  const bool moved = transition_ && steps_.contains(transition_->step);
  for (auto& [number, step] : steps_) {
    if (moved && number == transition_->step) continue;
    if (!moved) rounds_[step.round].clean = false;
    MoveStep(step, round_);
  }
  CloseRound(before);
  if (meta_.granule_bytes != 0 && r.args[3] != r.args[2] * meta_.granule_bytes) {
    Fail("A1",
         std::to_string(r.args[2]) + " granules are not " + std::to_string(r.args[3]) + " bytes");
  }
}

void InvariantChecker::OnTransition() {
  const TraceRecord& r = event_.record;
  const uint64_t number = r.args[0];
  const std::string name = "step " + std::to_string(number);
  const uint64_t before = round_;
  BeginRound({.behind = true, .bytes = r.args[3], .stripes = r.args[4], .ahead_bytes = r.args[5]});
  if (transition_ && steps_.contains(transition_->step)) CheckRemapped(transition_->step);
  transition_ =
      Transition{.step = number, .moves = r.cause == static_cast<uint8_t>(TransitionKind::kMoves)};
  if (meta_.granule_bytes != 0 && r.args[3] % meta_.granule_bytes != 0) {
    Fail("A1", std::to_string(r.args[3]) + " bytes are not whole granules");
  }
  const auto own = steps_.find(number);
  if (own != steps_.end()) {
    MoveStep(own->second, round_);
  } else if (first_step_ && number >= *first_step_ && Recorded(TraceType::kStepBegin)) {
    Fail("M2", "the gates of " + name + " are held closed, but it is not under way");
  }
  for (const auto& [other, step] : steps_) {
    if (other == number || !Recorded(TraceType::kDeviceStep)) continue;
    const bool ended =
        step.device_end_ns && (*step.device_end_ns <= r.time_ns ||
                               *step.device_end_ns - r.time_ns <= step.device_error_ns);
    if (other < number && ended) continue;
    Fail("M2", "stripes change behind the gates of " + name + " before step " +
                   std::to_string(other) + " has ended on the device");
    break;
  }
  CloseRound(before);
}

// Not copied, and in place when its gate is passed.
void InvariantChecker::OnStripeStays() {
  const TraceRecord& r = event_.record;
  if (!transition_ || !transition_->moves) {
    Fail("M2", "stripe " + std::to_string(r.args[0]) + " is said to stay at home, but none moves");
    return;
  }
  InForce().copied += r.args[3] * meta_.granule_bytes;
  chunk_slots_[r.args[0]] = {r.args[2], r.args[3]};
}

// A slot of the weights is unmapped: nobody may be about to read it.
void InvariantChecker::CheckUnderSteps(uint64_t slot) {
  if (steps_.empty() || !Recorded(TraceType::kTransition)) return;
  const uint64_t youngest = steps_.rbegin()->first;
  const std::string what = "slot " + std::to_string(slot) + " of the weights is unmapped ";
  if (!transition_ || !transition_->moves) {
    Fail("M2", what + "while step " + std::to_string(steps_.begin()->first) +
                   " is being computed, whose gates are not held closed");
  } else if (youngest > transition_->step) {
    Fail("M2", what + "behind the gates of step " + std::to_string(transition_->step) +
                   ", but step " + std::to_string(youngest) + " has begun too");
  } else if (transition_->open.at(slot)) {
    Fail("M2", what + "behind a gate of step " + std::to_string(transition_->step) +
                   " that is open: its stripe has come");
  } else {
    transition_->remapped.insert(slot);
  }
}

// The step of the transition, |step|, has passed all its gates.
void InvariantChecker::CheckRemapped(uint64_t step) {
  const std::set<uint64_t>& remapped = transition_->remapped;
  if (remapped.empty() || !Recorded(TraceType::kGatePass) || !Recorded(TraceType::kCopy)) return;
  Fail("M2", "slot " + std::to_string(*remapped.begin()) + " of the weights was remapped while " +
                 "step " + std::to_string(step) + " was under way, behind none of its gates");
}

// --- Gates and steps -----------------------------------------------------------------------------

void InvariantChecker::OnArrive() {
  ++arrived_[{event_.record.args[0], event_.record.args[2]}];
}

void InvariantChecker::OnPass() {
  const TraceRecord& r = event_.record;
  ++passes_;
  const std::string gate = meta_.GateName(r.args[0]);
  const auto arrival = arrived_.find({r.args[0], r.args[2]});
  if (arrival == arrived_.end()) {
    if (step_seen_ && Recorded(TraceType::kGateArrive)) {
      Fail("M3", gate + " is passed, but nobody arrived there");
    }
  } else if (--arrival->second == 0) {
    arrived_.erase(arrival);
  }
  if (const auto step = steps_.find(r.args[1]); step != steps_.end()) ++step->second.passes;
  if (!Recorded(TraceType::kCopy) || !Recorded(TraceType::kMap)) return;
  const auto chunk = chunk_slots_.find(r.args[2]);
  if (chunk == chunk_slots_.end()) {
    if (InForce().clean) {
      Fail("M3", gate + " is passed, but its stripe (chunk " + std::to_string(r.args[2]) +
                     ") was not copied under the placement in force");
    }
    return;
  }
  const auto [first, count] = chunk->second;
  if (transition_ && transition_->step == r.args[1]) {
    std::set<uint64_t>& remapped = transition_->remapped;
    const uint64_t end = first > UINT64_MAX - count ? UINT64_MAX : first + count;
    remapped.erase(remapped.lower_bound(first), remapped.lower_bound(end));
  }
  const auto region = static_cast<uint64_t>(meta_.weights_region);
  uint64_t seen = 0;
  for (auto it = slots_.lower_bound({region, first});
       it != slots_.end() && it->first.first == region && it->first.second < first + count; ++it) {
    const uint64_t s = it->first.second;
    ++seen;
    const Granule& granule = GranuleOf(it->second.granule, 0);
    if (granule.holds == s || granule.holds == kAdoptedBytes) continue;
    Fail("M3", gate + " is passed before its stripe arrived: slot " + std::to_string(s) +
                   (granule.holds == kNoBytes
                        ? " holds nothing"
                        : " holds the bytes of slot " + std::to_string(granule.holds)));
    return;
  }
  if (seen < count && !adopting_) {
    Fail("M3", gate + " is passed, but " + std::to_string(count - seen) + " slots of its stripe " +
                   "are not mapped");
  }
}

void InvariantChecker::OnFault() {
  const TraceRecord& r = event_.record;
  fault_ns_total_ += r.args[3];
  if (const auto step = steps_.find(r.args[1]); step != steps_.end()) {
    step->second.fault_ns += r.args[3];
  }
  if (r.cause == static_cast<uint8_t>(FaultCause::kRepair)) InForce().clean = false;
}

void InvariantChecker::OnStepBegin() {
  const TraceRecord& r = event_.record;
  step_seen_ = true;
  if (!first_step_) first_step_ = r.args[0];
  const bool again = steps_.contains(r.args[0]);
  if (again) {
    Fail("M3", "step " + std::to_string(r.args[0]) + " begins a second time");
  } else if (steps_.size() >= meta_.steps_under_way) {
    Fail("M3", "a step begins inside a step, and no more than " +
                   std::to_string(meta_.steps_under_way) + " may be under way");
  }
  Step& step = steps_[r.args[0]];
  if (again) --rounds_[step.round].open;
  step = Step{.begin_ns = r.time_ns, .round = round_};
  ++InForce().open;
  if (unfilled_.empty() || !Recorded(TraceType::kFill)) return;
  Fail("M3", "a step begins, but " + std::to_string(unfilled_.size()) +
                 " weight slots that came home have not been filled, first slot " +
                 std::to_string(*unfilled_.begin()));
  unfilled_.clear();
}

// Causes come before effects, and a device runs one step at a time.
void InvariantChecker::OnDeviceStep() {
  const TraceRecord& r = event_.record;
  const auto [number, begin, end, error] =
      std::tuple(r.args[0], r.args[1], r.args[2], std::min(r.args[3], uint64_t{1} << 40));
  const std::string name = "step " + std::to_string(number);
  if (begin > end) Fail("A3", name + " ends on the device before it begins there");
  if (end > r.time_ns && end - r.time_ns > error) {
    Fail("A3", name + " ends on the device after the host knew of it");
  }
  const auto step = steps_.find(number);
  if (step != steps_.end() && begin < step->second.begin_ns &&
      step->second.begin_ns - begin > error) {
    Fail("A3", name + " runs on the device before the host began it");
  }
  if (begin < device_end_ns_ && device_end_ns_ - begin > error + device_end_error_ns_) {
    Fail("A3", name + " begins on the device before the step ahead of it has ended there");
  }
  if (step != steps_.end()) {
    step->second.device_end_ns = end;
    step->second.device_error_ns = error;
  }
  device_end_ns_ = std::max(device_end_ns_, end);
  device_end_error_ns_ = error;
}

void InvariantChecker::OnStepEnd(bool failed) {
  const TraceRecord& r = event_.record;
  const uint64_t number = r.args[0];
  const auto it = steps_.find(number);
  const bool moved = transition_ && transition_->step == number;
  if (moved && !failed && it != steps_.end()) CheckRemapped(number);
  if (moved) transition_.reset();
  if (it == steps_.end()) {
    // Of a step that began before the recording only the end is seen.
    if (first_step_ && number >= *first_step_ && Recorded(TraceType::kStepBegin)) {
      Fail("M3", "the end of step " + std::to_string(number) + ", which did not begin");
    }
    step_seen_ = true;
    InForce().clean = false;
    return;
  }
  const Step step = it->second;
  steps_.erase(it);
  Round& round = rounds_[step.round];
  --round.open;
  if (failed) {
    round.clean = InForce().clean = false;
    CloseRound(step.round);
    if (steps_.empty()) arrived_.clear();
    return;
  }
  ++steps_ended_;
  ++round.ended;
  if (round.known && Recorded(TraceType::kGatePass) && step.passes != round.stripes) {
    Fail("M3", "step " + std::to_string(number) + " ended after " + std::to_string(step.passes) +
                   " of its " + std::to_string(round.stripes) + " armed gates");
  }
  CloseRound(step.round);
  if (!unfilled_behind_.empty() && number >= unfilled_until_ && Recorded(TraceType::kCopy)) {
    Fail("M3", "step " + std::to_string(number) + " ended, but slot " +
                   std::to_string(*unfilled_behind_.begin()) +
                   " of the weights, which came home behind its gates, was not filled");
    unfilled_behind_.clear();
  }
  // The engine's counter against the faults seen.
  const uint64_t stall = r.args[4];
  const uint64_t apart = std::max(stall, step.fault_ns) - std::min(stall, step.fault_ns);
  if (Recorded(TraceType::kFaultMajor) && apart > stall / 100 + 1000) {
    Fail("A2", "step " + std::to_string(number) + " counts " + std::to_string(stall) +
                   " ns of stall; its faults waited " + std::to_string(step.fault_ns) + " ns");
  }
}

}  // namespace weir::trace_tool
