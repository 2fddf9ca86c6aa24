#include "vmm/trace.h"

#include <chrono>

namespace weir {
namespace {

std::atomic<Tracer*> g_tracer{nullptr};
std::atomic<uint64_t> g_generation{1};

struct ThreadCache {
  uint64_t generation = 0;
  void* ring = nullptr;
};
thread_local ThreadCache t_cache;

TimeNs MonotonicNs() {
  return static_cast<TimeNs>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                 std::chrono::steady_clock::now().time_since_epoch())
                                 .count());
}

}  // namespace

// One producer (its thread), one consumer (the drainer). |head| and |tail| only grow; the slot of n
// is n mod capacity.
struct Tracer::Ring {
  Ring(uint32_t capacity, uint32_t thread_number)
      : records(capacity), mask(capacity - 1), thread(thread_number) {}

  std::vector<TraceRecord> records;
  const uint64_t mask;
  const uint32_t thread;
  // Producer's.
  alignas(64) std::atomic<uint64_t> head{0};
  uint64_t known_tail = 0;
  uint64_t unreported = 0;  // lost since the last kDrop record
  std::atomic<uint64_t> lost{0};
  // Consumer's.
  alignas(64) std::atomic<uint64_t> tail{0};

  uint64_t Room(uint64_t at, uint64_t needed) {
    if (records.size() - (at - known_tail) < needed) {
      known_tail = tail.load(std::memory_order_acquire);
    }
    return records.size() - (at - known_tail);
  }
};

Tracer::Tracer(const Options& options)
    : options_(options),
      generation_(g_generation.fetch_add(1, std::memory_order_relaxed)),
      mask_(options.mask) {
  WEIR_CHECK(IsPowerOfTwo(options.ring_records) && options.ring_records >= 4,
             "ring_records must be a power of two, at least 4");
}

Tracer::~Tracer() {
  if (GetTracer() == this) SetTracer(nullptr);
}

Tracer::Ring* Tracer::ThreadRing() {
  if (t_cache.generation == generation_) [[likely]]
    return static_cast<Ring*>(t_cache.ring);
  MutexLock lock(mutex_);
  rings_.push_back(
      std::make_unique<Ring>(options_.ring_records, static_cast<uint32_t>(rings_.size())));
  t_cache = {generation_, rings_.back().get()};
  return rings_.back().get();
}

void Tracer::RegisterThread() {
  ThreadRing();
}

void Tracer::Emit(TraceType type, uint8_t cause, const std::array<uint64_t, 6>& args) {
  if ((mask() & MaskOf(type)) == 0) return;
  Ring& ring = *ThreadRing();
  uint64_t head = ring.head.load(std::memory_order_relaxed);
  const uint64_t needed = ring.unreported != 0 ? 2 : 1;
  if (ring.Room(head, needed) < needed) {
    ++ring.unreported;
    ring.lost.store(ring.lost.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    return;
  }
  const TimeNs now = options_.clock ? options_.clock() : MonotonicNs();
  const auto put = [&](TraceType t, uint8_t c, const std::array<uint64_t, 6>& a) {
    TraceRecord& r = ring.records[head & ring.mask];
    r.time_ns = now;
    r.type = static_cast<uint16_t>(t);
    r.cause = c;
    r.reserved = 0;
    r.thread = ring.thread;
    for (size_t i = 0; i < a.size(); ++i) r.args[i] = a[i];
    ++head;
  };
  if (ring.unreported != 0) {
    put(TraceType::kDrop, 0, {ring.unreported, ring.lost.load(std::memory_order_relaxed)});
    ring.unreported = 0;
  }
  put(type, cause, args);
  ring.head.store(head, std::memory_order_release);
}

void Tracer::set_mask(uint64_t mask) {
  mask_.store(mask, std::memory_order_relaxed);
  if (GetTracer() == this) trace_internal::active_mask.store(mask, std::memory_order_relaxed);
}

std::vector<Tracer::Ring*> Tracer::Rings() const {
  std::vector<Ring*> rings;
  MutexLock lock(mutex_);
  rings.reserve(rings_.size());
  for (const auto& ring : rings_) rings.push_back(ring.get());
  return rings;
}

uint64_t Tracer::Drain(const std::function<void(const TraceRecord&)>& sink) {
  WEIR_CHECK(!draining_.exchange(true, std::memory_order_acquire), "one drainer at a time");
  uint64_t count = 0;
  for (Ring* ring : Rings()) {
    const uint64_t head = ring->head.load(std::memory_order_acquire);
    uint64_t tail = ring->tail.load(std::memory_order_relaxed);
    for (; tail != head; ++tail, ++count) {
      const TraceRecord record = ring->records[tail & ring->mask];
      ring->tail.store(tail + 1, std::memory_order_release);
      sink(record);
    }
  }
  draining_.store(false, std::memory_order_release);
  return count;
}

uint64_t Tracer::dropped() const {
  uint64_t n = 0;
  for (const Ring* ring : Rings()) n += ring->lost.load(std::memory_order_relaxed);
  return n;
}

void SetTracer(Tracer* tracer) {
  g_tracer.store(tracer, std::memory_order_release);
  trace_internal::active_mask.store(tracer != nullptr ? tracer->mask() : 0,
                                    std::memory_order_relaxed);
}

Tracer* GetTracer() {
  return g_tracer.load(std::memory_order_acquire);
}

}  // namespace weir
