#include "vmm/trace_audit.h"

namespace weir {
namespace {

// GranuleState's values, as the trace has them.
enum : uint64_t { kFree, kPinned, kMapped, kRetiring };
constexpr size_t kMostProblems = 50;

bool LegalTransition(uint64_t from, uint64_t to) {
  switch (from) {
    case kFree: return to == kPinned;
    case kPinned: return to == kMapped || to == kFree || to == kRetiring;
    case kMapped: return to == kPinned;
    case kRetiring: return to == kFree;
    default: return false;
  }
}

}  // namespace

void TraceAudit::Problem(const TraceRecord& record, const std::string& what) {
  ++problem_count_;
  if (problems_.size() < kMostProblems) {
    problems_.push_back("record " + std::to_string(records_) + " (type " +
                        std::to_string(record.type) + ", " + std::to_string(record.time_ns) +
                        " ns): " + what);
  }
}

void TraceAudit::Remember(SlotKey slot) {
  if (!plan_ || plan_->before.contains(slot)) return;
  const auto it = slots_.find(slot);
  plan_->before[slot] = it == slots_.end() ? std::nullopt : std::optional<GranuleKey>(it->second);
}

void TraceAudit::OnMap(const TraceRecord& r) {
  const SlotKey slot{r.args[0], r.args[1]};
  const GranuleKey key{r.cause, r.args[2]};
  if (!plan_) Problem(r, "a mapping outside every plan (T3)");
  Remember(slot);
  if (slots_.contains(slot)) Problem(r, "the slot is mapped already (M1)");
  const auto granule = granules_.find(key);
  if (r.args[3] == static_cast<uint64_t>(MapKind::kForeign)) {
    if (granule != granules_.end()) Problem(r, "a granule of a pool is mapped as somebody else's");
    slots_[slot] = key;
    return;
  }
  if (granule == granules_.end()) {
    Problem(r, "granule " + std::to_string(key.second) + " was never created");
    return;
  }
  if (granule->second.state != kPinned && granule->second.state != kMapped) {
    Problem(r, "granule " + std::to_string(key.second) + " is mapped without being allocated");
  }
  if (granule->second.mappings != 0 && r.args[3] == 0) {
    Problem(r, "granule " + std::to_string(key.second) + " is in two slots without an alias");
  }
  ++granule->second.mappings;
  slots_[slot] = key;
}

void TraceAudit::OnUnmap(const TraceRecord& r) {
  const SlotKey slot{r.args[0], r.args[1]};
  const GranuleKey key{r.cause, r.args[2]};
  Remember(slot);
  const auto it = slots_.find(slot);
  if (it == slots_.end() || it->second != key) {
    Problem(r,
            "unmap of granule " + std::to_string(key.second) + ", which is not in the slot (M1)");
    return;
  }
  slots_.erase(it);
  if (const auto granule = granules_.find(key);
      granule != granules_.end() && granule->second.mappings > 0) {
    --granule->second.mappings;
  }
}

void TraceAudit::OnState(const TraceRecord& r) {
  const auto it = granules_.find({r.cause, r.args[0]});
  if (it == granules_.end()) {
    Problem(r, "granule " + std::to_string(r.args[0]) + " was never created");
    return;
  }
  if (it->second.state != r.args[1]) Problem(r, "the granule was in another state (G1)");
  if (!LegalTransition(r.args[1], r.args[2])) Problem(r, "no such transition (G1)");
  if ((r.args[2] == kFree || r.args[2] == kRetiring) && it->second.mappings != 0) {
    Problem(r, "a granule goes back to the pool while it is mapped");
  }
  it->second.state = r.args[2];
}

void TraceAudit::OnPlanEnd(const TraceRecord& r, bool rolled_back) {
  if (!plan_ || plan_->id != r.args[0]) {
    Problem(r, "the end of a plan that did not begin");
    return;
  }
  ++plans_;
  if (rolled_back && r.args[2] == 0) {
    for (const auto& [slot, before] : plan_->before) {
      const auto it = slots_.find(slot);
      const auto now = it == slots_.end() ? std::nullopt : std::optional<GranuleKey>(it->second);
      if (now != before) {
        Problem(r, "region " + std::to_string(slot.first) + " slot " + std::to_string(slot.second) +
                       " is not as before the plan (T2)");
      }
    }
  }
  plan_.reset();
}

void TraceAudit::Add(const TraceRecord& r) {
  ++records_;
  const std::array<uint64_t, 3> gate{r.args[0], r.args[1], r.args[2]};
  switch (static_cast<TraceType>(r.type)) {
    case TraceType::kMap: OnMap(r); break;
    case TraceType::kUnmap: OnUnmap(r); break;
    case TraceType::kGranuleState: OnState(r); break;
    case TraceType::kCreate:
      if (!granules_.emplace(GranuleKey{r.cause, r.args[0]}, GranuleRecord{}).second) {
        Problem(r, "granule " + std::to_string(r.args[0]) + " is created twice");
      }
      break;
    case TraceType::kRelease: {
      const auto it = granules_.find({r.cause, r.args[0]});
      if (it == granules_.end()) {
        Problem(r, "release of a granule that does not exist");
      } else {
        if (it->second.mappings != 0) Problem(r, "release of a mapped granule");
        granules_.erase(it);
      }
      break;
    }
    case TraceType::kPlanBegin:
      if (plan_) Problem(r, "a plan inside a plan");
      plan_ = OpenPlan{r.args[0], {}};
      break;
    case TraceType::kPlanCommit: OnPlanEnd(r, false); break;
    case TraceType::kPlanRollback: OnPlanEnd(r, true); break;
    case TraceType::kLoan: {
      const auto it = loans_.find(r.args[0]);
      const int before = it == loans_.end() ? -1 : it->second;
      if (before + 1 != r.cause) Problem(r, "a loan is active, then called, then ended");
      loans_[r.args[0]] = r.cause;
      break;
    }
    case TraceType::kStepBegin:
      if (!steps_.emplace(r.thread, r.args[0]).second) Problem(r, "a step inside a step");
      break;
    case TraceType::kStepEnd:
    case TraceType::kStepFailed: {
      const auto it = steps_.find(r.thread);
      if (it == steps_.end() || it->second != r.args[0]) {
        Problem(r, "the end of a step that did not begin");
      } else {
        steps_.erase(it);
      }
      break;
    }
    case TraceType::kGateArrive: ++gates_[gate]; break;
    case TraceType::kGatePass: {
      const auto it = gates_.find(gate);
      if (it == gates_.end()) {
        Problem(r, "a gate is passed that nobody arrived at");
      } else if (--it->second == 0) {
        gates_.erase(it);
      }
      break;
    }
    case TraceType::kDrop:
      Problem(r, std::to_string(r.args[0]) + " records are lost; the trace cannot be audited");
      break;
    default: break;
  }
}

Status TraceAudit::Check() const {
  if (problem_count_ == 0) return OkStatus();
  return DataLoss(std::to_string(problem_count_) + " problems, first: " + problems_.front());
}

Status TraceAudit::CheckAtEnd() const {
  WEIR_TRY(Check());
  if (plan_) return DataLoss("plan " + std::to_string(plan_->id) + " did not end");
  if (!steps_.empty()) return DataLoss(std::to_string(steps_.size()) + " steps did not end");
  if (!gates_.empty()) return DataLoss(std::to_string(gates_.size()) + " gates were not passed");
  if (!slots_.empty()) return DataLoss(std::to_string(slots_.size()) + " slots are still mapped");
  if (!granules_.empty()) {
    return DataLoss(std::to_string(granules_.size()) + " granules were not released");
  }
  return OkStatus();
}

}  // namespace weir
