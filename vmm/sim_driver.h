// SimDriver: the driver contract as bookkeeping and virtual time. Strict, deterministic, and wrong
// on purpose where a test asks for it (sim_faults.h).
//
// Represents a device with its own clock. Streams are queues; work makes progress only while
// virtual time advances: in Wait, HostWaitCounter, DestroyStream and AdvanceTo/AdvanceBy.
// Allocations have real bytes, so that tests can see data survive through aliases and copies;
// VirtAddrs cannot be dereferenced. Same options and same calls: same run, to the nanosecond.
//
// Beyond the rules D1..D7, which give an error, it finds mistakes that hardware does not report and
// counts them as violations:
//   - Unmap of what a queued copy or fill, or running compute, still touches (M2);
//   - an operation that finds its range not mapped, or without access, when it runs (M3);
//   - a Write to a gate word that queued work of a stream writes too.
// Such an operation also fails its stream. As with HostDriver, a failed stream has no more effects.
// One thread only.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <variant>
#include <vector>

#include "vmm/driver.h"
#include "vmm/mapping_table.h"
#include "vmm/sim_faults.h"

namespace weir {

// A range that simulated compute reads or writes while it runs.
struct SimTouch {
  VirtAddr at = 0;
  uint64_t bytes = 0;
  Access access = Access::kRead;
};

class SimDriver final : public Driver {
 public:
  // Bytes per second and direction; copies in one direction queue for the link.
  struct Link {
    double in_bytes_per_s = 50e9;
    double out_bytes_per_s = 50e9;
  };
  struct Options {
    std::string device = "simulated";
    uint64_t granularity_bytes = 4096;
    uint64_t hbm_bytes = 0;   // size of the tier; 0: no cap
    uint64_t host_bytes = 0;  // 0: no cap
    uint64_t peer_bytes = 0;  // 0: there is no peer
    Link host_link;
    Link peer_link;
    double hbm_bytes_per_s = 3e12;
    TimeNs copy_latency_ns = 2000;
    // What calls cost the calling thread. Virtual time advances by it.
    TimeNs create_ns = 0, map_ns = 0, set_access_ns = 0, unmap_ns = 0;  // set_access: per mapping
    // Map, SetAccess and Unmap take so much longer while a stream copies or computes.
    double busy_factor = 1;
    // Unmap waits while copies between tiers run, at most so long: on GPUs it shares their engine.
    TimeNs unmap_waits_for_copies_ns = 0;
    // And such a wait ends so much later than the copies do: the engine changes hands.
    TimeNs unmap_handover_ns = 0;
    // Bytes kept of each allocation, from its start: what is written beyond is gone. 0: all.
    uint64_t content_bytes = 0;
    uint64_t seed = 1;
  };
  // The costs measured on an H100 (docs/drivers.md).
  static Options MeasuredCosts(Options options);
  static Result<std::unique_ptr<SimDriver>> Create(const Options& options);
  ~SimDriver() override;

  const DriverProperties& properties() const override { return properties_; }
  Result<AllocId> Create(Tier tier, uint64_t bytes) override;
  Status Release(AllocId alloc) override;
  Result<VirtAddr> Reserve(uint64_t bytes, uint64_t alignment) override;
  Status Free(VirtAddr base) override;
  Status Map(VirtAddr at, AllocId alloc) override;
  Status SetAccess(VirtAddr at, uint64_t bytes, Access access) override;
  Status Unmap(VirtAddr at) override;

  Result<StreamId> CreateStream(std::string_view name) override;
  // Runs the stream's work. What then still waits for ever is cancelled.
  Status DestroyStream(StreamId stream) override;
  Status Copy(StreamId stream, VirtAddr dst, VirtAddr src, uint64_t bytes) override;
  Status Fill(StreamId stream, VirtAddr dst, std::byte value, uint64_t bytes) override;
  Status HostFunction(StreamId stream, std::function<Status()> fn) override;
  Result<EventId> Record(StreamId stream) override;
  Result<bool> IsComplete(EventId event) override;
  // kDriver, naming what waits for what, when the event can never complete.
  Status Wait(EventId event) override;
  Status WaitFor(EventId event, uint64_t timeout_ns) override;
  Status StreamWait(StreamId stream, EventId event) override;
  Result<StampId> Stamp(StreamId stream) override;
  Result<TimeNs> TakeStamp(StampId stamp) override;
  void DropStamp(StampId stamp) override { stamps_.erase(stamp); }

  Result<VirtAddr> CreateCounter() override;
  Status DestroyCounter(VirtAddr counter) override;
  Status WriteCounter(StreamId stream, VirtAddr counter, uint64_t value) override;
  Status WaitCounter(StreamId stream, VirtAddr counter, uint64_t at_least) override;
  uint64_t LoadCounter(VirtAddr counter) override;
  void StoreCounter(VirtAddr counter, uint64_t value) override;
  Status HostWaitCounter(VirtAddr counter, uint64_t at_least, uint64_t timeout_ns) override;
  // Whoever plays the kernels reads and writes them with Read and Write.
  Result<VirtAddr> CreateGateWord() override;
  Status DestroyGateWord(VirtAddr word) override;

  Status Read(VirtAddr src, std::span<std::byte> dst) override;
  Status Write(VirtAddr dst, std::span<const std::byte> src) override;
  TimeNs Now() override { return now_; }

  // --- Simulation
  // ---------------------------------------------------------------------------------- Occupies
  // |stream| for |duration_ns|, then runs |fn| (may be empty). |touches| must be mapped from its
  // beginning to its end; what is queued but not running may still be remapped.
  Status Compute(StreamId stream, TimeNs duration_ns, std::vector<SimTouch> touches,
                 std::function<Status()> fn);
  void AdvanceTo(TimeNs time);
  void AdvanceBy(TimeNs ns) { AdvanceTo(now_ + ns); }

  SimFaults& faults() { return faults_; }
  // Mistakes found so far, and the first 100 in words.
  uint64_t violations() const { return violations_; }
  const std::vector<std::string>& violation_list() const { return violation_list_; }
  // For leak checks.
  size_t allocation_count() const { return table_.allocation_count(); }
  size_t mapping_count() const { return table_.mapping_count(); }
  size_t reservation_count() const { return table_.reservations().size(); }
  size_t word_count() const;  // counters and gate words
  size_t stamp_count() const { return stamps_.size(); }

 private:
  struct CopyOp {
    VirtAddr dst, src;
    uint64_t bytes;
    std::optional<SimCopyFault> fault;
  };
  struct FillOp {
    VirtAddr dst;
    std::byte value;
    uint64_t bytes;
  };
  struct HostFunctionOp {
    std::function<Status()> fn;
  };
  struct StreamWaitOp {
    EventId event;
  };
  struct WriteCounterOp {
    VirtAddr counter;
    uint64_t value;
  };
  struct WaitCounterOp {
    VirtAddr counter;
    uint64_t at_least;
  };
  struct StampOp {
    StampId stamp;
  };
  struct ComputeOp {
    TimeNs duration;
    std::vector<SimTouch> touches;
    std::function<Status()> fn;
  };
  using Op = std::variant<CopyOp, FillOp, HostFunctionOp, StreamWaitOp, WriteCounterOp,
                          WaitCounterOp, StampOp, ComputeOp>;
  struct Stream {
    std::string name;
    bool alive = true;
    std::deque<Op> queue;  // the front may be running
    bool running = false;
    TimeNs end = 0;  // of the running operation
    uint64_t submitted = 0, completed = 0;
    Status error;
    uint64_t error_number = 0;
  };
  struct Stamped {
    EventId event;  // of the operation that notes the time
    TimeNs time = 0;
  };
  struct Counter {
    bool alive = false;
    bool gate_word = false;
    uint64_t value = 0;
  };

  explicit SimDriver(const Options& options);
  // What a call costs now that costs |rest_ns| while no stream works.
  TimeNs CallNs(TimeNs rest_ns) const;
  void AwaitCopyEngine();
  Status CheckStream(StreamId stream) const;
  Status CheckEvent(EventId event) const;
  Result<size_t> WordIndex(VirtAddr word) const;  // of a counter or a gate word
  Result<size_t> CounterIndex(VirtAddr counter) const;
  Result<size_t> GateWordIndex(VirtAddr word) const;
  VirtAddr NewWord(bool gate_word);
  Status DestroyWord(VirtAddr word, size_t index);
  Status Submit(StreamId stream, Op op);
  Result<bool> EventState(EventId event) const;

  // The event loop (sim_streams.cc). True if anything was done at or before |limit|.
  bool Step(TimeNs limit);
  bool IsReady(const Op& op) const;
  void TimeOut(TimeNs limit);
  void Start(Stream& stream);
  void Finish(Stream& stream);
  Status Effect(Op& op);
  Status CopyBytes(const CopyOp& op);
  TimeNs CopyEnd(const CopyOp& op);
  Tier TierAt(VirtAddr at) const;
  Status CheckRunning(VirtAddr at, uint64_t bytes, Access access, const char* what);
  void NoteUnmapHazards(VirtAddr at, uint64_t bytes);
  void NoteWriteHazards(VirtAddr word);
  void Violation(std::string what);
  std::string WhoWaits() const;

  // Bytes of [at, at+size), which is mapped throughout.
  void Load(VirtAddr at, std::span<std::byte> out) const;
  void Store(VirtAddr at, std::span<const std::byte> in);
  // Shortens |*piece| to what the mapping at |at| covers; how many bytes from |at| are kept.
  uint64_t KeptAt(VirtAddr at, uint64_t* piece) const;

  Options options_;
  DriverProperties properties_;
  SimFaults faults_;
  MappingTable table_;
  std::array<uint64_t, kTierCount> used_{};
  std::unordered_map<AllocId, std::vector<std::byte>> contents_;  // made at the first write
  VirtAddr next_address_;
  std::vector<Stream> streams_;
  std::vector<Counter> counters_;
  std::unordered_map<StampId, Stamped> stamps_;
  uint64_t next_stamp_ = 0;
  std::array<std::array<TimeNs, 2>, kTierCount> link_free_at_{};  // by far tier; in, out
  TimeNs now_ = 0;
  bool in_loop_ = false;
  uint64_t violations_ = 0;
  std::vector<std::string> violation_list_;
};

}  // namespace weir
