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
  kFaultMajor = 14,  // gate, step, chunk, waited_ns                     cause: FaultCause
  kFaultMinor = 15,  // gate, step, chunk, waited_ns                     cause: FaultCause
  kCopy = 16,        // chunk, region, first slot, bytes, begin_ns, end_ns: one stripe into its ring
                     // slot                                            cause: source tier
  kWriteBack = 17,   // region, first slot, slots, bytes, begin_ns, end_ns  cause: target tier
  kPlacement = 18,   // granules a layer evicted, ring slots, evicted granules, evicted bytes,
                     // stripes a step                                 cause: Placement
  // --- KV cache ----------------------------------------------------------------------------------
  kKvAlloc = 20,  // sequence, block, count
  kKvFree = 21,   // sequence, block, count
  kKvEvict = 22,  // block, count, to tier
  kKvHit = 23,    // sequence, blocks, tier
  // --- Engine ------------------------------------------------------------------------------------
  kStepBegin = 30,   // step, sequences, tokens, of them prompt tokens, context tokens
  kStepEnd = 31,     // step, sequences, tokens, duration_ns, stall_ns, bytes streamed
  kStepFailed = 32,  // step, status code, duration_ns
  kQueue = 33,       // running, waiting, KV blocks used, cached, free
  kRequest = 34,     // request, prompt tokens, cached tokens, output tokens, preemptions
                     //                                                cause: RequestEvent
  // --- Policy ------------------------------------------------------------------------------------
  kPolicyDecision =
      40,             // decision, granules a layer wanted, granules a layer before, 1 if clipped,
                      // ring slots wanted, index of the reason in the metadata's "reasons"
  kPolicyInput = 44,  // decision, waiting, expected blocks, mapped blocks, step_ns, stall_ns a step
  kPressure = 41,     // level, free granules
  kLoan = 42,         // loan, lender, borrower, granules                   cause: LoanState
  kCommitment = 43,   // granules (two's complement: negative is a refund), committed after
  // --- The trace itself --------------------------------------------------------------------------
  kDrop = 60,  // records lost right before this one on this thread, lost in all on this thread
};
inline constexpr unsigned kTraceTypeLimit = 64;  // types fit a 64-bit subscription mask

// Why a gate was reached before its stripe.
enum class FaultCause : uint8_t {
  kUnknown = 0,
  kNotStarted,    // its copy had not been submitted: the ring was full or the window too small
  kStillCopying,  // the link was busy with it or with stripes before it
  kLateCopy,      // the copy took far longer than its bytes and the link's rate explain
  kRepair,        // the copy had failed or was corrupt, and was made again
  kNewPlan,       // the first round after a change of plan
};

enum class RequestEvent : uint8_t {
  kUnknown = 0,
  kAdded,
  kScheduled,
  kFirstToken,
  kPreempted,
  kFinished,
  kCancelled,
  kFailed,
};

struct TraceRecord {
  uint64_t time_ns = 0;  // the tracer's clock: monotonic; virtual in simulation
  uint16_t type = 0;     // TraceType
  uint8_t cause = 0;     // per type, see above
  uint8_t reserved = 0;
  uint32_t thread = 0;  // small number the tracer gave to the thread
  uint64_t args[6] = {};
};
static_assert(sizeof(TraceRecord) == 64, "records are 64 bytes, on every machine");

// A trace file: TraceFileHeader, |meta_bytes| of UTF-8 JSON (what the numbers mean: program, host,
// device, model, granule size, pools, owners, regions with their layers, gates with their names,
// link peaks; docs/tracing.md lists the keys), zeros up to a multiple of 64, then blocks: a
// TraceBlockHeader and its records. A file that ends inside a block is read up to there. The JSON
// may come again, grown, at the end: see |tail_meta_offset|.
inline constexpr char kTraceFileMagic[8] = {'w', 'e', 'i', 'r', 't', 'r', 'c', '\n'};
inline constexpr uint32_t kTraceBlockMagic = 0x4b4c4257;  // "WBLK"

struct TraceFileHeader {
  char magic[8] = {};
  uint32_t version = kTraceVersion;
  uint32_t record_bytes = sizeof(TraceRecord);
  uint64_t start_ns = 0;       // the records' clock when recording began
  uint64_t start_unix_ns = 0;  // the same moment of the wall clock
  uint64_t mask = 0;           // types subscribed to, bit per TraceType
  uint32_t meta_bytes = 0;
  uint32_t tail_meta_bytes = 0;
  uint64_t tail_meta_offset = 0;  // 0: none (also when the recorder was killed)
  uint64_t reserved = 0;
};
static_assert(sizeof(TraceFileHeader) == 64);

struct TraceBlockHeader {
  uint32_t magic = kTraceBlockMagic;
  uint32_t records = 0;
  uint64_t lost = 0;      // records lost by the rings since the last block, over all threads
  uint64_t checksum = 0;  // XXH3-64 of the records' bytes
  uint64_t reserved[5] = {};
};
static_assert(sizeof(TraceBlockHeader) == 64);

}  // namespace weir
