// Start-up, memory, copies: the only file that calls the cuMem* entry points.
#include "vmm/cuda_driver.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "vmm/checked_math.h"
#include "vmm/cuda_driver_api.h"

namespace weir {
namespace {

constexpr uint64_t kCounterWords = 4096;  // 512 KiB of pinned memory
constexpr uint64_t kGateWords = 1024;     // 128 KiB of device memory
constexpr uint64_t kOpen = INT64_MAX;     // a counter value that passes every wait
constexpr auto kDrainLimit = std::chrono::seconds(10);

CUmemAccess_flags AccessFlags(Access access) {
  switch (access) {
    case Access::kNone: return CU_MEM_ACCESS_FLAGS_PROT_NONE;
    case Access::kRead: return CU_MEM_ACCESS_FLAGS_PROT_READ;
    case Access::kReadWrite: return CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  }
  return CU_MEM_ACCESS_FLAGS_PROT_NONE;
}

CUmemLocation Location(CUmemLocationType type, int id) {
  CUmemLocation location{};
  location.type = type;
  location.id = id;
  return location;
}

CUmemAllocationProp AllocationAt(CUmemLocation location) {
  CUmemAllocationProp prop{};
  prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  prop.location = location;
  return prop;
}

// 0 where the driver does not know the attribute (it is older than the attribute).
int Attribute(const CudaApi& api, int device, CUdevice_attribute attribute) {
  int value = 0;
  return api.cuDeviceGetAttribute(&value, attribute, device) == CUDA_SUCCESS ? value : 0;
}

Result<int> FindDevice(const CudaApi& api, int ordinal) {
  int count = 0;
  WEIR_TRY(api.ToStatus("cuDeviceGetCount", api.cuDeviceGetCount(&count)));
  if (ordinal < 0 || ordinal >= count) {
    return NotFound("no CUDA device " + std::to_string(ordinal) + "; this machine has " +
                    std::to_string(count));
  }
  CUdevice device = -1;
  WEIR_TRY(api.ToStatus("cuDeviceGet", api.cuDeviceGet(&device, ordinal)));
  if (Attribute(api, device, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) != 1) {
    return Unsupported("CUDA device " + std::to_string(ordinal) +
                       " lacks virtual memory management");
  }
  return device;
}

}  // namespace

// --- Start-up and end --------------------------------------------------------------------------

bool CudaDriverPresent() {
  return LoadCudaApi().ok();
}

Result<std::unique_ptr<Driver>> CreateCudaDriver(const CudaDriverOptions& options) {
  return std::unique_ptr<Driver>(WEIR_TRY(CudaDriver::Create(options)));
}

Result<std::unique_ptr<CudaDriver>> CudaDriver::Create(const CudaDriverOptions& options) {
  const CudaApi* api = WEIR_TRY(LoadCudaApi());
  auto driver = std::unique_ptr<CudaDriver>(new CudaDriver(*api));
  WEIR_TRY(driver->Init(options));
  return driver;
}

Status CudaDriver::Init(const CudaDriverOptions& options) {
  CUmoduleLoadingMode loading = CU_MODULE_LAZY_LOADING;
  WEIR_TRY(Check("cuModuleGetLoadingMode", api_.cuModuleGetLoadingMode(&loading)));
  if (loading != CU_MODULE_EAGER_LOADING) {
    return Unsupported(
        "CUDA loads kernels when they are first launched, which deadlocks behind a closed gate; "
        "set CUDA_MODULE_LOADING=EAGER before this process first uses CUDA");
  }
  device_ = WEIR_TRY(FindDevice(api_, options.device));
  if (Attribute(api_, device_, CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING) != 1) {
    return Unsupported("the CUDA device lacks unified addressing");
  }
  if (Attribute(api_, device_, CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS) != 1) {
    return Unsupported("the CUDA device lacks 64-bit stream memory operations (counters)");
  }
  CUcontext context = nullptr;
  WEIR_TRY(Check("cuDevicePrimaryCtxRetain", api_.cuDevicePrimaryCtxRetain(&context, device_)));
  context_ = context;
  if (options.peer_device >= 0) {
    if (options.peer_device == options.device) {
      return InvalidArgument("peer_device equals device (" + std::to_string(options.device) +
                             "); accepted is another GPU or -1");
    }
    peer_device_ = WEIR_TRY(FindDevice(api_, options.peer_device));
    WEIR_TRY(InitPeer());
  }
  WEIR_TRY(Enter());

  std::array<char, 256> name{};
  WEIR_TRY(Check("cuDeviceGetName",
                 api_.cuDeviceGetName(name.data(), static_cast<int>(name.size()), device_)));
  size_t total = 0;
  WEIR_TRY(Check("cuDeviceTotalMem", api_.cuDeviceTotalMem(&total, device_)));
  properties_.name = "cuda";
  properties_.device = name.data();
  properties_.hbm_bytes = total;
  properties_.has_peer = peer_retained_;

  host_tier_ = Attribute(api_, device_,
                         CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) == 1;
  // Without NUMA the device reports node -1, and the API asks for node 0.
  const int nearest = Attribute(api_, device_, CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID);
  host_numa_node_ = options.host_numa_node >= 0 ? options.host_numa_node : std::max(0, nearest);
  if (options.host_numa_node < 0 && nearest < 0) {
    properties_.host_tier_shortcoming =
        "the CUDA device names no NUMA node near to it; host memory comes from node 0";
  }
  WEIR_TRY(InitGranularity());
  {
    MutexLock lock(table_mutex_);
    table_ = MappingTable(properties_.granularity_bytes);
  }
  CUstream stream = nullptr;
  WEIR_TRY(Check("cuStreamCreate", api_.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING)));
  service_stream_ = stream;
  WEIR_TRY(InitWords());
  WEIR_TRY(WarmUp());
  return CompareClocks();
}

Status CudaDriver::InitPeer() {
  int reachable = 0;
  WEIR_TRY(Check("cuDeviceCanAccessPeer",
                 api_.cuDeviceCanAccessPeer(&reachable, device_, peer_device_)));
  if (reachable != 1) {
    return Unsupported("CUDA device " + std::to_string(device_) + " cannot reach the memory of " +
                       std::to_string(peer_device_));
  }
  CUcontext unused = nullptr;
  WEIR_TRY(Check("cuDevicePrimaryCtxRetain", api_.cuDevicePrimaryCtxRetain(&unused, peer_device_)));
  peer_retained_ = true;
  return OkStatus();
}

Status CudaDriver::InitGranularity() {
  std::vector<CUmemLocation> locations{Location(CU_MEM_LOCATION_TYPE_DEVICE, device_)};
  if (peer_retained_) locations.push_back(Location(CU_MEM_LOCATION_TYPE_DEVICE, peer_device_));
  if (host_tier_) {
    locations.push_back(Location(CU_MEM_LOCATION_TYPE_HOST_NUMA, host_numa_node_));
  }
  for (const CUmemLocation& location : locations) {
    const CUmemAllocationProp prop = AllocationAt(location);
    for (const auto option :
         {CU_MEM_ALLOC_GRANULARITY_MINIMUM, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED}) {
      size_t bytes = 0;
      WEIR_TRY(Check("cuMemGetAllocationGranularity",
                     api_.cuMemGetAllocationGranularity(&bytes, &prop, option)));
      // All are powers of two, so the largest is a multiple of each.
      properties_.granularity_bytes = std::max<uint64_t>(properties_.granularity_bytes, bytes);
    }
  }
  return OkStatus();
}

Status CudaDriver::InitWords() {
  void* host = nullptr;
  WEIR_TRY(Check("cuMemHostAlloc",
                 api_.cuMemHostAlloc(&host, kCounterWords * WordBlock::kStride,
                                     CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_PORTABLE)));
  counters_.base = reinterpret_cast<VirtAddr>(host);
  counters_.live.resize(kCounterWords);
  CUdeviceptr seen_by_device = 0;
  WEIR_TRY(
      Check("cuMemHostGetDevicePointer", api_.cuMemHostGetDevicePointer(&seen_by_device, host, 0)));
  if (seen_by_device != counters_.base) {
    return Unsupported("pinned host memory has another address on the CUDA device");
  }
  CUdeviceptr gates = 0;
  WEIR_TRY(Check("cuMemAlloc", api_.cuMemAlloc(&gates, kGateWords * WordBlock::kStride)));
  gates_.base = gates;
  gates_.live.resize(kGateWords);
  return OkStatus();
}

// The first use of a fill or a copy may load code into the context, and loading waits for running
// work: behind a closed gate that would be a deadlock. So each kind is used once now.
Status CudaDriver::WarmUp() {
  constexpr size_t kBlock = kGateWords * WordBlock::kStride;
  WEIR_TRY(Check("cuMemsetD8Async", api_.cuMemsetD8Async(gates_.base, 0, kBlock, service_stream_)));
  WEIR_TRY(
      Check("cuMemsetD8Async", api_.cuMemsetD8Async(counters_.base, 0, kBlock, service_stream_)));
  WEIR_TRY(Check("cuMemcpyAsync", api_.cuMemcpyAsync(gates_.base, gates_.base + kBlock / 2,
                                                     kBlock / 2, service_stream_)));
  uint64_t word = 0;
  WEIR_TRY(Transfer(reinterpret_cast<VirtAddr>(&word), gates_.base, sizeof word));
  WEIR_TRY(Transfer(gates_.base, reinterpret_cast<VirtAddr>(&word), sizeof word));
  std::memset(reinterpret_cast<void*>(counters_.base), 0, kCounterWords * WordBlock::kStride);
  return OkStatus();
}

CudaDriver::~CudaDriver() {
  if (context_ == nullptr) return;
  // Results are of no use from here on: what cannot be given back goes with the process.
  (void)api_.cuCtxSetCurrent(context_);
  if (!DrainStreams()) return;
  DestroyStreams();
  ReleaseMemory();
  (void)api_.cuCtxSetCurrent(nullptr);
  if (peer_retained_) (void)api_.cuDevicePrimaryCtxRelease(peer_device_);
  (void)api_.cuDevicePrimaryCtxRelease(device_);
}

bool CudaDriver::DrainStreams() {
  const auto limit = std::chrono::steady_clock::now() + kDrainLimit;
  while (true) {
    // Again in each round: queued work may write a lower value, and a later wait then closes again.
    for (uint64_t i = 0; i < counters_.live.size(); ++i) {
      if (counters_.live[i]) StoreCounter(counters_.base + i * WordBlock::kStride, kOpen);
    }
    for (uint64_t i = 0; i < gates_.live.size(); ++i) {
      if (!gates_.live[i]) continue;
      (void)api_.cuStreamWriteValue64(service_stream_, gates_.base + i * WordBlock::kStride, kOpen,
                                      CU_STREAM_WRITE_VALUE_DEFAULT);
    }
    const bool busy = std::any_of(streams_.begin(), streams_.end(), [&](const Stream& stream) {
      return stream.handle != nullptr && api_.cuStreamQuery(stream.handle) == CUDA_ERROR_NOT_READY;
    });
    if (!busy) return true;
    if (std::chrono::steady_clock::now() > limit) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

void CudaDriver::ReleaseMemory() {
  MutexLock lock(table_mutex_);
  for (const auto& [base, bytes] : table_.reservations()) {
    for (VirtAddr at = base; at - base < bytes && table_.mapping_count() != 0;) {
      VirtAddr begin = 0;
      const MappingTable::Mapping* mapping = table_.Covering(at, &begin);
      if (mapping == nullptr) {
        at += properties_.granularity_bytes;
        continue;
      }
      at += mapping->bytes;
      (void)api_.cuMemUnmap(begin, mapping->bytes);
      table_.ApplyUnmap(begin);
    }
  }
  for (const auto& [id, allocation] : table_.allocations()) {
    (void)api_.cuMemRelease(allocation.tag);
  }
  for (const auto& [base, reserved] : reserved_) {
    (void)api_.cuMemAddressFree(reserved.base, reserved.bytes);
  }
  if (gates_.base != 0) (void)api_.cuMemFree(gates_.base);
  if (counters_.base != 0) (void)api_.cuMemFreeHost(reinterpret_cast<void*>(counters_.base));
}

// --- Physical and virtual memory ---------------------------------------------------------------

// Each call checks, lets the CUDA driver do its work, then notes what it did. Nobody may name the
// same addresses in between (driver.h), so no lock is held while the CUDA driver works.

Result<AllocId> CudaDriver::Create(Tier tier, uint64_t bytes) {
  WEIR_TRY(Enter());
  {
    MutexLock lock(table_mutex_);
    WEIR_TRY(table_.CheckSize("allocation", bytes));
  }
  CUmemLocation location{};
  switch (tier) {
    case Tier::kHbm:
      // Said here, since absurd sizes are an invalid value to some releases of the CUDA driver.
      if (bytes > properties_.hbm_bytes) {
        return NoMemory("tier hbm has " + std::to_string(properties_.hbm_bytes) + " bytes, " +
                        std::to_string(bytes) + " asked");
      }
      location = Location(CU_MEM_LOCATION_TYPE_DEVICE, device_);
      break;
    case Tier::kPeer:
      if (!peer_retained_) return Unsupported("tier peer: the driver was made without peer_device");
      location = Location(CU_MEM_LOCATION_TYPE_DEVICE, peer_device_);
      break;
    case Tier::kHost:
      if (!host_tier_) {
        return Unsupported("tier host: " + properties_.device + " cannot map host NUMA memory");
      }
      location = Location(CU_MEM_LOCATION_TYPE_HOST_NUMA, host_numa_node_);
      break;
    default:
      return Unsupported("tier " + std::string(TierName(tier)) +
                         ": the CUDA driver has hbm, peer and host");
  }
  const CUmemAllocationProp prop = AllocationAt(location);
  CUmemGenericAllocationHandle handle = 0;
  const Status created = Check("cuMemCreate", api_.cuMemCreate(&handle, bytes, &prop, 0));
  if (!created.ok()) {
    return created.WithContext("creating " + std::to_string(bytes) + " bytes in tier " +
                               std::string(TierName(tier)));
  }
  MutexLock lock(table_mutex_);
  return table_.AddAllocation(tier, bytes, handle);
}

Status CudaDriver::Release(AllocId alloc) {
  WEIR_TRY(Enter());
  CUmemGenericAllocationHandle handle = 0;
  {
    MutexLock lock(table_mutex_);
    WEIR_TRY(table_.CheckRelease(alloc));
    handle = table_.Find(alloc)->tag;
  }
  WEIR_TRY(Check("cuMemRelease", api_.cuMemRelease(handle)));
  MutexLock lock(table_mutex_);
  table_.ApplyRelease(alloc);
  return OkStatus();
}

Result<VirtAddr> CudaDriver::Reserve(uint64_t bytes, uint64_t alignment) {
  WEIR_TRY(Enter());
  {
    MutexLock lock(table_mutex_);
    WEIR_TRY(table_.CheckSize("reservation", bytes));
  }
  if (!IsPowerOfTwo(alignment)) {
    return InvalidArgument("reservation aligned to " + std::to_string(alignment) +
                           "; accepted is a power of two");
  }
  alignment = std::max(alignment, properties_.granularity_bytes);
  CUdeviceptr base = 0;
  uint64_t driver_bytes = bytes;
  CUresult result = api_.cuMemAddressReserve(&base, driver_bytes, alignment, 0, 0);
  const bool misaligned = result == CUDA_SUCCESS && base % alignment != 0;
  if (misaligned) {
    WEIR_TRY(Check("cuMemAddressFree", api_.cuMemAddressFree(base, driver_bytes)));
  }
  if (misaligned ||
      (result == CUDA_ERROR_INVALID_VALUE && alignment > properties_.granularity_bytes)) {
    // The alignment is more than this driver takes: reserve enough to align within.
    const auto padded = CheckedAdd(bytes, alignment);
    if (!padded) return InvalidArgument("a reservation's size and alignment exceed 64 bits");
    driver_bytes = *padded;
    result = api_.cuMemAddressReserve(&base, driver_bytes, 0, 0, 0);
  }
  WEIR_TRY(Check("cuMemAddressReserve", result));
  const VirtAddr aligned = AlignUp(base, alignment);
  MutexLock lock(table_mutex_);
  table_.AddReservation(aligned, bytes);
  reserved_.emplace(aligned, Reserved{base, driver_bytes});
  return aligned;
}

Status CudaDriver::Free(VirtAddr base) {
  WEIR_TRY(Enter());
  Reserved reserved;
  {
    MutexLock lock(table_mutex_);
    WEIR_TRY(table_.CheckFree(base));
    reserved = reserved_.at(base);
  }
  WEIR_TRY(Check("cuMemAddressFree", api_.cuMemAddressFree(reserved.base, reserved.bytes)));
  MutexLock lock(table_mutex_);
  reserved_.erase(base);
  table_.ApplyFree(base);
  return OkStatus();
}

Status CudaDriver::Map(VirtAddr at, AllocId alloc) {
  WEIR_TRY(Enter());
  MappingTable::Allocation allocation;
  {
    MutexLock lock(table_mutex_);
    WEIR_TRY(table_.CheckMap(at, alloc));
    allocation = *table_.Find(alloc);
  }
  WEIR_TRY(Check("cuMemMap", api_.cuMemMap(at, allocation.bytes, 0, allocation.tag, 0)));
  MutexLock lock(table_mutex_);
  table_.ApplyMap(at, alloc);
  return OkStatus();
}

Status CudaDriver::Unmap(VirtAddr at) {
  WEIR_TRY(Enter());
  uint64_t bytes = 0;
  {
    MutexLock lock(table_mutex_);
    WEIR_TRY(table_.CheckUnmap(at));
    bytes = table_.mapping(at).bytes;
  }
  WEIR_TRY(Check("cuMemUnmap", api_.cuMemUnmap(at, bytes)));
  MutexLock lock(table_mutex_);
  table_.ApplyUnmap(at);
  return OkStatus();
}

// One call a mapping: the CUDA driver's cost goes by mappings anyway, and each can be undone alone.
Status CudaDriver::SetAccess(VirtAddr at, uint64_t bytes, Access access) {
  WEIR_TRY(Enter());
  std::vector<MappedPiece> pieces;
  {
    MutexLock lock(table_mutex_);
    WEIR_TRY(table_.CheckSetAccess(at, bytes));
    for (VirtAddr here = at; here - at < bytes; here += pieces.back().bytes) {
      const MappingTable::Mapping& mapping = table_.mapping(here);
      pieces.push_back({here, mapping.bytes, table_.Find(mapping.alloc)->tier, mapping.access});
    }
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Status set = SetMappingAccess(pieces[i], access);
    if (set.ok()) continue;
    for (size_t undo = 0; undo < i; ++undo) {
      WEIR_TRY(SetMappingAccess(pieces[undo], pieces[undo].access));
    }
    return set;
  }
  MutexLock lock(table_mutex_);
  table_.ApplySetAccess(at, bytes, access);
  return OkStatus();
}

Status CudaDriver::SetMappingAccess(const MappedPiece& piece, Access access) {
  std::array<CUmemAccessDesc, 2> grants{};
  grants[0].location = Location(CU_MEM_LOCATION_TYPE_DEVICE, device_);
  grants[1].location = Location(CU_MEM_LOCATION_TYPE_HOST_NUMA, host_numa_node_);
  for (CUmemAccessDesc& grant : grants) grant.flags = AccessFlags(access);
  const size_t count = piece.tier == Tier::kHost ? 2 : 1;
  return Check("cuMemSetAccess", api_.cuMemSetAccess(piece.at, piece.bytes, grants.data(), count));
}

// --- Moving bytes ------------------------------------------------------------------------------

Result<std::vector<CudaDriver::Run>> CudaDriver::Walk(VirtAddr at, uint64_t bytes, Access needed,
                                                      const char* what) const {
  const auto within = [&](const WordBlock& block) {
    const uint64_t size = block.live.size() * WordBlock::kStride;
    return at >= block.base && at - block.base < size && bytes <= size - (at - block.base);
  };
  if (within(gates_)) return std::vector<Run>{{bytes, Tier::kHbm}};
  if (within(counters_)) return std::vector<Run>{{bytes, Tier::kHost}};
  MutexLock lock(table_mutex_);
  const Status accessible = table_.CheckAccess(at, bytes, needed);
  if (!accessible.ok()) return accessible.WithContext(what);
  std::vector<Run> runs;
  for (VirtAddr here = at; here - at < bytes;) {
    VirtAddr begin = 0;
    const MappingTable::Mapping* mapping = table_.Covering(here, &begin);
    const Tier tier = table_.Find(mapping->alloc)->tier;
    const uint64_t piece = std::min(begin + mapping->bytes, at + bytes) - here;
    if (runs.empty() || runs.back().tier != tier) runs.push_back({0, tier});
    runs.back().bytes += piece;
    here += piece;
  }
  return runs;
}

// The CUDA driver picks the path of a copy by where its first bytes live, so a copy is cut where
// the tier changes on either side.
Status CudaDriver::Copy(StreamId stream, VirtAddr dst, VirtAddr src, uint64_t bytes) {
  WEIR_TRY(Enter());
  Stream* queue = WEIR_TRY(FindStream(stream));
  std::vector<Run> to = WEIR_TRY(Walk(dst, bytes, Access::kReadWrite, "copy destination"));
  std::vector<Run> from = WEIR_TRY(Walk(src, bytes, Access::kRead, "copy source"));
  if (HasFailed(*queue)) return OkStatus();
  for (size_t i = 0, j = 0; bytes != 0;) {
    const uint64_t piece = std::min(to[i].bytes, from[j].bytes);
    if (to[i].tier == Tier::kHost && from[j].tier == Tier::kHost) {
      // The API may move bytes between two host ranges at once, on the calling thread.
      const auto move = [dst, src, piece] {
        std::memmove(reinterpret_cast<void*>(dst), reinterpret_cast<const void*>(src), piece);
        return OkStatus();
      };
      WEIR_TRY(LaunchHostCall(*queue, move, HostCallKind::kInfallible));
    } else {
      WEIR_TRY(Check("cuMemcpyAsync", api_.cuMemcpyAsync(dst, src, piece, queue->handle)));
    }
    dst += piece;
    src += piece;
    bytes -= piece;
    if ((to[i].bytes -= piece) == 0) ++i;
    if ((from[j].bytes -= piece) == 0) ++j;
  }
  return OkStatus();
}

Status CudaDriver::Fill(StreamId stream, VirtAddr dst, std::byte value, uint64_t bytes) {
  WEIR_TRY(Enter());
  Stream* queue = WEIR_TRY(FindStream(stream));
  const std::vector<Run> runs = WEIR_TRY(Walk(dst, bytes, Access::kReadWrite, "fill"));
  if (HasFailed(*queue)) return OkStatus();
  const auto byte = std::to_integer<uint8_t>(value);
  for (const Run& run : runs) {
    if (run.tier == Tier::kHost) {
      // The driver refuses a device memset of host-NUMA memory (seen on an H200, driver 580).
      const auto fill = [dst, byte, size = run.bytes] {
        std::memset(reinterpret_cast<void*>(dst), byte, size);
        return OkStatus();
      };
      WEIR_TRY(LaunchHostCall(*queue, fill, HostCallKind::kInfallible));
    } else {
      WEIR_TRY(Check("cuMemsetD8Async", api_.cuMemsetD8Async(dst, byte, run.bytes, queue->handle)));
    }
    dst += run.bytes;
  }
  return OkStatus();
}

Status CudaDriver::Transfer(VirtAddr dst, VirtAddr src, uint64_t bytes) {
  WEIR_TRY(Check("cuMemcpyAsync", api_.cuMemcpyAsync(dst, src, bytes, service_stream_)));
  return Check("cuStreamSynchronize", api_.cuStreamSynchronize(service_stream_));
}

Status CudaDriver::Read(VirtAddr src, std::span<std::byte> dst) {
  WEIR_TRY(Enter());
  for (const Run& run : WEIR_TRY(Walk(src, dst.size(), Access::kRead, "read"))) {
    if (run.tier == Tier::kHost) {
      std::memcpy(dst.data(), reinterpret_cast<const void*>(src), run.bytes);
    } else {
      WEIR_TRY(Transfer(reinterpret_cast<VirtAddr>(dst.data()), src, run.bytes));
    }
    src += run.bytes;
    dst = dst.subspan(run.bytes);
  }
  return OkStatus();
}

Status CudaDriver::Write(VirtAddr dst, std::span<const std::byte> src) {
  WEIR_TRY(Enter());
  for (const Run& run : WEIR_TRY(Walk(dst, src.size(), Access::kReadWrite, "write"))) {
    if (run.tier == Tier::kHost) {
      std::memcpy(reinterpret_cast<void*>(dst), src.data(), run.bytes);
    } else {
      WEIR_TRY(Transfer(dst, reinterpret_cast<VirtAddr>(src.data()), run.bytes));
    }
    dst += run.bytes;
    src = src.subspan(run.bytes);
  }
  return OkStatus();
}

}  // namespace weir
