// WeightPager: the sluice. Keeps a model's weights readable at fixed addresses while some of their
// granules are lent to somebody else (design.md, "Weight paging").
//
// Represents the weight region, its ring, its backing copy and the copy stream that runs ahead of
// the compute. States: loading (Write) -> sealed (Seal) -> serving (BeginStep, EndStep; the border
// moves by Apply, at rest, or by BeginTransition and AdvanceTransition, behind closed gates). The
// evicted slots are mapped onto ring granules by alias; two counters order copy and compute. (What
// is read in place is mapped onto the backing copy itself, and neither copied nor waited for; of
// the layout's lookup table that holds from load on.) Per pass (= step) the copies of all chunks
// are queued: BeginStep(t) queues the rest of pass t and the prefix of pass t+1, so that the copy
// stream is ahead across the step boundary and still comes to rest by itself when no further step
// is submitted. Engine thread only, except Arrive and Depart, which the compute thread calls
// between BeginStep and EndStep (it may be the engine thread). Arrive may repair a failed copy, and
// then makes the driver calls that takes. docs/paging.md has the protocol and what happens when
// something goes wrong.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pager/backing_store.h"
#include "pager/eviction_plan.h"
#include "pager/gates.h"
#include "pager/remap_cost.h"
#include "vmm/address_space.h"

namespace weir {

struct Pass;

// Bytes [offset, offset + bytes) of the weights.
struct WeightRange {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};
// Makes weights anew when neither the region nor the backing copy has them: calls
// WeightPager::Write or WriteFrom with the bytes that loading wrote to |ranges| (others may be
// among them, and are left out), and waits for what it put on streams. An error says why it cannot.
using WeightSource = std::function<Status(std::span<const WeightRange> ranges)>;

struct WeightPagerOptions {
  uint64_t gate_timeout_ns = 10'000'000'000;  // then the step fails and names the stripe
  // Compare each stripe's checksum (xxh3) with the backing copy's when its gate opens; a stripe
  // whose copy was lost is fetched again and counted. On in WEIR_VALIDATE builds.
  bool verify_stripes = false;
  // Steps that may have begun and not ended, so that the next one is queued while one runs.
  uint32_t max_steps_under_way = 1;
  // Gates are passed by kernels: the counters are gate words of the driver, and copies are not
  // repaired at a gate (a step that misses one fails and is run again). They are traced with
  // stamps.
  bool device_gates = false;
  // Called by Seal, with the reason, when memory for the backing copy was refused while loading
  // (BackingStore::refusal) and nothing is away or read in place: the weights are at home for good,
  // the pager has let go of the store, and it may be destroyed. Empty: loading fails instead.
  std::function<void(const Status&)> on_backing_refused;
};

struct WeightPagerStats {
  uint64_t steps = 0;
  uint64_t chunks_copied = 0;
  uint64_t bytes_copied = 0;
  uint64_t gate_arrivals = 0;  // armed gates only
  uint64_t faults = 0;         // gates reached before their stripe (major)
  uint64_t stall_ns = 0;       // time spent in them
  uint64_t max_stall_ns = 0;
  uint64_t repairs = 0;  // stripes fetched again after a lost or failed copy
  uint64_t granules_remapped = 0;
  uint64_t remap_ns = 0;            // spent on them
  uint64_t transitions = 0;         // that took effect
  uint64_t hidden_transitions = 0;  // of them, behind closed gates
  uint64_t split_transitions = 0;   // ended on the way, so as not to make a step late
  uint64_t bytes_from_source = 0;   // came home from the WeightSource
};

// When the gates of a step that moves are to open: that of chunk i of n after i / n of |step_ns|,
// and at most |late_ns| later.
struct GatePace {
  uint64_t step_ns = UINT64_MAX;
  uint64_t late_ns = 0;
  double link_bytes_per_ns = 0;  // of the copies queued before; 0: they take no time
};

class WeightPager final : public StepGates {
 public:
  // Reserves the region and maps everything |initial| leaves resident (so a budget smaller than the
  // weights can be loaded into). |backing| covers the whole region and may be null when |initial|
  // is empty, nothing will ever be evicted and there is no lookup table; it outlives |space|, where
  // it may be mapped to the last (what is read in place). kNoMemory says how many granules are
  // missing.
  static Result<std::unique_ptr<WeightPager>> Create(AddressSpace& space, BackingStore* backing,
                                                     WeightLayout layout,
                                                     const EvictionTarget& initial,
                                                     const WeightPagerOptions& options);
  ~WeightPager() override;

  VirtAddr base() const;
  RegionId region() const { return region_; }
  const WeightLayout& layout() const { return layout_; }
  // In force: of the last transition that ended.
  const EvictionPlan& plan() const { return plan_; }
  // In force once the steps under way have ended. After a transition that left chunks it is not
  // even, and its target that of the border with more away.
  const EvictionPlan& planned() const;
  uint32_t max_steps_under_way() const;
  uint32_t max_granules_per_layer() const;
  // Ok: the backing copy lies in pieces of a granule, which can be mapped at their weights'
  // addresses (Placement::kInPlace). kUnsupported otherwise; says what it lies in.
  Status CanReadInPlace() const;

  // Loading: bytes go to the backing copy (where a segment lies) and to the region (where
  // resident). Within a WeightSource: to what of the region has been asked for.
  Status Write(uint64_t offset, std::span<const std::byte> data);
  // The same from device memory, in the order of |stream|: for weights made on the device. Wait for
  // the stream before Seal.
  Status WriteFrom(StreamId stream, uint64_t offset, uint64_t bytes, VirtAddr src);
  Status Seal();
  // Asked when weights that come home cannot be read from the backing copy by any means. None: they
  // cannot come home then.
  void SetSource(WeightSource source);

  // Changes what is away, at a step boundary. Evicting: unmaps, aliases the ring or maps the
  // backing copy, frees granules. kUnsupported: what CanReadInPlace says.
  // Restoring: takes granules from the pool, maps, fills from the backing copy. Only the difference
  // is remapped. On an error the previous state is in force (T2). Nothing is recorded anew.
  Status Apply(const EvictionTarget& target);

  // The same while steps run (device gates only): the next step begins with the gates closed of
  // whatever moves. Once the step before it has ended AdvanceTransition remaps behind them, in the
  // order in which they are reached. Stripes, with the ring as it is. Granules that restoring needs
  // are committed now (kNoMemory: missing). Until the moving step has ended plan() does not change,
  // and granules that left are free as soon as they are remapped. A transition that failed, or
  // whose step did, is begun again, or any other: the bytes read are right in between.
  Status BeginTransition(const EvictionTarget& target);
  // To be called whenever a step has ended, and before one is collected: remaps and queues copies
  // for the oldest step if its gates are held closed, for about |limit_ns|, at least one chunk.
  // A chunk that is late against |pace| is not remapped, but for the first: the border stays in
  // between then, and the transition is to be begun again. Nothing else may be begun or ended
  // before in_transition() is false. An error says why the border stays in between, or that the
  // step is void; its gates are let go either way.
  Status AdvanceTransition(uint64_t limit_ns = UINT64_MAX, const GatePace& pace = {});
  uint32_t steps_under_way() const;
  // Whether the oldest step under way waits for AdvanceTransition.
  bool in_transition() const;
  bool moves_behind_gates() const;
  // Whether BeginTransition takes |target|, if there are granules for it.
  bool CanMoveBehindGates(const EvictionTarget& target) const;
  // False after a move that ended on the way: what is away lies between planned() and the target,
  // until a transition to either ends.
  bool settled() const;
  const RemapCost& remap_cost() const;

  // Queues this pass's copies. A no-op when nothing is evicted. Steps begin and end in order; with
  // max_steps_under_way > 1 the next may begin before this one ends.
  Status BeginStep();
  // The step last begun will not be collected; those before it go on. Once they have ended the next
  // one begins afresh.
  void CancelStep();
  // The compute of the oldest step has ended. kBadState names the first armed gate that was not
  // passed or departed from; kDriver: a copy of this step failed unnoticed. Either way the step's
  // results are void, and the next step begins afresh.
  Status EndStep();

  // Why the step that failed last lacked weights: a copy was refused, failed or did not come. Ok
  // when something else failed, or another step has begun since.
  const Status& copy_error() const;

  Status Arrive(uint32_t gate) override;
  void Depart(uint32_t gate) override;
  DeviceGates device_gates() const override;
  Status Report(const DeviceGateLog& log) override;

  // Of the step that ended last: its copies followed each other. False when its gates were held
  // closed, or whole layers were away.
  bool streamed_evenly() const;

  const WeightPagerStats& stats() const { return stats_; }
  // What the link to the backing store was measured to do, between steps: tells late copies in the
  // trace from a slow link. Until then the fastest copy seen stands for it.
  void SetLinkRate(double bytes_per_ns);
  // Tells the trace which placement is in force.
  void TraceState() const;
  // Backing checksums against resident slots, gate table against the plan, ring aliases (O(bytes)).
  Status CheckIntegrity();

 private:
  struct Impl;
  explicit WeightPager(std::unique_ptr<Impl> impl);
  void EndTransition(const Pass& pass);
  std::unique_ptr<Impl> impl_;
  RegionId region_;
  WeightLayout layout_;
  EvictionPlan plan_;
  WeightPagerStats stats_;
};

}  // namespace weir
