// The binary trace: what a record means. Tools include this file and nothing else of weir.
//
// A trace is a sequence of 64-byte little-endian records. Order is exact within a thread; across
// threads it is that of |time_ns|. Arguments are 64-bit and named below per type, in order; unused
// ones are 0. A reader skips types it does not know: new types are appended, existing ones never
// change their meaning without a new kTraceVersion.
#pragma once

#include <cstdint>

namespace weir {

inline constexpr uint32_t kTraceVersion = 1;

enum class TraceType : uint16_t {
  kNone = 0,
  // --- Memory ------------------------------------------------------------------------------------
  // Granules are numbered by pool; |cause| of the records about one is the tier of its pool.
  kMap = 1,           // region, slot, granule, 1 if alias, owner                cause: Tier
  kUnmap = 2,         // region, slot, granule                                   cause: Tier
  kCreate = 3,        // granule, bytes                                          cause: Tier
  kRelease = 4,       // granule, bytes                                          cause: Tier
  kPlanBegin = 5,     // plan, operations                                       cause: RemapCause
  kPlanCommit = 6,    // plan, granules taken, granules freed, duration_ns      cause
  kPlanRollback = 7,  // plan, status code, 1 if undoing failed, duration_ns    cause
  kGranuleState = 8,  // granule, from state, to state, owner                    cause: Tier
  // --- Weight paging -----------------------------------------------------------------------------
  kEvict = 10,       // region, first slot, slots
  kFill = 11,        // region, first slot, slots, bytes, begin_ns, end_ns     cause: source tier
  kGateArrive = 12,  // gate, step, chunk
  kGatePass = 13,    // gate, step, chunk, waited_ns
  kFaultMajor = 14,  // gate, step, chunk, waited_ns
  kFaultMinor = 15,  // gate, step, chunk, waited_ns
  // --- KV cache ----------------------------------------------------------------------------------
  kKvAlloc = 20,  // sequence, block, count
  kKvFree = 21,   // sequence, block, count
  kKvEvict = 22,  // block, count, to tier
  kKvHit = 23,    // sequence, blocks, tier
  // --- Engine ------------------------------------------------------------------------------------
  kStepBegin = 30,  // step, sequences, tokens
  kStepEnd = 31,    // step, sequences, tokens, duration_ns
  // --- Policy ------------------------------------------------------------------------------------
  kPolicyDecision = 40,  // decision, granules to evict, granules to restore, 1 if clipped
  kPressure = 41,        // level, free granules
  kLoan = 42,            // loan, lender, borrower, granules                   cause: LoanState
  kCommitment = 43,      // granules (two's complement: negative is a refund), committed after
  // --- The trace itself --------------------------------------------------------------------------
  kDrop = 60,  // records lost right before this one on this thread, lost in all on this thread
};
inline constexpr unsigned kTraceTypeLimit = 64;  // types fit a 64-bit subscription mask

struct TraceRecord {
  uint64_t time_ns = 0;  // the tracer's clock: monotonic; virtual in simulation
  uint16_t type = 0;     // TraceType
  uint8_t cause = 0;     // per type, see above
  uint8_t reserved = 0;
  uint32_t thread = 0;  // small number the tracer gave to the thread
  uint64_t args[6] = {};
};
static_assert(sizeof(TraceRecord) == 64, "records are 64 bytes, on every machine");

}  // namespace weir
