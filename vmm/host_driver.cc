#include "vmm/host_driver.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>

#include <sys/mman.h>
#include <unistd.h>

#include "vmm/checked_math.h"
#include "vmm/event_number.h"
#include "vmm/host_stream.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_READ 22  // Linux 5.14
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_HUGEPAGE
#define MADV_HUGEPAGE 14
#endif

namespace weir {
namespace {

std::byte* Pointer(VirtAddr at) {
  return reinterpret_cast<std::byte*>(at);
}

int Protection(Access access) {
  switch (access) {
    case Access::kNone: return PROT_NONE;
    case Access::kRead: return PROT_READ;
    case Access::kReadWrite: return PROT_READ | PROT_WRITE;
  }
  return PROT_NONE;
}

std::string CpuName() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("model name", 0) == 0) {
      const size_t colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
  }
  return "cpu";
}

// Why memfd pages stay small although huge ones are asked for; "" if the system grants them.
std::string WhyNoHugePages() {
  const char* const setting = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
  std::ifstream in(setting);
  std::string modes;
  if (!std::getline(in, modes)) return "this kernel has no huge pages for shared memory";
  for (const char* granted : {"[always]", "[within_size]", "[advise]", "[force]"}) {
    if (modes.find(granted) != std::string::npos) return "";
  }
  return std::string("no huge pages: ") + setting + " is " +
         modes.substr(modes.find('[') + 1, modes.find(']') - modes.find('[') - 1) +
         ", advise would grant them";
}

// Puts a PROT_NONE placeholder over [at, at+bytes), atomically: no moment without a mapping in
// which another thread's mmap could land there.
bool Blank(VirtAddr at, uint64_t bytes) {
  return ::mmap(Pointer(at), bytes, PROT_NONE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
}

}  // namespace

Result<std::unique_ptr<HostDriver>> HostDriver::Create(const Options& options) {
  if (options.counters == 0 || options.counters > 1U << 20) {
    return InvalidArgument("host driver with " + std::to_string(options.counters) +
                           " counters; accepted are 1 to 1048576");
  }
  const long page = ::sysconf(_SC_PAGESIZE);
  if (page <= 0) return IoError("the system does not tell its page size");
  std::unique_ptr<HostDriver> driver(new HostDriver(options, static_cast<uint64_t>(page)));
  {
    MutexLock lock(driver->mutex_);
    WEIR_TRY(driver->hbm_.Open());
    WEIR_TRY(driver->host_.Open());
  }
  if (options.huge_pages) {
    driver->properties_.host_tier_shortcoming = WhyNoHugePages();
    const bool granted = driver->properties_.host_tier_shortcoming.empty();
    if (granted) driver->populate_step_ = HostMemory::kHugePageBytes;
  }
  return driver;
}

HostDriver::HostDriver(const Options& options, uint64_t page_bytes)
    : options_(options),
      counters_(options.counters),
      table_(page_bytes),
      hbm_("hbm", options.hbm_bytes, -1, options.reserve),
      host_("host", options.host_bytes, options.numa_node, options.reserve) {
  properties_.name = "host";
  properties_.device = CpuName();
  properties_.granularity_bytes = page_bytes;
  properties_.hbm_bytes = options.hbm_bytes;
  properties_.host_addressable = true;
}

HostDriver::~HostDriver() {
  std::vector<std::shared_ptr<HostStream>> streams;
  {
    MutexLock lock(mutex_);
    streams = streams_;
  }
  for (const auto& stream : streams) stream->Cancel();
  for (const auto& stream : streams) stream->Stop();
  MutexLock lock(mutex_);
  for (const auto& [base, bytes] : table_.reservations()) ::munmap(Pointer(base), bytes);
}

// --- Physical memory
// -------------------------------------------------------------------------------

HostMemory* HostDriver::TierMemory(Tier tier) {
  switch (tier) {
    case Tier::kHbm: return &hbm_;
    case Tier::kHost: return &host_;
    case Tier::kPeer:
    case Tier::kNvme: return nullptr;
  }
  return nullptr;
}

Result<AllocId> HostDriver::Create(Tier tier, uint64_t bytes) {
  MutexLock lock(mutex_);
  HostMemory* memory = TierMemory(tier);
  if (memory == nullptr) {
    return Unsupported("the host driver has no tier " + std::string(TierName(tier)) +
                       "; it has hbm and host");
  }
  WEIR_TRY(table_.CheckSize("allocation", bytes));
  const uint64_t offset = WEIR_TRY(memory->Allocate(bytes));
  return table_.AddAllocation(tier, bytes, offset);
}

Status HostDriver::Release(AllocId alloc) {
  MutexLock lock(mutex_);
  WEIR_TRY(table_.CheckRelease(alloc));
  const MappingTable::Allocation a = *table_.Find(alloc);
  TierMemory(a.tier)->Release(a.tag, a.bytes);
  table_.ApplyRelease(alloc);
  return OkStatus();
}

// --- Virtual memory
// --------------------------------------------------------------------------------

Result<VirtAddr> HostDriver::Reserve(uint64_t bytes, uint64_t alignment) {
  MutexLock lock(mutex_);
  WEIR_TRY(table_.CheckSize("reservation", bytes));
  if (!IsPowerOfTwo(alignment)) {
    return InvalidArgument("alignment " + std::to_string(alignment) + " is no power of two");
  }
  const uint64_t align = std::max(alignment, properties_.granularity_bytes);
  const auto wanted = CheckedAdd(bytes, align - properties_.granularity_bytes);
  if (!wanted) return NoMemory("no address space for " + std::to_string(bytes) + " bytes");
  void* got =
      ::mmap(nullptr, *wanted, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (got == MAP_FAILED) {
    return SystemError("reserving " + std::to_string(bytes) + " bytes of addresses", errno);
  }
  const auto start = reinterpret_cast<VirtAddr>(got);
  const VirtAddr base = AlignUp(start, align);
  if (base != start) ::munmap(got, base - start);
  const uint64_t tail = start + *wanted - (base + bytes);
  if (tail != 0) ::munmap(Pointer(base + bytes), tail);
  table_.AddReservation(base, bytes);
  return base;
}

Status HostDriver::Free(VirtAddr base) {
  MutexLock lock(mutex_);
  WEIR_TRY(table_.CheckFree(base));
  if (::munmap(Pointer(base), table_.ReservationBytes(base)) != 0) {
    return SystemError("munmap of a reservation", errno);
  }
  table_.ApplyFree(base);
  return OkStatus();
}

Status HostDriver::Map(VirtAddr at, AllocId alloc) {
  MutexLock lock(mutex_);
  WEIR_TRY(table_.CheckMap(at, alloc));
  const MappingTable::Allocation& a = *table_.Find(alloc);
  if (::mmap(Pointer(at), a.bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, TierMemory(a.tier)->fd(),
             static_cast<off_t>(a.tag)) == MAP_FAILED) {
    return SystemError("mapping " + std::to_string(a.bytes) + " bytes at " + HexAddress(at), errno);
  }
  if (options_.huge_pages && a.tier == Tier::kHost && a.bytes >= HostMemory::kHugePageBytes) {
    // Not granted: said once, in properties().
    (void)::madvise(Pointer(at), a.bytes, MADV_HUGEPAGE);
  }
  table_.ApplyMap(at, alloc);
  return OkStatus();
}

Status HostDriver::SetAccess(VirtAddr at, uint64_t bytes, Access access) {
  {
    MutexLock lock(mutex_);
    WEIR_TRY(table_.CheckSetAccess(at, bytes));
    if (::mprotect(Pointer(at), bytes, Protection(access)) != 0) {
      return SystemError("mprotect of " + std::to_string(bytes) + " bytes at " + HexAddress(at),
                         errno);
    }
    table_.ApplySetAccess(at, bytes, access);
  }
  if (options_.populate != HostPopulate::kOnSetAccess || access == Access::kNone) {
    return OkStatus();
  }
  const int populate = access == Access::kRead ? MADV_POPULATE_READ : MADV_POPULATE_WRITE;
  // Changes nothing that other calls look at, so they need not wait for it; in steps, since the
  // system lets nobody else map meanwhile.
  for (uint64_t done = 0; done < bytes; done += populate_step_) {
    // An old kernel does without: the first touch faults as ever.
    if (::madvise(Pointer(at + done), std::min(populate_step_, bytes - done), populate) != 0) {
      break;
    }
  }
  return OkStatus();
}

Status HostDriver::Unmap(VirtAddr at) {
  MutexLock lock(mutex_);
  WEIR_TRY(table_.CheckUnmap(at));
  if (!Blank(at, table_.mapping(at).bytes)) {
    return SystemError("unmapping " + HexAddress(at), errno);
  }
  table_.ApplyUnmap(at);
  return OkStatus();
}

Status HostDriver::CheckAccess(VirtAddr at, uint64_t bytes, Access access) {
  MutexLock lock(mutex_);
  return table_.CheckAccess(at, bytes, access);
}

// --- Streams
// ---------------------------------------------------------------------------------------

Result<StreamId> HostDriver::CreateStream(std::string_view name) {
  MutexLock lock(mutex_);
  if (options_.threads != 0 && live_streams_ >= options_.threads) {
    return NoMemory("all " + std::to_string(options_.threads) + " stream threads are in use");
  }
  const StreamId id(static_cast<uint32_t>(streams_.size()));
  streams_.push_back(std::make_shared<HostStream>(std::string(name)));
  ++live_streams_;
  return id;
}

Result<std::shared_ptr<HostStream>> HostDriver::Find(StreamId id) {
  MutexLock lock(mutex_);
  if (id.value >= streams_.size() || streams_[id.value]->stopped()) {
    return InvalidArgument("there is no stream " + std::to_string(id.value));
  }
  return streams_[id.value];
}

Result<std::shared_ptr<HostStream>> HostDriver::FindOf(EventId event) {
  const uint64_t id = StreamIndexOf(event);
  MutexLock lock(mutex_);
  if (!event.valid() || id >= streams_.size() || NumberOf(event) > streams_[id]->submitted()) {
    return InvalidArgument("there is no event " + std::to_string(event.value));
  }
  return streams_[id];
}

Status HostDriver::DestroyStream(StreamId stream) {
  const auto s = WEIR_TRY(Find(stream));
  s->Stop();
  MutexLock lock(mutex_);
  --live_streams_;
  return OkStatus();
}

Status HostDriver::Copy(StreamId stream, VirtAddr dst, VirtAddr src, uint64_t bytes) {
  const auto s = WEIR_TRY(Find(stream));
  WEIR_TRY(CheckAccess(dst, bytes, Access::kReadWrite));
  WEIR_TRY(CheckAccess(src, bytes, Access::kRead));
  s->Submit(HostStream::CopyOp{Pointer(dst), Pointer(src), bytes});
  return OkStatus();
}

Status HostDriver::Fill(StreamId stream, VirtAddr dst, std::byte value, uint64_t bytes) {
  const auto s = WEIR_TRY(Find(stream));
  WEIR_TRY(CheckAccess(dst, bytes, Access::kReadWrite));
  s->Submit(HostStream::FillOp{Pointer(dst), value, bytes});
  return OkStatus();
}

Status HostDriver::HostFunction(StreamId stream, std::function<Status()> fn) {
  const auto s = WEIR_TRY(Find(stream));
  if (!fn) return InvalidArgument("an empty host function");
  s->Submit(HostStream::HostFunctionOp{std::move(fn)});
  return OkStatus();
}

Result<EventId> HostDriver::Record(StreamId stream) {
  const auto s = WEIR_TRY(Find(stream));
  return MakeEvent(stream, s->submitted());
}

Result<bool> HostDriver::IsComplete(EventId event) {
  return WEIR_TRY(FindOf(event))->IsComplete(NumberOf(event));
}

Status HostDriver::Wait(EventId event) {
  return WEIR_TRY(FindOf(event))->WaitFor(NumberOf(event), nullptr);
}

Status HostDriver::StreamWait(StreamId stream, EventId event) {
  const auto s = WEIR_TRY(Find(stream));
  auto other = WEIR_TRY(FindOf(event));
  if (other == s) return OkStatus();  // in order anyway
  s->Submit(HostStream::StreamWaitOp{std::move(other), NumberOf(event)});
  return OkStatus();
}

// --- Counters
// --------------------------------------------------------------------------------------

Result<VirtAddr> HostDriver::CreateCounter() {
  MutexLock lock(mutex_);
  return counters_.Create();
}

Status HostDriver::DestroyCounter(VirtAddr counter) {
  MutexLock lock(mutex_);
  return counters_.Destroy(counter);
}

Status HostDriver::CheckCounter(VirtAddr counter) {
  MutexLock lock(mutex_);
  return counters_.Check(counter);
}

Status HostDriver::WriteCounter(StreamId stream, VirtAddr counter, uint64_t value) {
  const auto s = WEIR_TRY(Find(stream));
  WEIR_TRY(CheckCounter(counter));
  s->Submit(HostStream::WriteCounterOp{&counters_.CellOf(counter), value});
  return OkStatus();
}

Status HostDriver::WaitCounter(StreamId stream, VirtAddr counter, uint64_t at_least) {
  const auto s = WEIR_TRY(Find(stream));
  WEIR_TRY(CheckCounter(counter));
  s->Submit(HostStream::WaitCounterOp{&counters_.CellOf(counter), at_least});
  return OkStatus();
}

uint64_t HostDriver::LoadCounter(VirtAddr counter) {
  return counters_.CellOf(counter).value.load(std::memory_order_acquire);
}

void HostDriver::StoreCounter(VirtAddr counter, uint64_t value) {
  HostCounters::Store(counters_.CellOf(counter), value);
}

Status HostDriver::HostWaitCounter(VirtAddr counter, uint64_t at_least, uint64_t timeout_ns) {
  return HostCounters::Wait(counters_.CellOf(counter), at_least, timeout_ns, nullptr);
}

// --- Synchronous access
// ----------------------------------------------------------------------------

Status HostDriver::Read(VirtAddr src, std::span<std::byte> dst) {
  WEIR_TRY(CheckAccess(src, dst.size(), Access::kRead));
  std::memcpy(dst.data(), Pointer(src), dst.size());
  return OkStatus();
}

Status HostDriver::Write(VirtAddr dst, std::span<const std::byte> src) {
  WEIR_TRY(CheckAccess(dst, src.size(), Access::kReadWrite));
  std::memcpy(Pointer(dst), src.data(), src.size());
  return OkStatus();
}

TimeNs HostDriver::Now() {
  return static_cast<TimeNs>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                 std::chrono::steady_clock::now().time_since_epoch())
                                 .count());
}

}  // namespace weir
