// The state of a WeightPager and what its sources share. Private to pager/.
//
// Chunk numbers. Chunks are numbered in the endless order in which they are copied: chunk i of a
// pass is |pass_base| + i. `produced` counts chunks copied and `consumed` chunks done with, both in
// that numbering, so both are monotonic for the pager's life. Installing a plan, or giving up a
// pass, skips to a fresh |pass_base| beyond everything queued before.
//
//   queued:    pass_base <= produced <= queued <= pass_base + N + prefix
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <optional>
#include <utility>

#include "pager/weight_pager.h"
#include "vmm/trace_format.h"
#include "vmm/trace_lane.h"

namespace weir {

// What the copies of a traced step leave behind for naming the cause of a fault. Chunk numbers as
// below. Written by the copy stream's host functions, which run in order, unless said.
struct CopyProgress {
  std::atomic<uint64_t> begun{0};  // chunks whose copy has begun
  std::atomic<TimeNs> late_end_ns{0};
  double bytes_per_ns = 0;  // the link's rate; set between steps, or the fastest seen
  bool measured = false;    // set between steps
  // Engine thread's: chunks below this were queued while nobody traced.
  uint64_t untraced_end = 0;
};

// A copy with stamps around it (device gates), of which the trace has not been told.
struct StampedCopy {
  uint64_t number = 0;
  uint64_t index = 0;  // in its pass
  StripeChunk chunk;
  TimeNs queued_ns = 0;
  uint64_t after = 0;  // the chunk it waited for: the previous user of its ring granules
  StampId begin, end;  // |end| is invalid when queueing it failed
};

// When a copy ran, in the driver's clock.
struct CopySpan {
  TimeNs begin_ns = 0, end_ns = 0;
};

// What a gate found; |begun| is read after |produced|, so that a copy which ends in between looks
// under way, not as if it had not begun.
struct GateView {
  TimeNs now_ns = 0;
  uint64_t produced = 0;
  uint64_t begun = 0;
  uint64_t repairs = 0;
};

enum class WaitOutcome : uint8_t { kArrived, kStreamFailed, kTimedOut };

// A half-open run of slots of the weight region.
struct WeightSlotRun {
  uint32_t first = 0;
  uint32_t count = 0;
};

// How to get from one plan's mappings to another's.
struct WeightTransition {
  RemapPlan remap;
  std::vector<std::pair<GranuleId, Owner>> owner_changes;  // applied after the commit
  std::vector<WeightSlotRun> evicted;                      // were home, are away
  std::vector<WeightSlotRun> restored;                     // were away, are home: to be filled
  uint32_t slots_changed = 0;
};

struct WeightPager::Impl {
  enum class State : uint8_t { kLoading, kServing, kInStep, kBroken };
  static constexpr uint32_t kAttempts = 3;  // at a copy, before its error is passed on

  Impl(AddressSpace& s, BackingStore* b, const WeightPagerOptions& o)
      : space(s), driver(s.driver()), backing(b), options(o) {}

  AddressSpace& space;
  Driver& driver;
  BackingStore* backing;
  WeightPagerOptions options;
  State state = State::kLoading;

  RegionId weights;
  RegionId ring;  // ring granule i lies in its slot i; valid iff there is a backing store
  uint64_t granule_bytes = 0;

  StreamId copy_stream;
  EventId last_copy;                  // recorded after the last chunk queued
  std::deque<EventId> passes_copied;  // by step under way: recorded after its last chunk
  StreamId repair_stream;             // made when first needed; never waits for a counter
  VirtAddr produced = 0;
  VirtAddr consumed = 0;
  // With device gates the copy stream writes and waits for these, and the two above do not exist: a
  // second write a chunk would cost the link more than it tells the host.
  VirtAddr gate_produced = 0;
  VirtAddr gate_consumed = 0;

  // By gate: its chunk, or -1 when it is open. Changes between steps, never moves (S1).
  std::vector<int32_t> gate_table;
  uint64_t pass_base = 0;        // of the oldest step under way, or of the next one
  uint32_t under_way = 0;        // steps begun and not ended
  uint64_t queued = 0;           // the next chunk to be put on the stream
  bool restart_pending = false;  // a pass was given up and the stream has not come to rest yet
  // A pass was queued, in part or whole, whose step did not begin: its copies may wait for readers
  // that never come. Those before it are good.
  bool queued_in_vain = false;
  bool first_round = true;  // no step has ended since the plan changed
  CopyProgress progress;
  std::deque<StampedCopy> stamped;  // by number; engine thread's, like all of device gates
  TraceLane copy_lane, gate_lane;
  // When the gate of the last chunk with that index was passed, and its number; of this plan.
  struct GatePassed {
    uint64_t number = 0;
    TimeNs time_ns = 0;
  };
  std::vector<GatePassed> gates_passed;
  uint32_t passes_given_up = 0;  // steps that failed since the last fresh pass

  // The step under way; written by the compute thread, read after it has ended.
  struct Step {
    std::vector<uint8_t> passed;  // by chunk
    uint32_t departed = 0;        // chunks, in order
    WeightPagerStats stats;       // only the counts that gates make
  };
  Step step;

  // Loading.
  std::vector<WeightSegment> covered;    // the layout's segments in address order, merged
  std::map<uint64_t, uint64_t> written;  // begin -> end of what has been written
  std::vector<int32_t> ring_of_slot;     // by weight slot: its ring granule, or -1: home
  std::vector<uint64_t> sums;            // by weight slot, xxh3 of what may leave; if verifying
  std::vector<std::byte> scratch;        // one granule, for drivers that are not host-addressable

  bool armed(const EvictionPlan& plan) const { return !plan.chunks().empty(); }
  VirtAddr SlotAddress(uint32_t slot) const {
    return space.region(weights).base + uint64_t{slot} * granule_bytes;
  }
  bool MayLeave(uint32_t slot) const;  // whether segments cover all of it

  // Calls |fn|(begin, end) for each run of resident slots in [offset, end).
  template <typename Fn>
  Status ForResident(uint64_t offset, uint64_t end, Fn fn) const;
  template <typename Fn>
  Status ForCovered(uint64_t offset, uint64_t end, Fn fn) const;

  // --- weight_pager.cc: the copy stream
  Status MakeCounters();
  // Nothing runs that reads or writes them.
  void SetConsumed(uint64_t value);
  void SetProduced(uint64_t value);
  Status CheckServing() const;
  Status QueueUpTo(const EvictionPlan& plan, uint64_t end, WeightPagerStats* stats);
  Status QueueChunk(const EvictionPlan& plan, uint64_t number);
  void OnCopied(const StripeChunk& chunk, uint64_t index, TimeNs begin_ns);
  // Notes whether the copy was late, and how fast the link is.
  void JudgeCopy(uint64_t bytes, CopySpan span);
  // What `consumed` must have reached before chunk |number| may be copied.
  static uint64_t RequiredConsumed(const EvictionPlan& plan, uint64_t pass_base, uint64_t number);
  WaitOutcome AwaitProduced(uint64_t at_least, Status* stream_error);
  // Destroys the (failed) copy stream and makes a new one.
  Status ReplaceStream();
  // No step is under way. Copies queued so far have ended; the stream works (a failed one is
  // replaced, and the pass is begun afresh).
  Status BringToRest();
  Status AwaitRest();
  // Begins a fresh pass of |plan| with its prefix; the stream must be at rest.
  void Restart(const EvictionPlan& plan, WeightPagerStats* stats);
  void TracePlacement(const EvictionPlan& plan, uint64_t ahead_bytes) const;

  // --- weight_pager_gates.cc
  std::string DescribeChunk(const EvictionPlan& plan, uint32_t segments, uint32_t chunk) const;
  Status WaitForChunk(const EvictionPlan& plan, uint32_t chunk);
  FaultCause CauseOfFault(const GateView& before, uint64_t number) const;
  Status RepairFrom(const EvictionPlan& plan, uint64_t number);
  Status VerifyChunk(const EvictionPlan& plan, uint32_t chunk);
  Result<bool> SumsMatch(uint32_t first, uint32_t count);
  Result<uint64_t> SumOfSlot(uint32_t slot);
  // Sums of everything that may leave, from the backing copy; resident slots must agree with it.
  Status ComputeSums();

  // --- weight_pager_device_trace.cc: with device gates
  Status StampBegin(const EvictionPlan& plan, uint64_t number);
  Status StampEnd();
  // Tells of the gates of step |step|, of which kernels found |log|, and of the copies behind them.
  void TraceDeviceStep(const EvictionPlan& plan, const DeviceGateLog& log, uint64_t step);
  // The stream is at rest: tells of the copies whose gates nobody passed.
  void TraceCopiesAtRest();
  void DropStamps(StampedCopy& copy);
  std::optional<CopySpan> TakeSpan(StampedCopy& copy, TimeNs known_end_ns, uint64_t error_ns);
  void TraceCopy(const StampedCopy& copy, CopySpan span);

  // --- weight_pager_remap.cc
  WeightTransition MakeTransition(const std::vector<int32_t>& from, uint32_t from_ring,
                                  const std::vector<int32_t>& to, uint32_t to_ring) const;
  Status CommitTransition(WeightTransition& t, WeightPagerStats* stats);
  Status Fill(const std::vector<WeightSlotRun>& runs);
  Status FillOnce(const std::vector<WeightSlotRun>& runs);
};

// By weight slot: the ring granule that stands in for it under |plan|, or -1.
std::vector<int32_t> RingOfSlots(const EvictionPlan& plan, size_t slots);

}  // namespace weir
