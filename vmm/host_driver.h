// HostDriver: the driver contract on a CPU, with real remapping, real aliasing and real faults.
//
// Represents a "device" whose memory is a memfd a tier: allocations are extents of it, reservations
// are PROT_NONE mappings, Map is mmap(MAP_FIXED | MAP_SHARED). A VirtAddr is a pointer of this
// process; touching an unmapped slot is SIGSEGV. Each stream is a worker thread with a queue.
// After an operation of a stream failed, its later ones do not run: in particular no counter says
// that bytes have arrived which have not. Their events complete with the first error.
// docs/drivers.md has the costs.
#pragma once

#include <memory>
#include <vector>

#include "vmm/driver.h"
#include "vmm/host_counters.h"
#include "vmm/host_memory.h"
#include "vmm/mapping_table.h"
#include "vmm/mutex.h"

namespace weir {

class HostStream;

// Whether SetAccess also builds the page table entries, so that the first touch does not fault.
enum class HostPopulate : uint8_t { kOnTouch, kOnSetAccess };

class HostDriver final : public Driver {
 public:
  struct Options {
    uint64_t hbm_bytes = 0;   // size of the hbm tier; 0: as much as the system has
    uint64_t host_bytes = 0;  // size of the host tier; 0 as above
    int numa_node = -1;       // of the host tier; -1: no placement
    uint32_t threads = 0;     // most streams at a time, each has a thread; 0: no limit
    uint32_t counters = 4096;
    HostReserve reserve = HostReserve::kLazy;
    HostPopulate populate = HostPopulate::kOnTouch;
    // Asks for huge pages where a mapping of the host tier has room for one.
    bool huge_pages = false;
  };
  static Result<std::unique_ptr<HostDriver>> Create(const Options& options);
  // Cancels what still waits, ends the threads, unmaps everything.
  ~HostDriver() override;

  const DriverProperties& properties() const override { return properties_; }
  Result<AllocId> Create(Tier tier, uint64_t bytes) override WEIR_EXCLUDES(mutex_);
  Status Release(AllocId alloc) override WEIR_EXCLUDES(mutex_);
  Result<VirtAddr> Reserve(uint64_t bytes, uint64_t alignment) override WEIR_EXCLUDES(mutex_);
  Status Free(VirtAddr base) override WEIR_EXCLUDES(mutex_);
  Status Map(VirtAddr at, AllocId alloc) override WEIR_EXCLUDES(mutex_);
  Status SetAccess(VirtAddr at, uint64_t bytes, Access access) override WEIR_EXCLUDES(mutex_);
  Status Unmap(VirtAddr at) override WEIR_EXCLUDES(mutex_);

  Result<StreamId> CreateStream(std::string_view name) override WEIR_EXCLUDES(mutex_);
  // Runs what can run. A wait that is not satisfied by now is cancelled: it would hang the caller.
  Status DestroyStream(StreamId stream) override WEIR_EXCLUDES(mutex_);
  Status Copy(StreamId stream, VirtAddr dst, VirtAddr src, uint64_t bytes) override
      WEIR_EXCLUDES(mutex_);
  Status Fill(StreamId stream, VirtAddr dst, std::byte value, uint64_t bytes) override
      WEIR_EXCLUDES(mutex_);
  Status HostFunction(StreamId stream, std::function<Status()> fn) override WEIR_EXCLUDES(mutex_);
  Result<EventId> Record(StreamId stream) override WEIR_EXCLUDES(mutex_);
  Result<bool> IsComplete(EventId event) override WEIR_EXCLUDES(mutex_);
  Status Wait(EventId event) override WEIR_EXCLUDES(mutex_);
  Status StreamWait(StreamId stream, EventId event) override WEIR_EXCLUDES(mutex_);

  Result<VirtAddr> CreateCounter() override WEIR_EXCLUDES(mutex_);
  Status DestroyCounter(VirtAddr counter) override WEIR_EXCLUDES(mutex_);
  Status WriteCounter(StreamId stream, VirtAddr counter, uint64_t value) override
      WEIR_EXCLUDES(mutex_);
  Status WaitCounter(StreamId stream, VirtAddr counter, uint64_t at_least) override
      WEIR_EXCLUDES(mutex_);
  uint64_t LoadCounter(VirtAddr counter) override;
  void StoreCounter(VirtAddr counter, uint64_t value) override;
  Status HostWaitCounter(VirtAddr counter, uint64_t at_least, uint64_t timeout_ns) override;

  Status Read(VirtAddr src, std::span<std::byte> dst) override WEIR_EXCLUDES(mutex_);
  Status Write(VirtAddr dst, std::span<const std::byte> src) override WEIR_EXCLUDES(mutex_);
  TimeNs Now() override;

 private:
  HostDriver(const Options& options, uint64_t page_bytes);
  HostMemory* TierMemory(Tier tier) WEIR_REQUIRES(mutex_);
  // The stream that |id| names; destroyed ones only where their events are asked about.
  Result<std::shared_ptr<HostStream>> Find(StreamId id) WEIR_EXCLUDES(mutex_);
  Result<std::shared_ptr<HostStream>> FindOf(EventId event) WEIR_EXCLUDES(mutex_);
  Status CheckAccess(VirtAddr at, uint64_t bytes, Access access) WEIR_EXCLUDES(mutex_);
  Status CheckCounter(VirtAddr counter) WEIR_EXCLUDES(mutex_);

  Options options_;
  uint64_t populate_step_ = 256 << 10;
  DriverProperties properties_;
  HostCounters counters_;
  Mutex mutex_{LockRank::kDriver};
  MappingTable table_ WEIR_GUARDED_BY(mutex_);
  HostMemory hbm_ WEIR_GUARDED_BY(mutex_);
  HostMemory host_ WEIR_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<HostStream>> streams_ WEIR_GUARDED_BY(mutex_);  // by StreamId
  uint32_t live_streams_ WEIR_GUARDED_BY(mutex_) = 0;
};

}  // namespace weir
