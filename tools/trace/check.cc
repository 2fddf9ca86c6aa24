// Granules, mappings and plans; check_paging.cc has gates and copies, check_kv.cc the blocks.
#include "tools/trace/check.h"

#include <algorithm>

#include "tools/trace/schema.h"

namespace weir::trace_tool {
namespace {

constexpr size_t kMostNotes = 50;
constexpr uint64_t kAnyState = UINT64_MAX;  // adopted: not known yet

bool LegalTransition(uint64_t from, uint64_t to) {
  switch (from) {
    case kStateFree: return to == kStatePinned;
    case kStatePinned: return to == kStateMapped || to == kStateFree || to == kStateRetiring;
    case kStateMapped: return to == kStatePinned;
    case kStateRetiring: return to == kStateFree;
    default: return false;
  }
}

std::string GranuleText(uint64_t id) {
  return "granule " + std::to_string(id);
}

}  // namespace

InvariantChecker::InvariantChecker(const TraceMeta& meta, uint64_t mask)
    : meta_(meta), mask_(mask == 0 ? ~uint64_t{0} : mask) {
  const auto need = [this](const char* rules, std::initializer_list<TraceType> types) {
    for (const TraceType type : types) {
      if (Recorded(type)) continue;
      Note(std::string(rules) + " not checked: " + std::string(TraceTypeName(type)) +
           " was not recorded");
      return;
    }
  };
  need("G1, G2", {TraceType::kGranuleState, TraceType::kCreate});
  need("M1, T1, T2",
       {TraceType::kMap, TraceType::kUnmap, TraceType::kPlanBegin, TraceType::kPlanCommit});
  need("M2 and A1 of moves while steps run",
       {TraceType::kTransition, TraceType::kDeviceStep, TraceType::kGatePass, TraceType::kCopy});
  need("M3", {TraceType::kCopy, TraceType::kGatePass, TraceType::kMap, TraceType::kFill});
  need("K1, K3", {TraceType::kKvAlloc, TraceType::kKvFree, TraceType::kKvCapacity,
                  TraceType::kKvEvict, TraceType::kKvHit, TraceType::kKvMove});
}

bool InvariantChecker::Recorded(TraceType type) const {
  return (mask_ >> static_cast<unsigned>(type) & 1) != 0;
}

void InvariantChecker::Fail(const char* rule, const std::string& what) {
  ++violation_count_;
  ++counts_[rule];
  if (violations_.size() < kMostKept) violations_.push_back({rule, what, event_});
}

void InvariantChecker::Note(const std::string& line) {
  if (notes_.size() < kMostNotes) notes_.push_back(line);
}

// What is known is forgotten: from here on things are taken as they come.
void InvariantChecker::AdoptAll(const std::string& why) {
  Note(why);
  adopting_ = kv_adopting_ = true;
  memory_seen_ = plan_seen_ = step_seen_ = false;
  granules_.clear();
  slots_.clear();
  plan_.reset();
  unfilled_.clear();
  unfilled_behind_.clear();
  rounds_.clear();
  ++round_;
  transition_.reset();
  chunk_slots_.clear();
  steps_.clear();
  first_step_.reset();
  arrived_.clear();
  blocks_ = RangeMap<Block>(Block::kUnknown);
  loans_.clear();
  committed_.reset();
}

void InvariantChecker::Add(const TraceEvent& event) {
  event_ = event;
  const TraceRecord& r = event.record;
  switch (static_cast<TraceType>(r.type)) {
    case TraceType::kMap: OnMap(); break;
    case TraceType::kUnmap: OnUnmap(); break;
    case TraceType::kCreate: OnCreate(); break;
    case TraceType::kRelease: OnRelease(); break;
    case TraceType::kPlanBegin: OnPlanBegin(); break;
    case TraceType::kPlanCommit: OnPlanEnd(false); break;
    case TraceType::kPlanRollback: OnPlanEnd(true); break;
    case TraceType::kGranuleState: OnState(); break;
    case TraceType::kOwner: OnOwner(); break;
    case TraceType::kEvict: OnEvict(); break;
    case TraceType::kFill: OnFill(); break;
    case TraceType::kCopy: OnCopy(); break;
    case TraceType::kPlacement: OnPlacement(); break;
    case TraceType::kTransition: OnTransition(); break;
    case TraceType::kStripeStays: OnStripeStays(); break;
    case TraceType::kCopyFailed: InForce().clean = false; break;
    case TraceType::kGateArrive: OnArrive(); break;
    case TraceType::kGatePass: OnPass(); break;
    case TraceType::kFaultMajor:
    case TraceType::kFaultMinor: OnFault(); break;
    case TraceType::kStepBegin: OnStepBegin(); break;
    case TraceType::kStepEnd: OnStepEnd(false); break;
    case TraceType::kStepFailed: OnStepEnd(true); break;
    case TraceType::kDeviceStep: OnDeviceStep(); break;
    case TraceType::kKvAlloc: OnKvAlloc(); break;
    case TraceType::kKvFree: OnKvFree(); break;
    case TraceType::kKvEvict: OnKvEvict(); break;
    case TraceType::kKvHit: OnKvHit(); break;
    case TraceType::kKvMove: OnKvMove(); break;
    case TraceType::kKvCapacity: OnKvCapacity(); break;
    case TraceType::kQueue: OnQueue(); break;
    case TraceType::kLoan: OnLoan(); break;
    case TraceType::kCommitment: OnCommitment(); break;
    case TraceType::kDrop: OnGap(r.args[0]); break;
    case TraceType::kSnapshotBegin: OnSnapshot(true); break;
    case TraceType::kSnapshotEnd: OnSnapshot(false); break;
    default: break;
  }
}

void InvariantChecker::OnGap(uint64_t lost) {
  ++gaps_;
  AdoptAll(std::to_string(lost) + " records are missing: everything after them is adopted anew");
}

void InvariantChecker::OnSnapshot(bool begin) {
  if (begin == in_snapshot_) Fail("T1", "a snapshot inside a snapshot, or its end without a begin");
  in_snapshot_ = begin;
  if (!begin) return;
  AdoptAll("the recorder attached to a running process: its state is taken from its snapshot");
  blocks_ = RangeMap<Block>(Block::kUnmapped);
  kv_free_ = kv_used_ = kv_cached_ = 0;
  adopting_ = kv_adopting_ = false;
  memory_seen_ = true;
}

// --- Granules ------------------------------------------------------------------------------------

void InvariantChecker::OnCreate() {
  const TraceRecord& r = event_.record;
  // A trace that begins with the pool is complete.
  if (!memory_seen_ && r.args[0] == 0) adopting_ = false;
  memory_seen_ = true;
  const GranuleKey key{r.cause, r.args[0]};
  if (granules_.contains(key)) {
    Fail("G1", GranuleText(r.args[0]) + " is created twice");
    return;
  }
  Granule granule;
  granule.bytes = r.args[1];
  granules_[key] = granule;
  const auto pool = meta_.pool_granules.find(r.cause);
  if (pool == meta_.pool_granules.end() || pool->second == 0) return;
  if (r.args[0] >= pool->second) {
    Fail("G2", GranuleText(r.args[0]) + " of a pool that has " + std::to_string(pool->second));
  }
}

void InvariantChecker::OnRelease() {
  const TraceRecord& r = event_.record;
  const auto it = granules_.find({r.cause, r.args[0]});
  if (it == granules_.end()) {
    if (!adopting_) Fail("G1", "release of " + GranuleText(r.args[0]) + ", which does not exist");
    return;
  }
  if (!it->second.slots.empty()) {
    Fail("M1", "release of " + GranuleText(r.args[0]) + " while it is mapped");
  }
  if (it->second.bytes != 0 && r.args[1] != it->second.bytes) {
    Fail("G2", GranuleText(r.args[0]) + " was created with another size");
  }
  granules_.erase(it);
}

// The granule, adopted if need be.
InvariantChecker::Granule& InvariantChecker::GranuleOf(GranuleKey key, uint64_t owner_hint) {
  const auto it = granules_.find(key);
  if (it != granules_.end()) return it->second;
  if (!adopting_) Fail("G1", GranuleText(key.second) + " was never created");
  Granule granule;
  granule.state = kAnyState;
  granule.owner = owner_hint;
  granule.owner_known = false;
  granule.holds = kAdoptedBytes;
  return granules_[key] = granule;
}

void InvariantChecker::OnState() {
  memory_seen_ = true;
  const TraceRecord& r = event_.record;
  const GranuleKey key{r.cause, r.args[0]};
  const bool known = granules_.contains(key);
  Granule& granule = GranuleOf(key, r.args[3]);
  const uint64_t from = r.args[1], to = r.args[2];
  if (known && granule.state != kAnyState && granule.state != from) {
    Fail("G1", GranuleText(key.second) + " was " + GranuleStateName(granule.state) + ", not " +
                   GranuleStateName(from));
  }
  if (!LegalTransition(from, to)) {
    Fail("G1", "no granule goes from " + GranuleStateName(from) + " to " + GranuleStateName(to));
  }
  if ((to == kStateMapped || from == kStateMapped) && !in_snapshot_) CheckNeedsPlan("a mapping");
  if ((to == kStateFree || to == kStateRetiring) && !granule.slots.empty()) {
    Fail("M1", GranuleText(key.second) + " goes back to the pool while it is mapped");
  }
  if (from == kStateRetiring || to == kStateFree || to == kStateRetiring) {
    if (r.args[3] != kOwnerNone) {
      Fail("G2", GranuleText(key.second) + " is in no use but has an owner");
    }
  } else if (from == kStateFree) {
    if (r.args[3] == kOwnerNone) Fail("G2", GranuleText(key.second) + " is taken by no owner");
  } else if (granule.owner_known && granule.owner != r.args[3]) {
    Fail("G2", GranuleText(key.second) + " belongs to " + meta_.OwnerName(granule.owner) +
                   ", not to " + meta_.OwnerName(r.args[3]));
  }
  granule.state = to;
  granule.owner = r.args[3];
  granule.owner_known = true;
  if (!plan_) return;
  if (from == kStateFree) {
    plan_->fresh[key] = true;
    granule.holds = kNoBytes;
  } else if (to == kStateFree || to == kStateRetiring) {
    const auto fresh = plan_->fresh.find(key);
    if (fresh != plan_->fresh.end() && fresh->second) {
      fresh->second = false;
    } else {
      ++plan_->freed;
    }
  }
}

void InvariantChecker::OnOwner() {
  const TraceRecord& r = event_.record;
  Granule& granule = GranuleOf({r.cause, r.args[0]}, r.args[1]);
  if (granule.owner_known && granule.owner != r.args[1]) {
    Fail("G2", GranuleText(r.args[0]) + " belongs to " + meta_.OwnerName(granule.owner) +
                   ", not to " + meta_.OwnerName(r.args[1]));
  }
  if (r.args[2] == kOwnerNone || granule.state == kStateFree) {
    Fail("G2", "only a granule in use changes its owner, and to another one");
  }
  granule.owner = r.args[2];
  granule.owner_known = true;
}

// --- Mappings ------------------------------------------------------------------------------------

void InvariantChecker::CheckNeedsPlan(const char* what) {
  if (plan_ || (adopting_ && !plan_seen_)) return;
  Fail("T1", std::string(what) + " changes outside every plan");
}

void InvariantChecker::Remember(SlotKey slot) {
  if (!plan_ || plan_->before.contains(slot)) return;
  const auto it = slots_.find(slot);
  plan_->before[slot] = it == slots_.end() ? std::nullopt : std::optional(it->second.granule);
}

// A granule that enters or leaves the ring takes along the weight slots that show it: they leave
// home or come home without being remapped.
void InvariantChecker::RememberHeirs(const Granule& granule) {
  for (const SlotKey& slot : granule.slots) {
    if (static_cast<int64_t>(slot.first) == meta_.weights_region) Remember(slot);
  }
}

// A granule of the backing copy is mapped: at the slot whose bytes it has, and at no other.
void InvariantChecker::AdoptForeign(GranuleKey key, SlotKey slot) {
  const auto known = granules_.find(key);
  if (known != granules_.end() && !known->second.foreign) {
    Fail("G1", GranuleText(key.second) + " of a pool is mapped as one of the backing copy");
    return;
  }
  if (meta_.weights_region >= 0 && static_cast<int64_t>(slot.first) != meta_.weights_region) {
    Fail("O1",
         "only weights have backing copies; one is mapped in " + meta_.RegionName(slot.first));
  }
  if (slot.second != key.second) {
    Fail("M3", meta_.RegionName(slot.first) + " slot " + std::to_string(slot.second) +
                   " shows the backing copy of slot " + std::to_string(key.second));
  }
  Granule granule;
  granule.state = kAnyState;
  granule.owner = event_.record.args[4];
  granule.holds = key.second;
  granule.foreign = true;
  granules_.emplace(key, std::move(granule));
}

void InvariantChecker::OnMap() {
  memory_seen_ = true;
  const TraceRecord& r = event_.record;
  const SlotKey slot{r.args[0], r.args[1]};
  const GranuleKey key{r.cause, r.args[2]};
  CheckNeedsPlan("a mapping");
  const auto region = meta_.regions.find(slot.first);
  if (region != meta_.regions.end() && region->second.slots != 0 &&
      slot.second >= region->second.slots) {
    Fail("R1", meta_.RegionName(slot.first) + " has " + std::to_string(region->second.slots) +
                   " slots and is mapped at slot " + std::to_string(slot.second));
  }
  Remember(slot);
  if (r.args[3] == static_cast<uint64_t>(MapKind::kForeign)) AdoptForeign(key, slot);
  Granule& granule = GranuleOf(key, r.args[4]);
  if (const auto it = slots_.find(slot); it != slots_.end()) {
    Fail("M1", meta_.RegionName(slot.first) + " slot " + std::to_string(slot.second) +
                   " is mapped already, with " + GranuleText(it->second.granule.second));
    if (const auto old = granules_.find(it->second.granule); old != granules_.end()) {
      old->second.slots.erase(slot);
    }
  }
  if (granule.state != kStatePinned && granule.state != kStateMapped &&
      granule.state != kAnyState) {
    Fail("G1",
         GranuleText(key.second) + " is mapped while it is " + GranuleStateName(granule.state));
  }
  if (!granule.slots.empty() && r.args[3] == 0) {
    Fail("M1", GranuleText(key.second) + " is in two slots without an alias");
  }
  if (granule.owner_known && granule.owner != r.args[4]) {
    Fail("G2", GranuleText(key.second) + " belongs to " + meta_.OwnerName(granule.owner) +
                   ", not to " + meta_.OwnerName(r.args[4]));
  }
  granule.slots.insert(slot);
  slots_[slot] = {key, r.time_ns};
  if (static_cast<int64_t>(slot.first) == meta_.ring_region) RememberHeirs(granule);
  if (static_cast<int64_t>(slot.first) != meta_.weights_region) return;
  // Loading writes the bytes itself; a snapshot tells what has been there before.
  if (in_snapshot_ || (adopting_ && !plan_)) {
    if (granule.holds == kNoBytes) granule.holds = kAdoptedBytes;
  } else if (plan_ && plan_->cause == kPlanLoad && granule.holds == kNoBytes) {
    granule.holds = slot.second;
  }
}

void InvariantChecker::OnUnmap() {
  memory_seen_ = true;
  const TraceRecord& r = event_.record;
  const SlotKey slot{r.args[0], r.args[1]};
  const GranuleKey key{r.cause, r.args[2]};
  CheckNeedsPlan("a mapping");
  Remember(slot);
  const auto it = slots_.find(slot);
  if (it == slots_.end() && adopting_) {
    if (plan_) plan_->before[slot] = key;
    return;
  }
  if (it == slots_.end() || it->second.granule != key) {
    Fail("M1", "unmap of " + GranuleText(key.second) + " from " + meta_.RegionName(slot.first) +
                   " slot " + std::to_string(slot.second) + ", which holds " +
                   (it == slots_.end() ? "nothing" : GranuleText(it->second.granule.second)));
    return;
  }
  slots_.erase(it);
  Granule& granule = GranuleOf(key, 0);
  granule.slots.erase(slot);
  if (static_cast<int64_t>(slot.first) == meta_.kv_region) KvSlotGone(slot.second);
  if (static_cast<int64_t>(slot.first) == meta_.ring_region) RememberHeirs(granule);
  if (granule.foreign && granule.slots.empty()) granules_.erase(key);
  if (static_cast<int64_t>(slot.first) != meta_.weights_region) return;
  unfilled_.erase(slot.second);
  if (unfilled_behind_.erase(slot.second) > 0 && plan_) plan_->unfilled_behind.insert(slot.second);
  if (plan_) CheckUnderSteps(slot.second);
}

// --- Plans ---------------------------------------------------------------------------------------

void InvariantChecker::OnPlanBegin() {
  const TraceRecord& r = event_.record;
  if (plan_) {
    Fail("T2",
         "plan " + std::to_string(r.args[0]) + " begins inside plan " + std::to_string(plan_->id));
  }
  plan_seen_ = true;
  plan_ = Plan{};
  plan_->id = r.args[0];
  plan_->cause = r.cause;
  plan_->thread = r.thread;
  plan_->begin = event_;
}

void InvariantChecker::CheckRollback() {
  for (const auto& [slot, before] : plan_->before) {
    const auto it = slots_.find(slot);
    const auto now = it == slots_.end() ? std::nullopt : std::optional(it->second.granule);
    if (now == before) continue;
    Fail("T2", "after the rollback of plan " + std::to_string(plan_->id) + " " +
                   meta_.RegionName(slot.first) + " slot " + std::to_string(slot.second) +
                   " is not as it was before");
  }
}

void InvariantChecker::OnPlanEnd(bool rolled_back) {
  const TraceRecord& r = event_.record;
  if (!plan_ || plan_->id != r.args[0]) {
    if (plan_ || plan_seen_ || !adopting_) {
      Fail("T2", "the end of plan " + std::to_string(r.args[0]) + ", which did not begin");
    }
    plan_seen_ = true;
    plan_.reset();
    return;
  }
  if (plan_->cause != r.cause) Fail("T2", "the plan began with another cause");
  ++plans_;
  uint64_t taken = 0;
  for (const auto& [key, still] : plan_->fresh) taken += still ? 1 : 0;
  if (rolled_back && r.args[2] == 0) {
    CheckRollback();
    if (taken != 0 || plan_->freed != 0) {
      Fail("T2", "a plan that was rolled back took " + std::to_string(taken) +
                     " granules and freed " + std::to_string(plan_->freed));
    }
  } else if (!rolled_back && !in_snapshot_ && Recorded(TraceType::kGranuleState)) {
    if (taken != r.args[1] || plan_->freed != r.args[2]) {
      Fail("T2", "the commit says " + std::to_string(r.args[1]) + " granules taken and " +
                     std::to_string(r.args[2]) + " freed; it took " + std::to_string(taken) +
                     " and freed " + std::to_string(plan_->freed));
    }
  }
  // Weights that are home again need their bytes: before the next step, or, if a step under way
  // holds their gates closed, before it ends.
  for (const auto& [slot, before] : plan_->before) {
    if (static_cast<int64_t>(slot.first) != meta_.weights_region) continue;
    const auto it = slots_.find(slot);
    if (it == slots_.end()) continue;
    const Granule& granule = GranuleOf(it->second.granule, 0);
    if (granule.holds == slot.second || granule.holds == kAdoptedBytes || InRing(granule)) {
      unfilled_.erase(slot.second);
      unfilled_behind_.erase(slot.second);
    } else if (transition_ && transition_->moves) {
      unfilled_behind_.insert(slot.second);
      unfilled_until_ = transition_->step;
    } else if (rolled_back && (plan_->unfilled_behind.contains(slot.second) ||
                               unfilled_behind_.contains(slot.second))) {
      unfilled_behind_.insert(slot.second);  // as before
    } else {
      unfilled_.insert(slot.second);
    }
  }
  plan_.reset();
}

void InvariantChecker::OnLoan() {
  const TraceRecord& r = event_.record;
  const auto it = loans_.find(r.args[0]);
  if (it == loans_.end() && adopting_) {
    loans_[r.args[0]] = r.cause;
    return;
  }
  const int before = it == loans_.end() ? -1 : it->second;
  if (before + 1 != r.cause) Fail("G2", "a loan is active, then called, then ended");
  if (r.args[1] == r.args[2]) Fail("G2", "a loan needs two owners");
  loans_[r.args[0]] = r.cause;
}

void InvariantChecker::OnCommitment() {
  const TraceRecord& r = event_.record;
  if (committed_ && *committed_ + r.args[0] != r.args[1]) {
    Fail("G2", "the commitments were " + std::to_string(*committed_) + " granules and are " +
                   std::to_string(r.args[1]) + " after a change of " +
                   std::to_string(static_cast<int64_t>(r.args[0])));
  }
  committed_ = r.args[1];
}

void InvariantChecker::Finish(bool complete) {
  CheckBytes(InForce(), /*at_end=*/true);
  if (adopting_ && notes_.empty()) {
    Note("the trace begins in the middle: what was there before was adopted at first sight");
  }
  if (!complete) return;
  if (plan_) {
    event_ = plan_->begin;
    Fail("T2", "plan " + std::to_string(plan_->id) + " neither committed nor was rolled back");
  }
  if (!steps_.empty()) Fail("M3", std::to_string(steps_.size()) + " steps did not end");
  if (!arrived_.empty()) Fail("M3", std::to_string(arrived_.size()) + " gates were not passed");
  if (!slots_.empty()) Fail("M1", std::to_string(slots_.size()) + " slots are still mapped");
  if (!granules_.empty()) {
    Fail("G1", std::to_string(granules_.size()) + " granules were not released");
  }
}

}  // namespace weir::trace_tool
