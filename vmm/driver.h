// Driver: the dozen things weir asks of a device's memory system. Everything above it is the same
// on a GPU, on a CPU and in simulation.
//
// Implementations: CudaDriver (cuda_driver.h), HostDriver (host_driver.h), SimDriver
// (sim_driver.h). One contract suite (tests/vmm/driver_contract.h) runs against each.
//
// Rules every implementation enforces, taken from the CUDA driver (docs/drivers.md):
//   D1 an allocation is the unit of mapping: Map binds the whole of it, never a part;
//   D2 Unmap names exactly one earlier Map; a sub-range or a double unmap is kInvalidArgument;
//   D3 a mapping starts without access: touching it before SetAccess is an error (fatal on a GPU);
//   D4 one allocation may be mapped at several addresses (alias): the bytes are the same;
//   D5 Release of an allocation that is still mapped is kBadState;
//   D6 work on one stream runs in order; streams run concurrently; nothing here waits for running
//      work except Wait, WaitFor, HostWaitCounter, Read and Write;
//   D7 a failed call changed nothing.
//
// Thread: the engine thread makes all calls except LoadCounter, StoreCounter and HostWaitCounter,
// which compute threads may also make. Where time is real, one more thread may at the same time
// take memory (Create, Map, SetAccess, and Unmap and Release to undo them) at addresses that no
// other call names before it is done.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <thread>

#include "vmm/status.h"
#include "vmm/types.h"

namespace weir {

enum class Access : uint8_t { kNone, kRead, kReadWrite };

struct DriverProperties {
  std::string name;                // "cuda", "host", "sim"
  std::string device;              // "NVIDIA H200", "AMD EPYC ...", "simulated gh200"
  uint64_t granularity_bytes = 0;  // allocation sizes and mapping addresses are multiples of it
  uint64_t hbm_bytes = 0;          // size of the device tier, 0 if unknown
  bool host_addressable = false;   // a VirtAddr may be dereferenced by this process
  bool virtual_time = false;       // Now() advances only through waits
  bool has_peer = false;           // Tier::kPeer can be created
  // What was wished of Tier::kHost and the system did not grant (huge pages, a node), as one
  // clause; "": nothing. The memory works, but slower.
  std::string host_tier_shortcoming;
};

class Driver {
 public:
  virtual ~Driver() = default;
  virtual const DriverProperties& properties() const = 0;

  // --- Physical memory -------------------------------------------------------------------------
  // Creates |bytes| (a multiple of the granularity) in |tier|; kNoMemory when the tier is full,
  // kUnsupported when this driver has no such tier. Contents are unspecified.
  virtual Result<AllocId> Create(Tier tier, uint64_t bytes) = 0;
  virtual Status Release(AllocId alloc) = 0;

  // --- Virtual memory --------------------------------------------------------------------------
  // Reserves |bytes| of address space, aligned to |alignment| (a power of two). Touching it faults.
  virtual Result<VirtAddr> Reserve(uint64_t bytes, uint64_t alignment) = 0;
  // Gives a reservation back; kBadState while anything is mapped in it.
  virtual Status Free(VirtAddr base) = 0;
  // Binds the whole of |alloc| at |at| (inside one reservation, unmapped so far).
  virtual Status Map(VirtAddr at, AllocId alloc) = 0;
  // Sets access on [at, at+bytes), which must be covered by whole mappings.
  virtual Status SetAccess(VirtAddr at, uint64_t bytes, Access access) = 0;
  // Undoes the one Map made at |at|. The caller guarantees that no submitted work can touch it.
  virtual Status Unmap(VirtAddr at) = 0;

  // --- Streams and work ------------------------------------------------------------------------
  // An in-order queue. |name| names its thread or trace track (at most 15 characters are kept).
  virtual Result<StreamId> CreateStream(std::string_view name) = 0;
  // Waits for the stream's work, then destroys it.
  virtual Status DestroyStream(StreamId stream) = 0;
  virtual Status Copy(StreamId stream, VirtAddr dst, VirtAddr src, uint64_t bytes) = 0;
  virtual Status Fill(StreamId stream, VirtAddr dst, std::byte value, uint64_t bytes) = 0;
  // Runs |fn| on the host in stream order. It must not call the driver except the counter calls.
  // An error it returns becomes the error of every later event of the stream.
  virtual Status HostFunction(StreamId stream, std::function<Status()> fn) = 0;
  // Completes when all work put on |stream| so far has completed.
  virtual Result<EventId> Record(StreamId stream) = 0;
  // Whether |event| completed; the error if a preceding operation of its stream failed. Monotonic.
  virtual Result<bool> IsComplete(EventId event) = 0;
  virtual Status Wait(EventId event) = 0;
  // Like Wait, but kShouldWait when |timeout_ns| has passed (under virtual time also as soon as
  // nothing that is queued can ever complete it).
  virtual Status WaitFor(EventId event, uint64_t timeout_ns) {
    for (const TimeNs begin = Now();;) {
      const Result<bool> complete = IsComplete(event);
      if (!complete.ok()) return complete.status();
      if (*complete) return OkStatus();
      if (Now() - begin >= timeout_ns) return ShouldWait("work is under way");
      std::this_thread::yield();
    }
  }
  virtual Status StreamWait(StreamId stream, EventId event) = 0;

  // --- Stamps: when work was done, where a host function would hold the stream up. For traces.
  // Notes the time at which all work put on |stream| so far has completed; costs the stream about
  // what a counter write does. kUnsupported where no kernels run.
  virtual Result<StampId> Stamp(StreamId stream) {
    (void)stream;
    return Unsupported(properties().name +
                       ": streams take no stamps; host functions tell the time");
  }
  // The time noted, in the clock of Now() and within stamp_error_ns() of it. kShouldWait: the work
  // has not completed yet. After anything else the stamp is gone; an error: it was never reached.
  virtual Result<TimeNs> TakeStamp(StampId stamp) {
    return InvalidArgument("no stamp " + std::to_string(stamp.value));
  }
  virtual void DropStamp(StampId stamp) { (void)stamp; }
  virtual uint64_t stamp_error_ns() const { return 0; }

  // --- Counters: 8-byte monotonic words in device memory
  // ------------------------------------------
  virtual Result<VirtAddr> CreateCounter() = 0;  // starts at 0
  virtual Status DestroyCounter(VirtAddr counter) = 0;
  virtual Status WriteCounter(StreamId stream, VirtAddr counter, uint64_t value) = 0;
  virtual Status WaitCounter(StreamId stream, VirtAddr counter, uint64_t at_least) = 0;
  // Host side. Load acquires, Store releases and wakes whoever waits.
  virtual uint64_t LoadCounter(VirtAddr counter) = 0;
  virtual void StoreCounter(VirtAddr counter, uint64_t value) = 0;
  // Waits until the counter is at least |at_least|; kShouldWait when |timeout_ns| has passed (under
  // virtual time: when nothing that is queued can ever raise it).
  virtual Status HostWaitCounter(VirtAddr counter, uint64_t at_least, uint64_t timeout_ns) = 0;

  // Gate words: like counters, but where kernels can poll them (a counter may lie across the host
  // link). WriteCounter and WaitCounter take them, and Read and Write when nothing else does; the
  // other counter calls do not. kUnsupported where no kernels run.
  virtual Result<VirtAddr> CreateGateWord() {
    return Unsupported(properties().name + ": no kernels run here that could pass a gate");
  }
  virtual Status DestroyGateWord(VirtAddr word) {
    return InvalidArgument("no gate word " + std::to_string(word));
  }

  // --- Synchronous access, for loading and tests
  // --------------------------------------------------
  virtual Status Read(VirtAddr src, std::span<std::byte> dst) = 0;
  virtual Status Write(VirtAddr dst, std::span<const std::byte> src) = 0;

  virtual TimeNs Now() = 0;

  // Why no call can succeed any more, whatever is tried: the device's context is gone. Ok: not so.
  virtual Status device_lost() const { return OkStatus(); }
};

}  // namespace weir
