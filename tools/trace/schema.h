// The names of everything in a trace: record types, arguments, causes.
//
// One table, used by every command that shows a record; vmm/trace_format.h says what they mean.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "vmm/trace_format.h"

namespace weir::trace_tool {

// What TraceRecord::cause means for a type.
enum class CauseKind : uint8_t {
  kNone,
  kTier,
  kRemapCause,
  kFaultCause,
  kPlacement,
  kTransition,
  kRequestEvent,
  kLoanState,
  kStepKind,
  kPressureLevel,
  kCommitment,
  kLinkTrouble,
};

// How an argument is shown.
enum class ArgKind : uint8_t {
  kNone,  // the type has no such argument
  kNumber,
  kSigned,
  kBytes,
  kDuration,  // nanoseconds
  kTime,      // nanoseconds on the records' clock
  kOwner,
  kGranuleState,
  kTier,
  kGate,
  kRegion,
  kReason,
  kSequence,
  kFingerprint,
};

struct ArgInfo {
  std::string_view name;
  ArgKind kind = ArgKind::kNone;
};

struct TypeInfo {
  TraceType type = TraceType::kNone;  // its name: TraceTypeName()
  CauseKind cause = CauseKind::kNone;
  std::array<ArgInfo, 6> args;
};

// Every type this version knows, by number.
std::span<const TypeInfo> AllTypes();
// nullptr: a type of a later version.
const TypeInfo* FindType(uint16_t type);
std::optional<TraceType> TypeByName(std::string_view name);
// Says that no type is called |name|, and which there are.
std::string UnknownType(std::string_view name);

// "hbm", "evict", "late-copy"...; "?7" for a value this version does not know.
std::string CauseName(CauseKind kind, uint8_t cause);
std::string TierName(uint64_t tier);
std::string GranuleStateName(uint64_t state);
std::string FaultCauseName(uint64_t cause);
std::string RemapCauseName(uint64_t cause);
std::string RequestEventName(uint64_t event);

// Values of the enumerations whose declarations the tool may not include. They are part of the
// format: tests/tools compares them with the code.
inline constexpr uint8_t kTierHbm = 0;
enum GranuleStateValue : uint64_t { kStateFree, kStatePinned, kStateMapped, kStateRetiring };
enum OwnerValue : uint64_t { kOwnerNone, kOwnerWeights, kOwnerRing, kOwnerKv, kOwnerScratch };
enum RemapCauseValue : uint8_t {
  kPlanLoad,
  kPlanEvict,
  kPlanRestore,
  kPlanKvGrow,
  kPlanKvShrink,
  kPlanShutdown,
  kPlanTest
};
inline constexpr uint8_t kPlacementInPlace = 2;
inline constexpr size_t kRemapCauses = 7;
inline constexpr size_t kFaultCauses = 6;

}  // namespace weir::trace_tool
