#include "vmm/trace.h"

#include <chrono>

#include <unistd.h>

namespace weir {
namespace {

constexpr size_t kMostReasons = 256;

std::atomic<Tracer*> g_tracer{nullptr};
std::atomic<uint64_t> g_generation{1};

// Two parts, so that the hot one needs no guard: a destructor would cost a check at each access.
thread_local TraceRingUse t_cache;

struct ThreadRingHolder {
  std::shared_ptr<TraceSegment> segment;
  uint32_t number = TraceSegment::kRings;

  void Release() {
    if (segment != nullptr && number < TraceSegment::kRings) segment->GiveBackRing(number);
    segment.reset();
  }
  ~ThreadRingHolder() {
    t_cache.ring = nullptr;
    Release();
  }
};
thread_local ThreadRingHolder t_holder;

std::string QuotedJson(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + '"';
}

std::string WithoutDigits(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= '0' && c <= '9') c = '#';
  }
  return out;
}

}  // namespace

TimeNs TraceMonotonicNs() {
  return static_cast<TimeNs>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                 std::chrono::steady_clock::now().time_since_epoch())
                                 .count());
}

Tracer::Tracer(const Options& options)
    : options_(options),
      generation_(g_generation.fetch_add(1, std::memory_order_relaxed)),
      segment_(options.segment != nullptr
                   ? options.segment
                   : TraceSegment::Create(TraceSegment::Sharing::kPrivate, options.ring_records)
                         .value()),
      header_(segment_->header()),
      mask_(options.mask) {
  header_.active_mask.store(options.mask, std::memory_order_release);
}

Tracer::~Tracer() {
  if (GetTracer() == this) SetTracer(nullptr);
  header_.active_mask.store(0, std::memory_order_release);
  header_.closed.store(1, std::memory_order_release);
}

// --- Emitting ------------------------------------------------------------------------------------

TraceRingUse Tracer::TakeRing() {
  TraceRingUse use{.generation = generation_, .number = segment_->TakeRing()};
  if (use.number < TraceSegment::kRings) {
    use.ring = &segment_->ring(use.number);
    use.records = segment_->records(use.number);
  }
  return use;
}

const TraceRingUse& Tracer::ThreadRing() {
  if (t_cache.generation == generation_) [[likely]]
    return t_cache;
  t_holder.Release();
  t_holder.segment = segment_;
  t_cache = TakeRing();
  t_holder.number = t_cache.number;
  return t_cache;
}

void Tracer::RegisterThread() {
  (void)ThreadRing();
}

TimeNs Tracer::Now() const {
  return options_.clock ? options_.clock() : TraceMonotonicNs();
}

void Tracer::Emit(TraceType type, uint8_t cause, const std::array<uint64_t, 6>& args) {
  if ((mask() & MaskOf(type)) == 0) return;
  EmitTo(ThreadRing(), Now(), type, cause, args);
}

void Tracer::EmitTo(const TraceRingUse& use, TimeNs time_ns, TraceType type, uint8_t cause,
                    const std::array<uint64_t, 6>& args) {
  TraceRing* const ring = use.ring;
  if (ring == nullptr) {
    header_.lost_without_ring.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  const uint64_t capacity = header_.ring_records;
  uint64_t head = ring->head.load(std::memory_order_relaxed);
  const uint32_t session = header_.session.load(std::memory_order_relaxed);
  if (ring->session.load(std::memory_order_relaxed) != session) [[unlikely]] {
    ring->unreported = 0;
    ring->lost.store(0, std::memory_order_relaxed);
    ring->session.store(session, std::memory_order_relaxed);
  }
  const uint64_t needed = ring->unreported != 0 ? 2 : 1;
  // Also when a recorder outside left nonsense in |tail|: then the ring is full, and no more.
  if (head - ring->known_tail + needed > capacity) {
    ring->known_tail = ring->tail.load(std::memory_order_acquire);
    if (head - ring->known_tail + needed > capacity) {
      ++ring->unreported;
      ring->lost.store(ring->lost.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
      return;
    }
  }
  const auto put = [&](TraceType t, uint8_t c, const std::array<uint64_t, 6>& a) {
    TraceRecord& r = use.records[head & (capacity - 1)];
    r.time_ns = time_ns;
    r.type = static_cast<uint16_t>(t);
    r.cause = c;
    r.reserved = 0;
    r.thread = use.number;
    for (size_t i = 0; i < a.size(); ++i) r.args[i] = a[i];
    ++head;
  };
  if (ring->unreported != 0) {
    put(TraceType::kDrop, 0, {ring->unreported, ring->lost.load(std::memory_order_relaxed)});
    ring->unreported = 0;
  }
  put(type, cause, args);
  ring->head.store(head, std::memory_order_release);
}

void Tracer::set_mask(uint64_t mask) {
  mask_.store(mask, std::memory_order_relaxed);
  if (GetTracer() == this) trace_internal::active_mask.store(mask, std::memory_order_relaxed);
  header_.active_mask.store(mask, std::memory_order_release);
}

// --- Draining ------------------------------------------------------------------------------------

uint64_t Tracer::Drain(const std::function<void(const TraceRecord&)>& sink) {
  WEIR_CHECK(!draining_.exchange(true, std::memory_order_acquire), "one drainer at a time");
  uint64_t count = 0;
  const uint64_t index_mask = header_.ring_records - 1;
  const uint32_t rings = header_.rings_used.load(std::memory_order_acquire);
  for (uint32_t i = 0; i < rings; ++i) {
    TraceRing& ring = segment_->ring(i);
    const TraceRecord* const records = segment_->records(i);
    const uint64_t head = ring.head.load(std::memory_order_acquire);
    uint64_t tail = ring.tail.load(std::memory_order_relaxed);
    for (; tail != head; ++tail, ++count) {
      const TraceRecord record = records[tail & index_mask];
      ring.tail.store(tail + 1, std::memory_order_release);
      sink(record);
    }
  }
  draining_.store(false, std::memory_order_release);
  return count;
}

bool Tracer::HalfFull() const {
  const uint32_t rings = header_.rings_used.load(std::memory_order_acquire);
  for (uint32_t i = 0; i < rings; ++i) {
    const TraceRing& ring = segment_->ring(i);
    const uint64_t held =
        ring.head.load(std::memory_order_relaxed) - ring.tail.load(std::memory_order_relaxed);
    if (held >= header_.ring_records / 2) return true;
  }
  return false;
}

uint64_t Tracer::dropped() const {
  uint64_t n = header_.lost_without_ring.load(std::memory_order_relaxed);
  const uint32_t session = header_.session.load(std::memory_order_relaxed);
  const uint32_t rings = header_.rings_used.load(std::memory_order_acquire);
  for (uint32_t i = 0; i < rings; ++i) {
    const TraceRing& ring = segment_->ring(i);
    if (ring.session.load(std::memory_order_relaxed) != session) continue;
    n += ring.lost.load(std::memory_order_relaxed);
  }
  return n;
}

// --- Recorders outside ---------------------------------------------------------------------------

bool Tracer::FollowRecorder() {
  if (own_lease_.load(std::memory_order_relaxed) != 0) return false;
  const auto wanted = [this] {
    return header_.lease.load(std::memory_order_acquire) != 0
               ? header_.wanted_mask.load(std::memory_order_acquire)
               : 0;
  };
  // A tracer with a mask of its own, which never had a recorder, goes on with it.
  const uint32_t session = header_.session.load(std::memory_order_acquire);
  if (session == session_ && (session == 0 || wanted() == mask())) [[likely]]
    return false;
  MutexLock lock(mutex_);
  const uint64_t now = wanted();
  if (now == 0) return false;  // ExpireRecorder ends it
  const bool began = session != session_;
  session_ = session;
  set_mask(now);
  return began;
}

void Tracer::ExpireRecorder(TimeNs now_ns) {
  if (own_lease_.load(std::memory_order_relaxed) != 0) return;
  if (header_.session.load(std::memory_order_acquire) == 0) return;
  MutexLock lock(mutex_);
  uint64_t lease = header_.lease.load(std::memory_order_acquire);
  const uint64_t beat = header_.heartbeat_ns.load(std::memory_order_acquire);
  // A heartbeat from the future is as wrong as one that is too old.
  const uint64_t age = now_ns > beat ? now_ns - beat : beat - now_ns;
  if (lease != 0 && age > kTraceLeaseNs) {
    header_.wanted_mask.store(0, std::memory_order_release);
    header_.lease.compare_exchange_strong(lease, 0, std::memory_order_acq_rel);
    lease = 0;
  }
  const bool done = lease == 0 || header_.wanted_mask.load(std::memory_order_acquire) == 0;
  if (done && mask() != 0) set_mask(0);
}

bool Tracer::TakeLease(TimeNs now_ns) {
  MutexLock lock(mutex_);
  uint64_t nobody = 0;
  const uint64_t mine = (now_ns << 32) | static_cast<uint32_t>(getpid());
  // Before the lease, or a recorder outside might find it expired; never somebody else's.
  if (header_.lease.load(std::memory_order_acquire) != 0) return false;
  header_.heartbeat_ns.store(now_ns, std::memory_order_release);
  if (!header_.lease.compare_exchange_strong(nobody, mine, std::memory_order_acq_rel)) return false;
  own_lease_.store(mine, std::memory_order_relaxed);
  return true;
}

void Tracer::KeepLease(TimeNs now_ns) {
  header_.heartbeat_ns.store(now_ns, std::memory_order_release);
}

void Tracer::ReleaseLease() {
  uint64_t mine = own_lease_.exchange(0, std::memory_order_relaxed);
  if (mine != 0) header_.lease.compare_exchange_strong(mine, 0, std::memory_order_acq_rel);
}

// --- Metadata ------------------------------------------------------------------------------------

Status Tracer::SetMetadata(std::string json) {
  MutexLock lock(mutex_);
  metadata_ = std::move(json);
  return Publish();
}

std::string Tracer::metadata() const {
  MutexLock lock(mutex_);
  return WholeMetadata();
}

std::string Tracer::WholeMetadata() const {
  std::string json = metadata_;
  json.pop_back();  // the closing brace
  if (json.size() > 1) json += ',';
  json += "\"reasons\":[";
  for (size_t i = 0; i < reasons_.size(); ++i) {
    json += (i == 0 ? "" : ",") + QuotedJson(reasons_[i]);
  }
  return json + "]}";
}

Status Tracer::Publish() {
  metadata_version_.fetch_add(1, std::memory_order_release);
  return segment_->PublishMetadata(WholeMetadata());
}

uint32_t Tracer::ReasonIndex(std::string_view reason) {
  std::string text = WithoutDigits(reason);
  MutexLock lock(mutex_);
  if (const auto it = reason_index_.find(text); it != reason_index_.end()) return it->second;
  if (reasons_.size() + 1 >= kMostReasons) text = "another reason";
  const auto [it, added] = reason_index_.emplace(text, static_cast<uint32_t>(reasons_.size()));
  if (added) {
    reasons_.push_back(std::move(text));
    (void)Publish();  // too long: the file still gets it
  }
  return it->second;
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
