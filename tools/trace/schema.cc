#include "tools/trace/schema.h"

namespace weir::trace_tool {
namespace {

using A = ArgKind;
using C = CauseKind;
using T = TraceType;

constexpr TypeInfo kTypes[] = {
    {T::kMap,
     "map",
     C::kTier,
     {{{"region", A::kRegion},
       {"slot", A::kNumber},
       {"granule", A::kNumber},
       {"alias", A::kNumber},
       {"owner", A::kOwner}}}},
    {T::kUnmap,
     "unmap",
     C::kTier,
     {{{"region", A::kRegion}, {"slot", A::kNumber}, {"granule", A::kNumber}}}},
    {T::kCreate, "create", C::kTier, {{{"granule", A::kNumber}, {"bytes", A::kBytes}}}},
    {T::kRelease, "release", C::kTier, {{{"granule", A::kNumber}, {"bytes", A::kBytes}}}},
    {T::kPlanBegin,
     "plan_begin",
     C::kRemapCause,
     {{{"plan", A::kNumber}, {"operations", A::kNumber}}}},
    {T::kPlanCommit,
     "plan_commit",
     C::kRemapCause,
     {{{"plan", A::kNumber},
       {"taken", A::kNumber},
       {"freed", A::kNumber},
       {"duration", A::kDuration}}}},
    {T::kPlanRollback,
     "plan_rollback",
     C::kRemapCause,
     {{{"plan", A::kNumber},
       {"status", A::kNumber},
       {"undo_failed", A::kNumber},
       {"duration", A::kDuration}}}},
    {T::kGranuleState,
     "granule_state",
     C::kTier,
     {{{"granule", A::kNumber},
       {"from", A::kGranuleState},
       {"to", A::kGranuleState},
       {"owner", A::kOwner}}}},
    {T::kEvict,
     "evict",
     C::kNone,
     {{{"region", A::kRegion}, {"first_slot", A::kNumber}, {"slots", A::kNumber}}}},
    {T::kFill,
     "fill",
     C::kTier,
     {{{"region", A::kRegion},
       {"first_slot", A::kNumber},
       {"slots", A::kNumber},
       {"bytes", A::kBytes},
       {"begin", A::kTime},
       {"end", A::kTime}}}},
    {T::kGateArrive,
     "gate_arrive",
     C::kNone,
     {{{"gate", A::kGate}, {"step", A::kNumber}, {"chunk", A::kNumber}}}},
    {T::kGatePass,
     "gate_pass",
     C::kNone,
     {{{"gate", A::kGate}, {"step", A::kNumber}, {"chunk", A::kNumber}, {"waited", A::kDuration}}}},
    {T::kFaultMajor,
     "fault_major",
     C::kFaultCause,
     {{{"gate", A::kGate}, {"step", A::kNumber}, {"chunk", A::kNumber}, {"waited", A::kDuration}}}},
    {T::kFaultMinor,
     "fault_minor",
     C::kFaultCause,
     {{{"gate", A::kGate}, {"step", A::kNumber}, {"chunk", A::kNumber}, {"waited", A::kDuration}}}},
    {T::kCopy,
     "copy",
     C::kTier,
     {{{"chunk", A::kNumber},
       {"region", A::kRegion},
       {"first_slot", A::kNumber},
       {"bytes", A::kBytes},
       {"begin", A::kTime},
       {"end", A::kTime}}}},
    {T::kWriteBack,
     "write_back",
     C::kTier,
     {{{"region", A::kRegion},
       {"first_slot", A::kNumber},
       {"slots", A::kNumber},
       {"bytes", A::kBytes},
       {"begin", A::kTime},
       {"end", A::kTime}}}},
    {T::kPlacement,
     "placement",
     C::kPlacement,
     {{{"granules_per_layer", A::kNumber},
       {"ring_slots", A::kNumber},
       {"evicted_granules", A::kNumber},
       {"evicted_bytes", A::kBytes},
       {"stripes", A::kNumber}}}},
    {T::kKvAlloc,
     "kv_alloc",
     C::kNone,
     {{{"sequence", A::kNumber}, {"block", A::kNumber}, {"count", A::kNumber}}}},
    {T::kKvFree,
     "kv_free",
     C::kNone,
     {{{"sequence", A::kNumber}, {"block", A::kNumber}, {"count", A::kNumber}}}},
    {T::kKvEvict,
     "kv_evict",
     C::kNone,
     {{{"block", A::kNumber}, {"count", A::kNumber}, {"to", A::kTier}}}},
    {T::kKvHit,
     "kv_hit",
     C::kNone,
     {{{"sequence", A::kNumber}, {"blocks", A::kNumber}, {"tier", A::kTier}}}},
    {T::kStepBegin,
     "step_begin",
     C::kNone,
     {{{"step", A::kNumber},
       {"sequences", A::kNumber},
       {"tokens", A::kNumber},
       {"prompt_tokens", A::kNumber},
       {"context_tokens", A::kNumber}}}},
    {T::kStepEnd,
     "step_end",
     C::kNone,
     {{{"step", A::kNumber},
       {"sequences", A::kNumber},
       {"tokens", A::kNumber},
       {"duration", A::kDuration},
       {"stall", A::kDuration},
       {"streamed", A::kBytes}}}},
    {T::kStepFailed,
     "step_failed",
     C::kNone,
     {{{"step", A::kNumber}, {"status", A::kNumber}, {"duration", A::kDuration}}}},
    {T::kQueue,
     "queue",
     C::kNone,
     {{{"running", A::kNumber},
       {"waiting", A::kNumber},
       {"kv_used", A::kNumber},
       {"kv_cached", A::kNumber},
       {"kv_free", A::kNumber}}}},
    {T::kRequest,
     "request",
     C::kRequestEvent,
     {{{"request", A::kNumber},
       {"prompt_tokens", A::kNumber},
       {"cached_tokens", A::kNumber},
       {"output_tokens", A::kNumber},
       {"preemptions", A::kNumber}}}},
    {T::kPolicyDecision,
     "policy_decision",
     C::kNone,
     {{{"decision", A::kNumber},
       {"wanted", A::kNumber},
       {"before", A::kNumber},
       {"clipped", A::kNumber},
       {"ring_slots", A::kNumber},
       {"reason", A::kReason}}}},
    {T::kPressure, "pressure", C::kNone, {{{"level", A::kNumber}, {"free", A::kNumber}}}},
    {T::kLoan,
     "loan",
     C::kLoanState,
     {{{"loan", A::kNumber},
       {"lender", A::kOwner},
       {"borrower", A::kOwner},
       {"granules", A::kNumber}}}},
    {T::kCommitment,
     "commitment",
     C::kNone,
     {{{"granules", A::kSigned}, {"committed", A::kNumber}}}},
    {T::kPolicyInput,
     "policy_input",
     C::kNone,
     {{{"decision", A::kNumber},
       {"waiting", A::kNumber},
       {"expected_blocks", A::kNumber},
       {"mapped_blocks", A::kNumber},
       {"step", A::kDuration},
       {"stall", A::kDuration}}}},
    {T::kDrop, "drop", C::kNone, {{{"lost", A::kNumber}, {"lost_in_all", A::kNumber}}}},
};

constexpr std::string_view kTiers[] = {"hbm", "peer", "host", "nvme"};
constexpr std::string_view kStates[] = {"free", "pinned", "mapped", "retiring"};
constexpr std::string_view kRemaps[] = {"load",      "evict",    "restore", "kv-grow",
                                        "kv-shrink", "shutdown", "test"};
constexpr std::string_view kFaults[] = {"unknown",   "not-started", "still-copying",
                                        "late-copy", "repair",      "new-plan"};
constexpr std::string_view kRequests[] = {"unknown",   "added",    "scheduled", "first-token",
                                          "preempted", "finished", "cancelled", "failed"};
constexpr std::string_view kLoans[] = {"active", "called", "ended"};
constexpr std::string_view kPlacements[] = {"stripe", "layer"};

template <size_t N>
std::string NameIn(const std::string_view (&names)[N], uint64_t value) {
  if (value < N) return std::string(names[value]);
  return "?" + std::to_string(value);
}

}  // namespace

std::span<const TypeInfo> AllTypes() {
  return kTypes;
}

const TypeInfo* FindType(uint16_t type) {
  static const auto index = [] {
    std::array<const TypeInfo*, kTraceTypeLimit> by_number{};
    for (const TypeInfo& t : kTypes) by_number[static_cast<size_t>(t.type)] = &t;
    return by_number;
  }();
  return type < index.size() ? index[type] : nullptr;
}

std::optional<TraceType> TypeByName(std::string_view name) {
  for (const TypeInfo& t : kTypes) {
    if (t.name == name) return t.type;
  }
  return std::nullopt;
}

std::string CauseName(CauseKind kind, uint8_t cause) {
  switch (kind) {
    case C::kNone: return "";
    case C::kTier: return NameIn(kTiers, cause);
    case C::kRemapCause: return NameIn(kRemaps, cause);
    case C::kFaultCause: return NameIn(kFaults, cause);
    case C::kPlacement: return NameIn(kPlacements, cause);
    case C::kRequestEvent: return NameIn(kRequests, cause);
    case C::kLoanState: return NameIn(kLoans, cause);
  }
  return "?";
}

std::string TierName(uint64_t tier) {
  return NameIn(kTiers, tier);
}
std::string GranuleStateName(uint64_t state) {
  return NameIn(kStates, state);
}
std::string FaultCauseName(uint64_t cause) {
  return NameIn(kFaults, cause);
}
std::string RemapCauseName(uint64_t cause) {
  return NameIn(kRemaps, cause);
}
std::string RequestEventName(uint64_t event) {
  return NameIn(kRequests, event);
}

}  // namespace weir::trace_tool
