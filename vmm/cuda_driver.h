// CudaDriver: the Driver of NVIDIA GPUs, over the CUDA driver API.
//
// libcuda.so.1 is opened at run time, so a program built with this file starts on a machine without
// a GPU and CreateCudaDriver says why there is none. The header needs no CUDA header.
//
// Tiers. kHbm: memory of |device|. kPeer: memory of |peer_device|, mapped for |device|. kHost:
// memory of a NUMA node (CU_MEM_LOCATION_TYPE_HOST_NUMA), mapped for |device| and for the host, so
// that host code may fill it through the same virtual address. Where the device cannot map host
// memory, Create(kHost) is kUnsupported: nothing else is put in its place.
//
// Rules D1..D5 are enforced by a MappingTable before the CUDA driver is called, so that a mistake
// is a status here and not a fatal fault of the device. Copy, Fill, Read and Write accept only
// addresses that are mapped with the access they need (and counters and gate words).
//
// Counters are 64-bit words in pinned host memory that the GPU maps. Host loads and stores are
// plain memory accesses: they never wait for the GPU and are allowed inside a host function, where
// CUDA forbids every API call. The price: a kernel that spins on a counter reads over the host
// link, a microsecond or more a look, for each block. A gate inside a kernel therefore uses a gate
// word (CreateGateWord): 64 bits in device memory, in L2 while it is polled, that streams write and
// wait for like a counter, and that the host reaches through Read and Write only. GEQ waits compare
// cyclically in hardware, so values above 2^63-1 are refused.
//
// After an error that leaves the CUDA context unusable (an illegal address, say) every call returns
// kDriver with the first error's name; events already known to be complete stay so.
//
// Failures. After a host function failed, later operations of its stream have no effect, and a
// stream that waits for one of its events fails too. The GPU cannot be told to skip what is queued,
// so while a host function is not known to have succeeded, a counter is written by another host
// function (tens of microseconds instead of one) that looks first: no counter says that bytes have
// arrived which have not. Copies and fills queued before the failure still run. A gate word cannot
// be written behind such a host function (kUnsupported): give it a stream of its own. A stream that
// waits for a counter cannot be cancelled: DestroyStream waits until it is reached.
//
// Host functions of all streams may share one thread of the CUDA driver: one that waits for a
// counter which another host function stores may wait for ever.
//
// Streams. CUDA_DEVICE_MAX_CONNECTIONS is set to 32 before the library starts, if the environment
// does not set it: up to 31 streams then have a hardware queue of their own. Beyond that a stream
// waiting for a counter can hold up another one.
//
// Kernels. CUDA_MODULE_LOADING is set to EAGER likewise: a kernel loaded at its first launch would
// wait for all that runs, and a stream at a closed gate runs until the gate opens. Where the
// environment says LAZY, or another part of the process used CUDA before, Create is kUnsupported.
//
// Thread: see driver.h. Otherwise any thread may make calls one at a time; each leaves the device's
// primary context current on the calling thread.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "vmm/clock_map.h"
#include "vmm/driver.h"
#include "vmm/mapping_table.h"
#include "vmm/mutex.h"

struct CUctx_st;
struct CUstream_st;
struct CUevent_st;

namespace weir {

struct CudaApi;

struct CudaDriverOptions {
  int device = 0;
  int peer_device = -1;     // a second GPU whose memory is Tier::kPeer; -1: none
  int host_numa_node = -1;  // where Tier::kHost lives; -1: the node nearest to |device|
};

// Whether the library loads and finds at least one device.
bool CudaDriverPresent();

class CudaDriver final : public Driver {
 public:
  // kNotFound: no NVIDIA driver or no such device. kUnsupported: the driver or the device lacks
  // something that weir needs; the message names it.
  static Result<std::unique_ptr<CudaDriver>> Create(const CudaDriverOptions& options);
  // Opens every counter and gate word, waits for the streams, and gives back whatever is still
  // held. If the streams do not end within 10 s (a kernel that never returns), everything is left
  // to the end of the process instead: freeing memory under running work would wait for it too.
  ~CudaDriver() override;
  CudaDriver(const CudaDriver&) = delete;
  CudaDriver& operator=(const CudaDriver&) = delete;

  const DriverProperties& properties() const override { return properties_; }

  Result<AllocId> Create(Tier tier, uint64_t bytes) override;
  Status Release(AllocId alloc) override;
  Result<VirtAddr> Reserve(uint64_t bytes, uint64_t alignment) override;
  Status Free(VirtAddr base) override;
  Status Map(VirtAddr at, AllocId alloc) override;
  Status SetAccess(VirtAddr at, uint64_t bytes, Access access) override;
  Status Unmap(VirtAddr at) override;

  Result<StreamId> CreateStream(std::string_view name) override;
  Status DestroyStream(StreamId stream) override;
  // Between two host-tier ranges the bytes are moved by a host function.
  Status Copy(StreamId stream, VirtAddr dst, VirtAddr src, uint64_t bytes) override;
  Status Fill(StreamId stream, VirtAddr dst, std::byte value, uint64_t bytes) override;
  Status HostFunction(StreamId stream, std::function<Status()> fn) override;
  Result<EventId> Record(StreamId stream) override;
  Result<bool> IsComplete(EventId event) override;
  Status Wait(EventId event) override;
  Status StreamWait(StreamId stream, EventId event) override;

  // Events with times, asked for in the device's clock and told in the host's; the two are compared
  // again whenever a stamp is made and the last comparison is kCompareEveryNs old, which takes the
  // caller some 20 us. A stamp does not know of failed host functions.
  Result<StampId> Stamp(StreamId stream) override;
  Result<TimeNs> TakeStamp(StampId stamp) override;
  void DropStamp(StampId stamp) override;
  uint64_t stamp_error_ns() const override;
  Status device_lost() const override { return sticky(); }
  static constexpr TimeNs kCompareEveryNs = 100'000'000;

  Result<VirtAddr> CreateCounter() override;
  Status DestroyCounter(VirtAddr counter) override;
  Status WriteCounter(StreamId stream, VirtAddr counter, uint64_t value) override;
  Status WaitCounter(StreamId stream, VirtAddr counter, uint64_t at_least) override;
  uint64_t LoadCounter(VirtAddr counter) override;
  void StoreCounter(VirtAddr counter, uint64_t value) override;
  Status HostWaitCounter(VirtAddr counter, uint64_t at_least, uint64_t timeout_ns) override;

  // Not ordered with any stream: the caller has waited for the work that writes |src|.
  Status Read(VirtAddr src, std::span<std::byte> dst) override;
  Status Write(VirtAddr dst, std::span<const std::byte> src) override;
  TimeNs Now() override;

  Result<VirtAddr> CreateGateWord() override;
  Status DestroyGateWord(VirtAddr word) override;

  // --- Beyond the interface, for GPU back-ends
  // The CUDA stream to launch kernels on (a CUstream); null if |stream| is not alive.
  CUstream_st* native_stream(StreamId stream) const;
  CUctx_st* native_context() const { return context_; }

 private:
  struct Reserved {  // what the CUDA driver reserved; more than was asked where it could not align
    VirtAddr base = 0;
    uint64_t bytes = 0;
  };
  struct MappedPiece {  // one mapping as it was when looked up
    VirtAddr at = 0;
    uint64_t bytes = 0;
    Tier tier = Tier::kHbm;
    Access access = Access::kNone;
  };
  struct Run {  // neighbouring mappings of one tier
    uint64_t bytes = 0;
    Tier tier = Tier::kHbm;
  };
  // Equal words in one block of memory, 128 bytes apart so that no two share a cache line.
  struct WordBlock {
    static constexpr uint64_t kStride = 128;
    VirtAddr base = 0;
    std::vector<bool> live;
    bool Contains(VirtAddr at) const {
      return at >= base && at - base < live.size() * kStride && (at - base) % kStride == 0;
    }
    bool IsLive(VirtAddr at) const { return Contains(at) && live[(at - base) / kStride]; }
    Result<VirtAddr> Take(std::string_view what);
  };
  struct StreamFaults;  // the first error of a stream's host functions
  struct HostCall;
  enum class HostCallKind : uint8_t { kFallible, kInfallible };
  struct Stream {
    CUstream_st* handle = nullptr;  // null once destroyed
    std::string name;
    uint64_t operations = 0;     // host functions and events so far
    uint64_t last_fallible = 0;  // the last that can fail the stream; 0: none
    uint64_t settled = 0;        // known to be complete up to here
    std::deque<EventId> pending;
    std::shared_ptr<StreamFaults> faults;
  };
  struct Event {
    CUevent_st* handle = nullptr;
    StreamId stream;
    uint64_t operation = 0;  // its place in the stream's order
  };

  explicit CudaDriver(const CudaApi& api) : api_(api) {}
  Status Init(const CudaDriverOptions& options);
  Status InitPeer();
  Status InitGranularity();
  Status InitWords();
  Status WarmUp();

  // Makes the context current; the sticky error if there is one. First line of every call.
  Status Enter();
  // Turns a result of |call| into a Status and remembers sticky errors.
  Status Check(const char* call, int result);
  Status sticky() const;
  Status CheckWordValue(VirtAddr word, uint64_t value) const;
  Result<Stream*> FindStream(StreamId stream);
  // Whether the stream is known to have failed: what is put on it now has no effect.
  static bool HasFailed(const Stream& stream);
  // Runs |fn| in stream order unless the stream has failed by then.
  Status LaunchHostCall(Stream& stream, std::function<Status()> fn, HostCallKind kind);

  Status SetMappingAccess(const MappedPiece& piece, Access access);
  // The runs of [at, at+bytes); kInvalidArgument if some byte lacks |needed|.
  Result<std::vector<Run>> Walk(VirtAddr at, uint64_t bytes, Access needed, const char* what) const;
  Status Transfer(VirtAddr dst, VirtAddr src, uint64_t bytes);

  // All events of |stream| up to |last| completed: keeps their errors, takes their handles back.
  void Settle(Stream& stream, EventId last);
  Status OutcomeOf(EventId event) const;
  Result<CUevent_st*> TakeEventHandle();

  // Compares the clocks and makes the new point in time the origin: CUDA tells times as a float of
  // milliseconds since some event, which is exact to 60 ns for a second only.
  Status CompareClocks();
  Result<CUevent_st*> TakeStampHandle();

  bool DrainStreams();
  void DestroyStreams();
  void ReleaseMemory();

  const CudaApi& api_;
  DriverProperties properties_;
  int device_ = -1;
  int peer_device_ = -1;
  int host_numa_node_ = 0;
  bool host_tier_ = false;
  CUctx_st* context_ = nullptr;
  bool peer_retained_ = false;

  mutable Mutex table_mutex_{LockRank::kDriver};
  // An allocation's tag is its CUDA handle.
  MappingTable table_ WEIR_GUARDED_BY(table_mutex_){1};
  // By the address that Reserve returned.
  std::map<VirtAddr, Reserved> reserved_ WEIR_GUARDED_BY(table_mutex_);

  std::vector<Stream> streams_;            // by StreamId; ids are not used again
  CUstream_st* service_stream_ = nullptr;  // Read, Write
  uint64_t next_event_ = 0;
  std::unordered_map<EventId, Event> events_;   // not known to be complete
  std::unordered_map<EventId, Status> failed_;  // complete, behind a failed host function
  std::vector<CUevent_st*> idle_events_;

  struct Stamps {
    uint64_t next = 0;
    std::unordered_map<StampId, CUevent_st*> open;
    std::vector<CUevent_st*> idle;
    CUevent_st* origin = nullptr;
    uint64_t origin_ns = 0;  // device time; begins where the host's clock was
    TimeNs compared_ns = 0;
    ClockMap clock;
  };
  Stamps stamps_;

  WordBlock counters_;  // pinned host memory, one address for host and device
  WordBlock gates_;     // device memory

  std::atomic<bool> has_sticky_{false};
  mutable Mutex sticky_mutex_{LockRank::kDriver};
  Status sticky_ WEIR_GUARDED_BY(sticky_mutex_);
};

// CudaDriver::Create for callers that need the interface only.
Result<std::unique_ptr<Driver>> CreateCudaDriver(const CudaDriverOptions& options);

}  // namespace weir
