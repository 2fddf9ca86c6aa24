// InvariantChecker: replays a trace and verifies the invariants of weir's memory (docs/tracing.md).
//
// Rules, by the names of docs/architecture.md: G1, G2 granules; R1 regions; M1, M2, M3 mappings and
// arrived bytes; O1 backing copies; K1, K3 KV blocks; T1, T2 plans; and A1, A2, A3, the accounts
// of streamed bytes, of stall, and of a device's time. A trace that begins in the middle is taken
// as it comes: what was not seen to begin is adopted at first sight, and adopted() says so. After
// losses everything is adopted anew and conclusive() is false. Feed it a trace in order of time.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tools/trace/meta.h"
#include "tools/trace/range_map.h"
#include "tools/trace/reader.h"

namespace weir::trace_tool {

struct Violation {
  std::string rule;  // "M1"
  std::string what;
  TraceEvent event;
};

class InvariantChecker {
 public:
  static constexpr size_t kMostKept = 100;

  // |mask|: types recorded; rules that need others are not checked.
  InvariantChecker(const TraceMeta& meta, uint64_t mask);
  void Add(const TraceEvent& event);
  // The trace has ended. With |complete| nothing may be left open: the process is gone.
  void Finish(bool complete);

  const std::vector<Violation>& violations() const { return violations_; }   // the first ones
  const std::map<std::string, uint64_t>& counts() const { return counts_; }  // by rule, all
  uint64_t violation_count() const { return violation_count_; }
  // What could not be verified, and why; one line each.
  const std::vector<std::string>& notes() const { return notes_; }
  bool conclusive() const { return gaps_ == 0; }
  uint64_t plans() const { return plans_; }
  uint64_t steps() const { return steps_ended_; }
  uint64_t passes() const { return passes_; }
  uint64_t stall_ns() const { return fault_ns_total_; }

 private:
  using GranuleKey = std::pair<uint8_t, uint64_t>;         // tier, id
  using SlotKey = std::pair<uint64_t, uint64_t>;           // region, slot
  static constexpr uint64_t kNoBytes = UINT64_MAX;         // holds nothing of use
  static constexpr uint64_t kAdoptedBytes = kNoBytes - 1;  // held something before the trace began
  struct Granule {
    uint64_t state = 0;
    uint64_t owner = 0;
    bool owner_known = true;
    uint64_t bytes = 0;
    uint64_t holds = kNoBytes;  // the weight slot whose bytes are in it
    bool foreign = false;       // of the backing copy: known as long as it is mapped
    std::set<SlotKey> slots;
  };
  struct Mapping {
    GranuleKey granule;
    uint64_t made_ns = 0;
  };
  struct Plan {
    uint64_t id = 0;
    uint8_t cause = 0;
    uint32_t thread = 0;
    TraceEvent begin;
    std::map<SlotKey, std::optional<GranuleKey>> before;
    std::map<GranuleKey, bool> fresh;    // still taken
    std::set<uint64_t> unfilled_behind;  // what it unmapped of those
    uint64_t freed = 0;
  };
  struct Step {  // under way
    uint64_t begin_ns = 0;
    uint64_t passes = 0;
    uint64_t fault_ns = 0;
    uint64_t round = 0;
    std::optional<uint64_t> device_end_ns;
    uint64_t device_error_ns = 0;
  };
  // Of copies: the same stripes in each step.
  struct Round {
    TraceEvent event;     // that began it
    bool known = false;   // what is copied
    bool clean = false;   // no failed step, no repair, no loss
    bool behind = false;  // it began behind closed gates, with nothing copied ahead
    uint64_t bytes = 0;   // a step
    uint64_t stripes = 0;
    uint64_t ahead_bytes = 0;
    uint64_t copied = 0;
    uint64_t open = 0, ended = 0;  // steps
  };
  // Behind the gates that |step|, which is under way, holds closed.
  struct Transition {
    uint64_t step = 0;
    bool moves = false;
    RangeMap<bool> open{false};   // weight slots whose stripe has come: behind gates that are open
    std::set<uint64_t> remapped;  // weight slots behind gates that the step has still to pass
  };
  enum class Block : uint8_t { kUnmapped, kFree, kUsed, kCached, kIdle, kUnknown };

  void Fail(const char* rule, const std::string& what);
  void Note(const std::string& line);
  bool Recorded(TraceType type) const;
  void AdoptAll(const std::string& why);

  Granule& GranuleOf(GranuleKey key, uint64_t owner_hint);
  void OnCreate();
  void OnRelease();
  void OnMap();
  void AdoptForeign(GranuleKey key, SlotKey slot);
  void OnUnmap();
  void OnState();
  void OnOwner();
  void OnPlanBegin();
  void OnPlanEnd(bool rolled_back);
  void CheckRollback();
  void CheckNeedsPlan(const char* what);
  void Remember(SlotKey slot);
  void RememberHeirs(const Granule& granule);
  void SetHolds(uint64_t region, uint64_t first, uint64_t slots, uint64_t begin_ns, uint64_t end_ns,
                const char* what);

  void OnEvict();
  void OnFill();
  void OnCopy();
  void OnPlacement();
  void OnTransition();
  void OnStripeStays();
  void OnArrive();
  void OnPass();
  void OnFault();
  void OnStepBegin();
  void OnStepEnd(bool failed);
  void OnDeviceStep();
  Round& InForce() { return rounds_[round_]; }
  void BeginRound(Round round);
  void MoveStep(Step& step, uint64_t round);
  void CloseRound(uint64_t round);
  void CheckBytes(const Round& round, bool at_end);
  void CheckUnderSteps(uint64_t slot);
  void CheckRemapped(uint64_t step);
  bool InRing(const Granule& granule) const;

  void OnKvCapacity();
  void OnKvAlloc();
  void OnKvFree();
  void OnKvEvict();
  void OnKvHit();
  void OnKvMove();
  void OnQueue();
  bool KvRange(uint64_t first, uint64_t count);
  bool Expect(uint64_t first, uint64_t count, std::initializer_list<Block> states, const char* rule,
              const char* what);
  void KvSlotGone(uint64_t slot);
  uint64_t KvCapacity() const { return kv_free_ + kv_used_ + kv_cached_; }

  void OnLoan();
  void OnCommitment();
  void OnSnapshot(bool begin);
  void OnGap(uint64_t lost);

  const TraceMeta& meta_;
  const uint64_t mask_;
  TraceEvent event_;  // the one being looked at

  // True until the trace has been seen to begin the pool's (the KV cache's) life.
  bool adopting_ = true;
  bool kv_adopting_ = true;
  bool in_snapshot_ = false;
  bool plan_seen_ = false;
  bool step_seen_ = false;
  bool memory_seen_ = false;
  std::map<GranuleKey, Granule> granules_;
  std::map<SlotKey, Mapping> slots_;
  std::optional<Plan> plan_;
  // Weight slots that came home and wait for their bytes: those are there before a step begins, or,
  // if they came home behind closed gates, before step |unfilled_until_| or a later one ends.
  std::set<uint64_t> unfilled_, unfilled_behind_;
  uint64_t unfilled_until_ = 0;

  // By number: the one in force, the last, and those that wait for their steps to end.
  std::map<uint64_t, Round> rounds_;
  uint64_t round_ = 0;
  std::optional<Transition> transition_;
  std::unordered_map<uint64_t, std::pair<uint64_t, uint64_t>> chunk_slots_;  // first, count
  std::map<uint64_t, Step> steps_;                                           // by number
  std::optional<uint64_t> first_step_;  // seen to begin; those before it had begun already
  uint64_t device_end_ns_ = 0, device_end_error_ns_ = 0;       // of the last step run on a device
  std::map<std::pair<uint64_t, uint64_t>, uint64_t> arrived_;  // gate, chunk -> open
  uint64_t fault_ns_total_ = 0;

  RangeMap<Block> blocks_{Block::kUnmapped};
  uint64_t kv_free_ = 0, kv_used_ = 0, kv_cached_ = 0;
  std::map<uint64_t, uint8_t> loans_;
  std::optional<uint64_t> committed_;

  std::vector<Violation> violations_;
  std::map<std::string, uint64_t> counts_;
  std::vector<std::string> notes_;
  uint64_t violation_count_ = 0;
  uint64_t gaps_ = 0;
  uint64_t plans_ = 0;
  uint64_t steps_ended_ = 0;
  uint64_t passes_ = 0;
};

}  // namespace weir::trace_tool
