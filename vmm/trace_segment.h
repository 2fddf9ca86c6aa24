// TraceSegment: the memory that a process's trace rings lie in (layout: trace_format.h).
//
// Represents one mapping: shared (a memfd that another process of the same user finds under
// /proc/<pid>/fd and maps) or private. Pages cost nothing before a thread writes to them. Shared
// ownership: the tracer, and every thread that has taken a ring, so that a thread may end after its
// tracer.
#pragma once

#include <memory>
#include <string_view>

#include "vmm/status.h"
#include "vmm/trace_format.h"

namespace weir {

class TraceSegment {
 public:
  enum class Sharing : uint8_t { kPrivate, kShared };
  static constexpr uint32_t kRings = 64;  // threads that can emit at once
  static constexpr uint32_t kMetaCapacity = 1U << 20;

  // |ring_records|: per ring, a power of two, at least 4. kIo: the system refuses the memory.
  static Result<std::shared_ptr<TraceSegment>> Create(Sharing sharing, uint32_t ring_records);
  ~TraceSegment();
  TraceSegment(const TraceSegment&) = delete;
  TraceSegment& operator=(const TraceSegment&) = delete;

  TraceSegmentHeader& header() { return *reinterpret_cast<TraceSegmentHeader*>(base_); }
  TraceRing& ring(uint32_t i) {
    return reinterpret_cast<TraceRing*>(base_ + header().rings_offset)[i];
  }
  TraceRecord* records(uint32_t i) {
    return reinterpret_cast<TraceRecord*>(base_ + header().records_offset) +
           uint64_t{i} * header().ring_records;
  }
  bool shared() const { return fd_ >= 0; }

  // Takes a free ring for the calling thread; its number, or kRings when all are taken.
  uint32_t TakeRing();
  void GiveBackRing(uint32_t i) { ring(i).taken.store(0, std::memory_order_release); }
  // Replaces the JSON that recorders outside see. One writer at a time. kNoMemory: too long.
  Status PublishMetadata(std::string_view json);

 private:
  TraceSegment(std::byte* base, uint64_t bytes, int fd) : base_(base), bytes_(bytes), fd_(fd) {}

  std::byte* base_;
  uint64_t bytes_;
  int fd_;  // -1: private
};

}  // namespace weir
