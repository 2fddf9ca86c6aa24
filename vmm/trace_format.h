// The binary trace: what a record means. Tools include this file and nothing else of weir.
//
// A trace is a sequence of 64-byte little-endian records. Order is exact within a thread; across
// threads it is that of |time_ns|. What a device did by itself (gates and copies of a GPU) has
// threads of its own and is told of later, at its times in the records' clock. Arguments are 64-bit
// and named below per type, in order; unused ones are 0. A reader skips types it does not know: new
// types are appended, existing ones never change their meaning without a new kTraceVersion.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace weir {

inline constexpr uint32_t kTraceVersion = 1;

enum class TraceType : uint16_t {
  kNone = 0,
  // --- Memory ------------------------------------------------------------------------------------
  // Granules are numbered by pool, and |cause| of the records about one is the tier of its pool;
  // but those of kForeign are numbered by their place in the backing copy.
  kMap = 1,           // region, slot, granule, MapKind, owner                   cause: Tier
  kUnmap = 2,         // region, slot, granule                                   cause: Tier
  kCreate = 3,        // granule, bytes                                          cause: Tier
  kRelease = 4,       // granule, bytes                                          cause: Tier
  kPlanBegin = 5,     // plan, operations                                       cause: RemapCause
  kPlanCommit = 6,    // plan, granules taken, granules freed, duration_ns      cause
  kPlanRollback = 7,  // plan, status code, 1 if undoing failed, duration_ns    cause
  kGranuleState = 8,  // granule, from state, to state, owner                    cause: Tier
  kOwner = 9,         // granule, from owner, to owner: handed over in use       cause: Tier
  // --- Weight paging -----------------------------------------------------------------------------
  kEvict = 10,       // region, first slot, slots: a ring granule or the backing copy stands in
  kFill = 11,        // region, first slot, slots, bytes, begin_ns, end_ns     cause: source tier
  kGateArrive = 12,  // gate, step, chunk
  kGatePass = 13,    // gate, step, chunk, waited_ns
  kFaultMajor = 14,  // gate, step, chunk, waited_ns                     cause: FaultCause
  kFaultMinor = 15,  // gate, step, chunk, waited_ns                     cause: FaultCause
                     // (reserved: no pager of this version maps at a gate)
  kCopy = 16,        // chunk, region, first slot, bytes, begin_ns, end_ns: one stripe into its ring
                     // slot; what of it has come home behind the gate of a kTransition, in place,
                     // and then there is no kFill                      cause: source tier
  kWriteBack = 17,   // region, first slot, slots, bytes, begin_ns, end_ns  cause: target tier
                     // (reserved: weights are clean, and KV has no lower tier in this version)
  kPlacement = 18,   // granules a layer evicted, ring slots, evicted granules, evicted bytes,
                     // stripes a step, bytes of the stripes copied ahead of the first step
                     //                                                 cause: Placement
                     // A fresh round of copies begins. Until the next one the bytes of kCopy are
                     // (evicted bytes) * (steps that ended) + (bytes copied ahead); none where
                     // they are read in place. To the round belong the steps that begin in it and
                     // those that have begun, but for the step of a kTransition: that one has
                     // ended.
  kTransition = 50,  // step, granules a layer evicted afterwards, ring slots, bytes a step, stripes
                     // a step, bytes of the stripes copied ahead of each step but the first
                     //                                                 cause: TransitionKind
                     // A fresh round of copies begins with |step|, which is under way and whose
                     // gates are held closed: each opens when its copy of this round has come. The
                     // steps before it have ended on the device and the copies of their round have
                     // too, with those that were made ahead in vain. Bytes and stripes are of all
                     // that is away before or after. Until the next round the bytes of kCopy are
                     // (bytes a step) * (steps that ended) + (bytes copied ahead, if two or more
                     // ended), less what kStripeStays tells of.
  kStripeStays = 63,  // chunk, region, first slot, slots: behind the gate of a kTransition's step
                      // that moves, a part of a stripe, from its beginning, or all of it, was to
                      // leave and stays at home: it is not copied
  kCopyFailed = 19,  // The copy stream failed and was made anew, or took no more copies: stripes of
                     // this round were lost and are copied again, so that its bytes do not add up
  // --- KV cache ----------------------------------------------------------------------------------
  // A block is free, used (by one or more sequences) or cached. Sequence numbers are requests';
  // kTraceNoSequence: not of a request. Runs of |count| blocks with consecutive numbers.
  kKvAlloc = 20,     // sequence, block, count: free -> used. A cached victim is kKvEvict'ed first
  kKvFree = 21,      // sequence, block, count, of them now cached: the last holder let go
  kKvEvict = 22,     // block, count, to tier: cached -> free. kTraceNoTier: forgotten
  kKvHit = 23,       // sequence, blocks, tier, block, of them cached -> used (the rest are shared)
  kKvMove = 24,      // from, to: a used block's content and holders; |to| was free, |from| is now
  kKvCapacity = 25,  // block, count, 1: mapped, free from now on; 0: free ones unmapped; capacity
  kPromptBlocks =
      26,  // sequence, block, up to four fingerprints: of the prompt's whole blocks from
           // |block| on, each of all tokens up to the block's end; 0: no more. Equal
           // ones, equal beginnings. Keyed anew in each process, so that no prompt can
           // be guessed from them. With prefix caching, when a request is added
  // --- Engine ------------------------------------------------------------------------------------
  // Steps have the number that gates name them by: rounds of the weight pager. cause: StepKind
  kStepBegin = 30,   // step, sequences, tokens, of them prompt tokens, context tokens
  kStepEnd = 31,     // step, sequences, tokens, duration_ns, stall_ns, bytes streamed
  kStepFailed = 32,  // step, status code, duration_ns
  kQueue = 33,       // running, waiting, KV blocks used, cached, free, capacity: after each step
  kRequest = 34,     // request, prompt tokens, cached tokens, output tokens, preemptions,
                     // most output tokens (0: not told)               cause: RequestEvent
  kDeviceStep =
      35,      // step, begin_ns, end_ns, error_ns: when it ran on its device; the times are
               // within |error_ns| of the records' clock. Before its kStepEnd  cause: StepKind
  kLink = 36,  // tier of the backing copy, measured and expected bytes a second (0: not known),
               // back-off in ns until it is probed again                cause: LinkTrouble
  // --- Policy ------------------------------------------------------------------------------------
  kPolicyDecision =
      40,             // decision, granules a layer wanted, granules a layer before, 1 if clipped,
                      // ring slots wanted, index of the reason in the metadata's "reasons";
                      // wanted and before are whole layers where the cause says so, before is 0
                      // where the other placement was in force              cause: Placement
  kPolicyInput = 44,  // decision, waiting, expected blocks, mapped blocks, step_ns, stall_ns a step
                      // A decision is recorded when it moves the border or is clipped, and every
                      // 64th time in any case.
  kPressure = 41,     // level, free granules: at a change of level           cause: PressureLevel
  kLoan = 42,         // loan, lender, borrower, granules                   cause: LoanState
  kCommitment = 43,   // granules (two's complement: negative is a refund, or an allocation from the
                      // commitment), committed after                        cause: 1 if allocated
  // --- The trace itself --------------------------------------------------------------------------
  kDrop = 60,  // records lost right before this one on this thread, lost in all on this thread
  // When a running process is attached to, its state is told first, as the history that would have
  // led to it: kCreate, kGranuleState, kMap inside a plan 0, kKvCapacity, kKvAlloc, kKvFree,
  // kRequest, kPlacement, and kTransition if one is under way. All of it lies between these two, on
  // one thread, before the first step.
  kSnapshotBegin = 61,
  kSnapshotEnd = 62,
};
inline constexpr unsigned kTraceTypeLimit = 64;  // types fit a 64-bit subscription mask
inline constexpr uint64_t kTraceNoSequence = ~uint64_t{0};
inline constexpr uint64_t kTraceNoTier = 255;

constexpr std::string_view TraceTypeName(TraceType type) {
  switch (type) {
    case TraceType::kNone: return "none";
    case TraceType::kMap: return "map";
    case TraceType::kUnmap: return "unmap";
    case TraceType::kCreate: return "create";
    case TraceType::kRelease: return "release";
    case TraceType::kPlanBegin: return "plan_begin";
    case TraceType::kPlanCommit: return "plan_commit";
    case TraceType::kPlanRollback: return "plan_rollback";
    case TraceType::kGranuleState: return "granule_state";
    case TraceType::kOwner: return "owner";
    case TraceType::kEvict: return "evict";
    case TraceType::kFill: return "fill";
    case TraceType::kGateArrive: return "gate_arrive";
    case TraceType::kGatePass: return "gate_pass";
    case TraceType::kFaultMajor: return "fault_major";
    case TraceType::kFaultMinor: return "fault_minor";
    case TraceType::kCopy: return "copy";
    case TraceType::kWriteBack: return "write_back";
    case TraceType::kPlacement: return "placement";
    case TraceType::kTransition: return "transition";
    case TraceType::kStripeStays: return "stripe_stays";
    case TraceType::kCopyFailed: return "copy_failed";
    case TraceType::kKvAlloc: return "kv_alloc";
    case TraceType::kKvFree: return "kv_free";
    case TraceType::kKvEvict: return "kv_evict";
    case TraceType::kKvHit: return "kv_hit";
    case TraceType::kKvMove: return "kv_move";
    case TraceType::kKvCapacity: return "kv_capacity";
    case TraceType::kPromptBlocks: return "prompt_blocks";
    case TraceType::kStepBegin: return "step_begin";
    case TraceType::kStepEnd: return "step_end";
    case TraceType::kStepFailed: return "step_failed";
    case TraceType::kQueue: return "queue";
    case TraceType::kRequest: return "request";
    case TraceType::kDeviceStep: return "device_step";
    case TraceType::kLink: return "link";
    case TraceType::kPolicyDecision: return "policy_decision";
    case TraceType::kPolicyInput: return "policy_input";
    case TraceType::kPressure: return "pressure";
    case TraceType::kLoan: return "loan";
    case TraceType::kCommitment: return "commitment";
    case TraceType::kDrop: return "drop";
    case TraceType::kSnapshotBegin: return "snapshot_begin";
    case TraceType::kSnapshotEnd: return "snapshot_end";
  }
  return "";
}

// Which mapping of its granule a kMap made.
enum class MapKind : uint8_t {
  kOnly,   // the first
  kAlias,  // a second one, declared
  // Of the backing copy, at the address of its weights: the granule is no pool's, and neither
  // created nor released in a trace. Read only.
  kForeign,
};

// Why a gate was reached before its stripe.
enum class FaultCause : uint8_t {
  kUnknown = 0,
  kNotStarted,    // its copy had not been submitted: the ring was full or the window too small
  kStillCopying,  // the link was busy with it or with stripes before it
  kLateCopy,      // the copy took far longer than its bytes and the link's rate explain
  kRepair,        // the copy had failed or was corrupt, and was made again
  kNewPlan,       // the first round after a change of plan
};
// When several apply: kRepair, kLateCopy, kNewPlan, then what the copy stream was doing when the
// gate was reached: kStillCopying if a copy was under way, else kNotStarted.

// What happens behind the gates that a step holds closed.
enum class TransitionKind : uint8_t {
  kCopiesOnly,  // the step has other stripes than the one before; no mapping of weights changes
  kMoves,       // until the step has ended weights are remapped, each before its stripe's copy
};

enum class StepKind : uint8_t { kServing, kCalibration };

// What is short, after a step.
enum class PressureLevel : uint8_t {
  kNone,          // there are free KV blocks
  kFreeGranules,  // no free KV block, but granules to make some of
  kCached,        // new blocks cost cached ones
  kFull,          // every block is used: who needs one preempts or waits
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

// What became of the backing copy of the weights, or of the link to it.
enum class LinkTrouble : uint8_t {
  kSlow,         // steps stood at gates for longer than such a link explains
  kHeld,         // copies failed: weights came home, and stay
  kLost,         // copies failed, and weights that are away cannot come home: nothing runs
  kProbeFailed,  // tried again in vain
  kRecovered,
  kRefused,  // at start there was no backing copy to be had: weights stay for good
  kReread,   // weights that are home now were read from where they were loaded from: no copy could
             // be
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

// --- The file
// --------------------------------------------------------------------------------------
//
// TraceFileHeader, |meta_bytes| of UTF-8 JSON (below; may end in spaces, so that it can grow in
// place), zeros up to a multiple of 64, then blocks: a TraceBlockHeader and its records. A file
// that ends inside a block is read up to there. The JSON may come again, grown, at the end: see
// |tail_meta_offset|. Readers ignore keys they do not know; any key may be missing.
//
//   program, version, commit, command   strings
//   pid, host                           of the recorded process
//   device, driver, model               strings
//   granule_bytes                       also the size of a slot
//   pools     [{tier, granules}]        tier: index into "tiers"
//   tiers, owners, states, remap_causes, placements     names, by number
//   regions   [{id, name, slots, bytes}]
//   weights   {region, layers: [[{offset, bytes} by segment] by layer]}
//             gate g is layer g / segments, segment g % segments
//   gates     [name]                    by number: "layer 3 gate_up"
//   segments  [name]                    by number within a layer
//   ring      {slots, region}
//   kv        {region, block_bytes, block_tokens, blocks_per_extent, granules_per_extent}
//             block b lies in extent b / blocks_per_extent
//   link      {bytes_per_ns}            backing store to device, measured at start
//   policy    {name, parameters: {}}
//   reasons   [string]                  of policy decisions, digits as '#'
//   scheduler {max_batched_tokens, prefix_caching, steps_under_way: most at once}
//   clocks    {step_error_ns, stamp_error_ns}  at the start: how far the times of gates and device
//             steps, and of copies, may be off the records' clock; none: they are of it
//   scratch_bytes                       step buffers
//   max_num_seqs, max_model_len
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

// Readers need memory for a whole block: more is taken for damage. 16 MiB.
inline constexpr uint32_t kMostTraceBlockRecords = 1U << 18;

struct TraceBlockHeader {
  uint32_t magic = kTraceBlockMagic;
  uint32_t records = 0;   // at most kMostTraceBlockRecords
  uint64_t lost = 0;      // records lost by the rings since the last block, over all threads
  uint64_t checksum = 0;  // XXH3-64 of the records' bytes
  uint64_t reserved[5] = {};
};
static_assert(sizeof(TraceBlockHeader) == 64);

// --- The segment: rings of a running process in shared memory
// ----------------------------------------
//
// A memfd named kTraceSegmentName, mode 0600, found under /proc/<pid>/fd: gone with its process,
// and not to be opened by another user. Layout: TraceSegmentHeader, TraceRing[ring_count] at
// |rings_offset|, the records of ring i at |records_offset| + i * ring_records * 64, the metadata
// JSON at |meta_offset|. All numbers but the atomics are fixed before the magic is written.
//
// One consumer. It takes the lease by compare-and-swap on |lease| (0, or the lease of a process
// that is dead or whose heartbeat is older than kTraceLeaseNs), then sets every tail to its ring's
// head, adds 1 to |session|, stores |wanted_mask| and beats at least every kTraceLeaseNs / 4. The
// process looks at step boundaries, tells its state (kSnapshotBegin) and copies the mask into
// |active_mask|. Before every pass over the rings the consumer looks whether the lease is still its
// own. When it ends it stores 0 to |wanted_mask|, waits until |active_mask| is 0, drains once more,
// and stores 0 to |lease|. A lease that has run out is taken back by the process: mask 0.
//
// Ring: head and tail only grow; record n is at n % ring_records. The producer stores records, then
// head (release); the consumer loads head (acquire), copies, then stores tail (release). A full
// ring loses the new record and adds 1 to |lost|; it never blocks.
inline constexpr char kTraceSegmentName[] = "weir-trace";
inline constexpr char kTraceSegmentMagic[8] = {'w', 'e', 'i', 'r', 's', 'e', 'g', '\n'};
inline constexpr uint64_t kTraceLeaseNs = 2'000'000'000;

struct TraceRing {
  alignas(64) std::atomic<uint64_t> head;  // producer's
  std::atomic<uint64_t> lost;              // in this session
  std::atomic<uint32_t> session;           // that |lost| counts for
  std::atomic<uint32_t> taken;             // a thread writes to it
  uint64_t known_tail;                     // producer's own: as it last saw |tail|
  uint64_t unreported;                     // producer's own: lost since the last kDrop
  alignas(64) std::atomic<uint64_t> tail;  // consumer's
};
static_assert(sizeof(TraceRing) == 128);

struct TraceSegmentHeader {
  char magic[8];
  uint32_t version;  // kTraceVersion
  uint32_t record_bytes;
  uint64_t segment_bytes;
  uint32_t pid;
  uint32_t ring_count;
  uint32_t ring_records;  // a power of two
  uint32_t meta_capacity;
  uint64_t rings_offset;
  uint64_t records_offset;
  uint64_t meta_offset;
  // The process's.
  alignas(64) std::atomic<uint64_t> active_mask;  // types that are being emitted
  std::atomic<uint64_t> lost_without_ring;        // events of threads that found every ring taken
  std::atomic<uint32_t> rings_used;               // rings above this were never taken
  std::atomic<uint32_t> closed;                   // 1: the process has ended its tracing
  std::atomic<uint64_t> meta_sequence;            // odd while the JSON is being written
  std::atomic<uint32_t> meta_bytes;
  // The consumer's.
  alignas(64) std::atomic<uint64_t> lease;  // pid in the low half, any number above; 0: nobody
  std::atomic<uint64_t> heartbeat_ns;       // CLOCK_MONOTONIC
  std::atomic<uint64_t> wanted_mask;
  std::atomic<uint32_t> session;
};
static_assert(sizeof(TraceSegmentHeader) == 192);
static_assert(std::atomic<uint64_t>::is_always_lock_free, "shared between processes");

}  // namespace weir
