#include "vmm/trace_segment.h"

#include <cerrno>
#include <cstring>
#include <new>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/types.h"

namespace weir {
namespace {

constexpr uint64_t kPage = 64 * kKiB;  // a multiple of every page size in use

Status SystemError(const char* what) {
  return IoError(std::string(what) + ": " + std::strerror(errno));
}

// Owner only, and nobody may shrink it: this process would be killed at the next record.
Result<int> MakeFile(uint64_t bytes) {
  const int fd = memfd_create(kTraceSegmentName, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return SystemError("memfd_create for the trace rings");
  if (fchmod(fd, 0600) != 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0 ||
      fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    Status status = SystemError("making the trace rings");
    close(fd);
    return status;
  }
  return fd;
}

}  // namespace

Result<std::shared_ptr<TraceSegment>> TraceSegment::Create(Sharing sharing, uint32_t ring_records) {
  if (!IsPowerOfTwo(ring_records) || ring_records < 4) {
    return InvalidArgument("trace rings of " + std::to_string(ring_records) +
                           " records; accepted are powers of two from 4");
  }
  const uint64_t rings_offset = sizeof(TraceSegmentHeader);
  const uint64_t meta_offset = AlignUp(rings_offset + kRings * sizeof(TraceRing), kPage);
  const uint64_t records_offset = meta_offset + kMetaCapacity;
  const uint64_t bytes = records_offset + uint64_t{kRings} * ring_records * sizeof(TraceRecord);
  const int fd = sharing == Sharing::kShared ? WEIR_TRY(MakeFile(bytes)) : -1;
  const int flags = fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (at == MAP_FAILED) {
    Status status = SystemError("mapping the trace rings");
    if (fd >= 0) close(fd);
    return status;
  }
  // All zero: the atomics too, which begin their life here.
  auto* base = static_cast<std::byte*>(at);
  auto* header = new (base) TraceSegmentHeader{};
  for (uint32_t i = 0; i < kRings; ++i)
    new (base + rings_offset + i * sizeof(TraceRing)) TraceRing{};
  header->version = kTraceVersion;
  header->record_bytes = sizeof(TraceRecord);
  header->segment_bytes = bytes;
  header->pid = static_cast<uint32_t>(getpid());
  header->ring_count = kRings;
  header->ring_records = ring_records;
  header->meta_capacity = kMetaCapacity;
  header->rings_offset = rings_offset;
  header->records_offset = records_offset;
  header->meta_offset = meta_offset;
  // All of it is there before the magic is. (A read-modify-write, for ThreadSanitizer knows no
  // fences.)
  header->meta_sequence.exchange(0, std::memory_order_acq_rel);
  std::memcpy(header->magic, kTraceSegmentMagic, sizeof(header->magic));
  return std::shared_ptr<TraceSegment>(new TraceSegment(base, bytes, fd));
}

TraceSegment::~TraceSegment() {
  munmap(base_, bytes_);
  if (fd_ >= 0) close(fd_);
}

uint32_t TraceSegment::TakeRing() {
  for (uint32_t i = 0; i < kRings; ++i) {
    uint32_t free = 0;
    // Acquire: what the thread before left of the producer's side is seen.
    if (!ring(i).taken.compare_exchange_strong(free, 1, std::memory_order_acquire)) continue;
    std::atomic<uint32_t>& used = header().rings_used;
    uint32_t most = used.load(std::memory_order_relaxed);
    while (most < i + 1 && !used.compare_exchange_weak(most, i + 1, std::memory_order_release)) {
    }
    return i;
  }
  return kRings;
}

Status TraceSegment::PublishMetadata(std::string_view json) {
  TraceSegmentHeader& h = header();
  if (json.size() > h.meta_capacity) {
    return NoMemory("the trace's metadata has " + std::to_string(json.size()) + " bytes, at most " +
                    std::to_string(h.meta_capacity) + " fit");
  }
  const uint64_t sequence = h.meta_sequence.load(std::memory_order_relaxed);
  h.meta_sequence.exchange(sequence + 1, std::memory_order_acq_rel);  // odd before any byte changes
  std::memcpy(base_ + h.meta_offset, json.data(), json.size());
  h.meta_bytes.store(static_cast<uint32_t>(json.size()), std::memory_order_relaxed);
  h.meta_sequence.store(sequence + 2, std::memory_order_release);
  return OkStatus();
}

}  // namespace weir
