// TraceAudit: checks the invariants of the memory system from its trace alone.
//
// Represents the state that the records so far describe. Rules: granules are created before use and
// change state as granule.h draws it (G1); a slot is mapped once and unmapped with the granule that
// is in it (M1); a granule is in two slots only by alias, and a pool's is never mapped as somebody
// else's; mapping happens inside a plan (T3); plans are paired, and a clean rollback leaves the
// slots of before (T2); loans are called, then end; steps and gates are paired per thread. Feed it
// one thread's records in order, or a drained trace sorted by time. A trace with losses cannot be
// audited: a kDrop record is a problem.
#pragma once

#include <array>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "vmm/status.h"
#include "vmm/trace_format.h"

namespace weir {

class TraceAudit {
 public:
  void Add(const TraceRecord& record);
  // kDataLoss with the first problem and how many there are.
  Status Check() const;
  // Likewise, and nothing may be left open: plans, steps, gates, mappings, granules.
  Status CheckAtEnd() const;

  uint64_t records() const { return records_; }
  uint64_t plans() const { return plans_; }
  const std::vector<std::string>& problems() const { return problems_; }

 private:
  using GranuleKey = std::pair<uint8_t, uint64_t>;  // tier, id
  using SlotKey = std::pair<uint64_t, uint64_t>;    // region, slot
  struct GranuleRecord {
    uint64_t state = 0;
    uint32_t mappings = 0;
  };
  struct OpenPlan {
    uint64_t id;
    std::map<SlotKey, std::optional<GranuleKey>> before;  // of the slots it touched
  };
  void Problem(const TraceRecord& record, const std::string& what);
  void OnMap(const TraceRecord& r);
  void OnUnmap(const TraceRecord& r);
  void OnState(const TraceRecord& r);
  void OnPlanEnd(const TraceRecord& r, bool rolled_back);
  void Remember(SlotKey slot);

  std::map<GranuleKey, GranuleRecord> granules_;
  std::map<SlotKey, GranuleKey> slots_;
  std::optional<OpenPlan> plan_;
  std::map<uint64_t, uint8_t> loans_;                  // loan -> state
  std::map<uint32_t, uint64_t> steps_;                 // thread -> open step
  std::map<std::array<uint64_t, 3>, uint32_t> gates_;  // gate, step, chunk -> arrivals open
  uint64_t records_ = 0;
  uint64_t plans_ = 0;
  uint64_t problem_count_ = 0;
  std::vector<std::string> problems_;
};

}  // namespace weir
