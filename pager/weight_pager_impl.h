// The state of a WeightPager and what its sources share. Private to pager/.
//
// Chunk numbers. Chunks are numbered in the endless order in which they are copied: chunk i of a
// pass is |pass_base| + i. `produced` counts chunks copied and `consumed` chunks done with, both in
// that numbering, so both are monotonic for the pager's life. Installing a plan, or giving up a
// pass, skips to fresh numbers beyond everything queued before.
//
//   base <= produced <= queued <= base + N + prefix, of a pass that is under way
#pragma once

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <memory>
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
  StripeChunk chunk;   // of no slots where the gate opens without a copy
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

using SharedPlan = std::shared_ptr<const EvictionPlan>;

// Sets of bytes as begin -> end, merged.
void Cover(std::map<uint64_t, uint64_t>* written, uint64_t begin, uint64_t end);
// Calls |fn|(begin, end) for each part of [begin, end) that |written| does not cover.
template <typename Fn>
Status ForGaps(const std::map<uint64_t, uint64_t>& written, uint64_t begin, uint64_t end, Fn fn) {
  uint64_t at = begin;
  auto it = written.upper_bound(begin);
  if (it != written.begin() && std::prev(it)->second > begin) at = std::prev(it)->second;
  for (; at < end && it != written.end() && it->first < end; ++it) {
    if (it->first > at) WEIR_TRY(fn(at, it->first));
    at = std::max(at, it->second);
  }
  return at < end ? fn(at, end) : OkStatus();
}

// A half-open run of slots of the weight region.
struct WeightSlotRun {
  uint32_t first = 0;
  uint32_t count = 0;
};

// The copies of one step under way.
struct Pass {
  SharedPlan plan;    // which gates are armed, what is copied; with no chunks there is nothing
  uint64_t base = 0;  // chunk i has the number base + i
  EventId copied;     // recorded behind its last chunk
  // Its copies wait for AdvanceTransition: the pass before it had other chunks, or this one moves.
  bool held = false;
  SharedPlan to;          // moves: what is away once the pass has ended; null: nothing changes
  SharedPlan between;     // what is away then after a move that had no room for some chunks
  uint32_t advanced = 0;  // chunks remapped and queued so far, while held
  TimeNs advancing_since = 0;
  double copying_until = 0;          // what is queued, from there on
  std::vector<SlotPlace> places;     // of |to|, while held
  std::vector<uint32_t> ring_users;  // slots that lie on each ring granule, while held
  bool as_planned = false;           // Impl::AsPlanned, when the first chunk had its turn
  // [chunks + 1]: granules that a chunk and those behind it copy if none of them moves; while held.
  std::vector<uint64_t> copies_from;
  bool moved_some = false;  // chunks have been remapped
  bool left_some = false;   // others would have made the step late: they keep their places
  bool let_go = false;      // void: the gates of the chunks after those opened without a copy
  Status failed;            // the remap that stopped the move; copies go on
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
  enum class State : uint8_t { kLoading, kServing, kInStep, kRefilling, kBroken };
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
  EventId last_copy;       // recorded after the last chunk queued
  StreamId repair_stream;  // made when first needed; never waits for a counter
  VirtAddr produced = 0;
  VirtAddr consumed = 0;
  // With device gates the copy stream writes and waits for these, and the two above do not exist: a
  // second write a chunk would cost the link more than it tells the host.
  VirtAddr gate_produced = 0;
  VirtAddr gate_consumed = 0;

  // What passes copy and arm gates for: all that is away, and what has come home in a pass that has
  // not ended yet. At rest it is the plan in force.
  SharedPlan cover;
  bool settled = true;           // what is away is |cover|, wholly, and that is in force
  SharedPlan heading;            // the next pass begun moves there; null: none does
  Commitment homecoming;         // granules for what |heading| or the pass that moves brings home
  std::deque<Pass> passes;       // by step under way, oldest first
  SharedPlan numbered;           // the plan of the pass that |next_base| is the first number of
  uint64_t next_base = 0;        // of the next pass begun, if it has that plan
  uint64_t queued = 0;           // the next chunk to be put on the stream
  bool restart_pending = false;  // a pass was given up and the stream has not come to rest yet
  // A pass was queued, in part or whole, whose step did not begin: its copies may wait for readers
  // that never come. Those before it are good.
  bool queued_in_vain = false;
  RemapCost remap_cost;
  bool first_round = true;      // no step has ended since the plan changed
  bool streamed_evenly = true;  // WeightPager::streamed_evenly
  CopyProgress progress;
  std::deque<StampedCopy> stamped;  // by number; engine thread's, like all of device gates
  TraceLane copy_lane, gate_lane;
  // When the gate of the last chunk with that index was passed, and its number; of this plan.
  struct GatePassed {
    uint64_t number = 0;
    TimeNs time_ns = 0;
  };
  std::vector<GatePassed> gates_passed;

  // The step under way; written by the compute thread, read after it has ended.
  struct Step {
    std::vector<uint8_t> passed;  // by chunk
    Status copy_error;            // of the stripe that did not come
    uint32_t departed = 0;        // chunks, in order
    WeightPagerStats stats;       // only the counts that gates make
  };
  Step step;
  Status copy_error;  // WeightPager::copy_error

  // Loading.
  Status refused;                      // there is no memory for the backing copy
  std::vector<WeightSegment> covered;  // segments and lookup table in address order, merged
  // begin -> end of what has been written, by loading and by the source when last asked.
  std::map<uint64_t, uint64_t> written;
  std::map<uint64_t, uint64_t> written_again;
  WeightSource source;
  std::vector<WeightRange> refilling;  // what it is being asked for
  std::vector<SlotPlace> place_of_slot;
  std::vector<uint64_t> sums;      // by weight slot, xxh3 of what may leave; if verifying
  std::vector<std::byte> scratch;  // one granule, for drivers that are not host-addressable

  static bool armed(const EvictionPlan& plan) { return !plan.chunks().empty(); }
  // Of the next pass, once those under way have ended as they should.
  const SharedPlan& after() const {
    if (passes.empty()) return cover;
    const Pass& last = passes.back();
    return last.to ? last.to : last.between ? last.between : last.plan;
  }
  VirtAddr SlotAddress(uint32_t slot) const {
    return space.region(weights).base + uint64_t{slot} * granule_bytes;
  }
  // By gate, of the oldest step: its chunk, or -1 when it is open.
  const std::vector<int32_t>& gate_table() const {
    return (passes.empty() ? *cover : *passes.front().plan).chunk_of_gate();
  }
  bool MayLeave(uint32_t slot) const;  // whether segments cover all of it

  // Calls |fn|(begin, end) for each run of resident slots in [offset, end).
  template <typename Fn>
  Status ForResident(uint64_t offset, uint64_t end, Fn fn) const;
  template <typename Fn>
  Status ForCovered(uint64_t offset, uint64_t end, Fn fn) const;

  // --- weight_pager_load.cc
  // Calls |store|(begin, end) for what of [offset, end) has a backing copy.
  template <typename Fn>
  Status StoreCovered(uint64_t offset, uint64_t end, Fn store);
  // |stored|, unless it failed for want of memory and the weights can do without a copy.
  Status OrDoWithout(Status stored);
  void LetGoOfBacking();

  // --- weight_pager.cc: the copy stream
  Status MakeCounters();
  // Nothing runs that reads or writes them.
  void SetConsumed(uint64_t value);
  void SetProduced(uint64_t value);
  Status CheckServing() const;
  // |base|: of any pass that has |plan| and from which numbers go on without a gap.
  Status QueueUpTo(const EvictionPlan& plan, uint64_t base, uint64_t end, WeightPagerStats* stats);
  // |count|: of the chunk's slots the last so many are copied; the others are at home.
  Status QueueNext(const EvictionPlan& plan, uint64_t base, uint32_t count,
                   WeightPagerStats* stats);
  Status QueueChunk(const EvictionPlan& plan, uint64_t base, uint64_t number, uint32_t count);
  Status QueuePass(Pass* pass, WeightPagerStats* stats);
  void OnCopied(const StripeChunk& chunk, uint64_t index, TimeNs begin_ns);
  // Notes whether the copy was late, and how fast the link is.
  void JudgeCopy(uint64_t bytes, CopySpan span);
  // What `consumed` must have reached before chunk |number| may be copied.
  static uint64_t RequiredConsumed(const EvictionPlan& plan, uint64_t base, uint64_t number);
  WaitOutcome AwaitProduced(uint64_t at_least, Status* stream_error);
  // Destroys the (failed) copy stream and makes a new one.
  Status ReplaceStream();
  // No step is under way. Copies queued so far have ended; the stream works (a failed one is
  // replaced, and the pass is begun afresh).
  Status BringToRest();
  Status AwaitRest();
  // Begins a fresh pass of |cover| with its prefix; the stream must be at rest.
  void Restart(WeightPagerStats* stats);
  // The oldest pass is about to be computed with.
  void ExpectOldest();
  void TracePlacement(const EvictionPlan& plan, uint64_t ahead_bytes) const;
  // |number|: of the step of |pass|, whose gates are held closed.
  void TraceTransition(const Pass& pass, uint64_t number) const;
  uint64_t PrefixBytes(const EvictionPlan& plan) const;

  // --- weight_pager_gates.cc
  std::string DescribeChunk(const EvictionPlan& plan, uint32_t segments, uint32_t chunk) const;
  Status WaitForChunk(const Pass& pass, uint32_t chunk);
  FaultCause CauseOfFault(const GateView& before, uint64_t number) const;
  Status RepairFrom(const Pass& pass, uint64_t number);
  Status VerifyChunk(const EvictionPlan& plan, uint32_t chunk);
  Result<bool> SumsMatch(uint32_t first, uint32_t count);
  Result<uint64_t> SumOfSlot(uint32_t slot);
  // Sums of everything that may leave, from the backing copy; resident slots must agree with it.
  Status ComputeSums();

  // --- weight_pager_device_trace.cc: with device gates
  Status StampBegin(const StripeChunk& chunk, uint64_t index, uint64_t number, uint64_t after);
  Status StampEnd();
  // Chunk |number|, of a held pass, stays at home: its gate opens behind the copies before it.
  void NoteNoCopy(uint64_t number);
  // Copies from |number| on are no longer under way.
  void ForgetStampsFrom(uint64_t number);
  // Tells of the gates of the oldest step, |step|, of which kernels found |log|, and of the copies
  // behind them.
  void TraceDeviceStep(const DeviceGateLog& log, uint64_t step);
  // The stream is at rest: tells of the copies whose gates nobody passed.
  void TraceCopiesAtRest();
  void DropStamps(StampedCopy& copy);
  std::optional<CopySpan> TakeSpan(StampedCopy& copy, TimeNs known_end_ns, uint64_t error_ns);
  void TraceCopy(const StampedCopy& copy, CopySpan span);

  // --- weight_pager_remap.cc
  // Of |slots| only. |ring_after|: by ring slot, whether it holds a granule afterwards.
  Result<WeightTransition> MakeTransition(const std::vector<SlotPlace>& from,
                                          const std::vector<SlotPlace>& to,
                                          const WeightSlotRun& slots,
                                          const std::vector<bool>& ring_after) const;
  // The backing copy of |slot|, at its own address.
  Status MapBackingCopy(RemapPlan* plan, uint32_t slot) const;
  std::vector<bool> RingOf(const EvictionPlan& plan) const;
  Status CommitTransition(WeightTransition& t, WeightPagerStats* stats);
  Status MoveAllTo(const EvictionPlan& plan, RemapCause cause, std::vector<WeightSlotRun>* restored,
                   WeightPagerStats* stats);
  // Slots at home whose bytes passes still copy there, and which |plan| leaves at home.
  std::vector<WeightSlotRun> Unfilled(const EvictionPlan& plan) const;
  Status Fill(const std::vector<WeightSlotRun>& runs, WeightPagerStats* stats);
  Status FillOnce(const std::vector<WeightSlotRun>& runs);
  // By itself, however slowly.
  Status FillAlone(const WeightSlotRun& run);
  Status FillThroughHost(const WeightSlotRun& run);

  // --- weight_pager_refill.cc
  Status FillFromSource(const std::vector<WeightSlotRun>& runs, WeightPagerStats* stats);
  // Calls |write|(begin, end) for what of [offset, end) the source was asked for.
  template <typename Fn>
  Status ForRefilling(uint64_t offset, uint64_t end, Fn write);
  Status CheckRefilled(const WeightRange& range);

  // --- weight_pager_transition.cc
  Status BeginHeld(const Pass& pass, uint64_t number);
  // Whether chunk |i| has slots that are not yet where the pass moves them.
  bool Moves(const Pass& pass, uint32_t i) const;
  // What a pass copies that begins with |from| away and moves |to|: whatever is away in either.
  Result<SharedPlan> Covering(const WeightLayout& layout, const SharedPlan& from,
                              const SharedPlan& to) const;
  // How many of a chunk's slots are away now: the last ones.
  uint32_t AwayOf(const StripeChunk& chunk) const;
  // Whether just what |cover| says is away: what is at home holds its bytes.
  bool AsPlanned() const;
  // How many of chunk |i|'s slots its turn copies, the last ones: not what is at home and stays
  // there.
  uint32_t ToCopy(const Pass& pass, uint32_t i) const;
  // What is away now, of |pass|.
  Result<SharedPlan> AwayNow(const WeightLayout& layout, const Pass& pass) const;
  // Whether chunk |i| may be remapped now, and then be copied behind those that are remapped and
  // not copied yet.
  bool OnPace(const Pass& pass, uint32_t i, const GatePace& pace) const;
  // A copy of |bytes| has been queued.
  void NoteCopy(Pass* pass, const GatePace& pace, uint64_t bytes) const;
  std::vector<uint32_t> RingUsers() const;
  // Takes as long as the chunk is large: copies wait for it.
  Status RemapChunk(Pass* pass, const StripeChunk& chunk, WeightPagerStats* stats);
  // The step of |pass| is void: its kernels are to run to their end without waiting.
  void LetGo(Pass* pass);
};

}  // namespace weir
