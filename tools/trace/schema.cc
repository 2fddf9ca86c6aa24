#include "tools/trace/schema.h"

namespace weir::trace_tool {
namespace {

using A = ArgKind;
using C = CauseKind;
using T = TraceType;

constexpr TypeInfo kTypes[] = {
    {T::kMap,
     C::kTier,
     {{{"region", A::kRegion},
       {"slot", A::kNumber},
       {"granule", A::kNumber},
       {"alias", A::kNumber},
       {"owner", A::kOwner}}}},
    {T::kUnmap,
     C::kTier,
     {{{"region", A::kRegion}, {"slot", A::kNumber}, {"granule", A::kNumber}}}},
    {T::kCreate, C::kTier, {{{"granule", A::kNumber}, {"bytes", A::kBytes}}}},
    {T::kRelease, C::kTier, {{{"granule", A::kNumber}, {"bytes", A::kBytes}}}},
    {T::kPlanBegin, C::kRemapCause, {{{"plan", A::kNumber}, {"operations", A::kNumber}}}},
    {T::kPlanCommit,
     C::kRemapCause,
     {{{"plan", A::kNumber},
       {"taken", A::kNumber},
       {"freed", A::kNumber},
       {"duration", A::kDuration}}}},
    {T::kPlanRollback,
     C::kRemapCause,
     {{{"plan", A::kNumber},
       {"status", A::kNumber},
       {"undo_failed", A::kNumber},
       {"duration", A::kDuration}}}},
    {T::kGranuleState,
     C::kTier,
     {{{"granule", A::kNumber},
       {"from", A::kGranuleState},
       {"to", A::kGranuleState},
       {"owner", A::kOwner}}}},
    {T::kOwner, C::kTier, {{{"granule", A::kNumber}, {"from", A::kOwner}, {"to", A::kOwner}}}},
    {T::kEvict,
     C::kNone,
     {{{"region", A::kRegion}, {"first_slot", A::kNumber}, {"slots", A::kNumber}}}},
    {T::kFill,
     C::kTier,
     {{{"region", A::kRegion},
       {"first_slot", A::kNumber},
       {"slots", A::kNumber},
       {"bytes", A::kBytes},
       {"begin", A::kTime},
       {"end", A::kTime}}}},
    {T::kGateArrive, C::kNone, {{{"gate", A::kGate}, {"step", A::kNumber}, {"chunk", A::kNumber}}}},
    {T::kGatePass,
     C::kNone,
     {{{"gate", A::kGate}, {"step", A::kNumber}, {"chunk", A::kNumber}, {"waited", A::kDuration}}}},
    {T::kFaultMajor,
     C::kFaultCause,
     {{{"gate", A::kGate}, {"step", A::kNumber}, {"chunk", A::kNumber}, {"waited", A::kDuration}}}},
    {T::kFaultMinor,
     C::kFaultCause,
     {{{"gate", A::kGate}, {"step", A::kNumber}, {"chunk", A::kNumber}, {"waited", A::kDuration}}}},
    {T::kCopy,
     C::kTier,
     {{{"chunk", A::kNumber},
       {"region", A::kRegion},
       {"first_slot", A::kNumber},
       {"bytes", A::kBytes},
       {"begin", A::kTime},
       {"end", A::kTime}}}},
    {T::kStripeStays,
     C::kNone,
     {{{"chunk", A::kNumber},
       {"region", A::kRegion},
       {"first_slot", A::kNumber},
       {"slots", A::kNumber}}}},
    {T::kWriteBack,
     C::kTier,
     {{{"region", A::kRegion},
       {"first_slot", A::kNumber},
       {"slots", A::kNumber},
       {"bytes", A::kBytes},
       {"begin", A::kTime},
       {"end", A::kTime}}}},
    {T::kPlacement,
     C::kPlacement,
     {{{"granules_per_layer", A::kNumber},
       {"ring_slots", A::kNumber},
       {"evicted_granules", A::kNumber},
       {"evicted_bytes", A::kBytes},
       {"stripes", A::kNumber},
       {"ahead", A::kBytes}}}},
    {T::kTransition,
     C::kTransition,
     {{{"step", A::kNumber},
       {"granules_per_layer", A::kNumber},
       {"ring_slots", A::kNumber},
       {"bytes", A::kBytes},
       {"stripes", A::kNumber},
       {"ahead", A::kBytes}}}},
    {T::kCopyFailed, C::kNone, {}},
    {T::kKvAlloc,
     C::kNone,
     {{{"sequence", A::kSequence}, {"block", A::kNumber}, {"count", A::kNumber}}}},
    {T::kKvFree,
     C::kNone,
     {{{"sequence", A::kSequence},
       {"block", A::kNumber},
       {"count", A::kNumber},
       {"cached", A::kNumber}}}},
    {T::kKvEvict, C::kNone, {{{"block", A::kNumber}, {"count", A::kNumber}, {"to", A::kTier}}}},
    {T::kKvHit,
     C::kNone,
     {{{"sequence", A::kSequence},
       {"blocks", A::kNumber},
       {"tier", A::kTier},
       {"block", A::kNumber},
       {"from_cache", A::kNumber}}}},
    {T::kKvMove, C::kNone, {{{"from", A::kNumber}, {"to", A::kNumber}}}},
    {T::kKvCapacity,
     C::kNone,
     {{{"block", A::kNumber},
       {"count", A::kNumber},
       {"mapped", A::kNumber},
       {"capacity", A::kNumber}}}},
    {T::kPromptBlocks,
     C::kNone,
     {{{"sequence", A::kSequence},
       {"block", A::kNumber},
       {"first", A::kFingerprint},
       {"second", A::kFingerprint},
       {"third", A::kFingerprint},
       {"fourth", A::kFingerprint}}}},
    {T::kSnapshotBegin, C::kNone, {}},
    {T::kSnapshotEnd, C::kNone, {}},
    {T::kStepBegin,
     C::kStepKind,
     {{{"step", A::kNumber},
       {"sequences", A::kNumber},
       {"tokens", A::kNumber},
       {"prompt_tokens", A::kNumber},
       {"context_tokens", A::kNumber}}}},
    {T::kStepEnd,
     C::kStepKind,
     {{{"step", A::kNumber},
       {"sequences", A::kNumber},
       {"tokens", A::kNumber},
       {"duration", A::kDuration},
       {"stall", A::kDuration},
       {"streamed", A::kBytes}}}},
    {T::kStepFailed,
     C::kStepKind,
     {{{"step", A::kNumber}, {"status", A::kNumber}, {"duration", A::kDuration}}}},
    {T::kDeviceStep,
     C::kStepKind,
     {{{"step", A::kNumber}, {"begin", A::kTime}, {"end", A::kTime}, {"error", A::kDuration}}}},
    {T::kQueue,
     C::kNone,
     {{{"running", A::kNumber},
       {"waiting", A::kNumber},
       {"kv_used", A::kNumber},
       {"kv_cached", A::kNumber},
       {"kv_free", A::kNumber},
       {"capacity", A::kNumber}}}},
    {T::kRequest,
     C::kRequestEvent,
     {{{"request", A::kNumber},
       {"prompt_tokens", A::kNumber},
       {"cached_tokens", A::kNumber},
       {"output_tokens", A::kNumber},
       {"preemptions", A::kNumber},
       {"max_tokens", A::kNumber}}}},
    {T::kLink,
     C::kLinkTrouble,
     {{{"tier", A::kTier},
       {"measured", A::kBytes},
       {"expected", A::kBytes},
       {"backoff", A::kDuration}}}},
    {T::kPolicyDecision,
     C::kPlacement,
     {{{"decision", A::kNumber},
       {"wanted", A::kNumber},
       {"before", A::kNumber},
       {"clipped", A::kNumber},
       {"ring_slots", A::kNumber},
       {"reason", A::kReason}}}},
    {T::kPressure, C::kPressureLevel, {{{"level", A::kNumber}, {"free", A::kNumber}}}},
    {T::kLoan,
     C::kLoanState,
     {{{"loan", A::kNumber},
       {"lender", A::kOwner},
       {"borrower", A::kOwner},
       {"granules", A::kNumber}}}},
    {T::kCommitment, C::kCommitment, {{{"granules", A::kSigned}, {"committed", A::kNumber}}}},
    {T::kPolicyInput,
     C::kNone,
     {{{"decision", A::kNumber},
       {"waiting", A::kNumber},
       {"expected_blocks", A::kNumber},
       {"mapped_blocks", A::kNumber},
       {"step", A::kDuration},
       {"stall", A::kDuration}}}},
    {T::kDrop, C::kNone, {{{"lost", A::kNumber}, {"lost_in_all", A::kNumber}}}},
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
constexpr std::string_view kStepKinds[] = {"serving", "calibration"};
constexpr std::string_view kPressures[] = {"none", "free-granules", "cached", "full"};
constexpr std::string_view kCommitments[] = {"taken", "allocated"};
constexpr std::string_view kTransitions[] = {"copies-only", "moves"};
constexpr std::string_view kLinkTroubles[] = {"slow",      "held",    "lost",  "probe-failed",
                                              "recovered", "refused", "reread"};
constexpr std::string_view kPlacements[] = {"stripe", "layer", "in_place"};

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
    if (TraceTypeName(t.type) == name) return t.type;
  }
  return std::nullopt;
}

std::string UnknownType(std::string_view name) {
  std::string text = "no record type is called \"" + std::string(name) + "\"; there are:";
  for (const TypeInfo& t : kTypes) text += " " + std::string(TraceTypeName(t.type));
  return text;
}

std::string CauseName(CauseKind kind, uint8_t cause) {
  switch (kind) {
    case C::kNone: return "";
    case C::kTier: return NameIn(kTiers, cause);
    case C::kRemapCause: return NameIn(kRemaps, cause);
    case C::kFaultCause: return NameIn(kFaults, cause);
    case C::kPlacement: return NameIn(kPlacements, cause);
    case C::kTransition: return NameIn(kTransitions, cause);
    case C::kRequestEvent: return NameIn(kRequests, cause);
    case C::kStepKind: return NameIn(kStepKinds, cause);
    case C::kPressureLevel: return NameIn(kPressures, cause);
    case C::kCommitment: return NameIn(kCommitments, cause);
    case C::kLoanState: return NameIn(kLoans, cause);
    case C::kLinkTrouble: return NameIn(kLinkTroubles, cause);
  }
  return "?";
}

std::string TierName(uint64_t tier) {
  if (tier == kTraceNoTier) return "none";
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
