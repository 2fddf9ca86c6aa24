#include "vmm/host_stream.h"

#include <cstring>

#include <pthread.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace weir {
namespace {

// Above this, copies go past the caches: 1.5 times as fast (docs/drivers.md), and the destination
// would not stay in them anyway.
constexpr uint64_t kStreamingBytes = 4 << 20;

void MoveBytes(std::byte* dst, const std::byte* src, uint64_t bytes) {
#if defined(__SSE2__)
  const bool overlap = dst < src + bytes && src < dst + bytes;
  const bool aligned = reinterpret_cast<uintptr_t>(dst) % 16 == 0;
  if (bytes >= kStreamingBytes && aligned && !overlap) {
    const uint64_t blocks = bytes / 64;
    for (uint64_t i = 0; i < blocks; ++i, src += 64, dst += 64) {
      const auto* from = reinterpret_cast<const __m128i*>(src);
      auto* to = reinterpret_cast<__m128i*>(dst);
      const __m128i a = _mm_loadu_si128(from);
      const __m128i b = _mm_loadu_si128(from + 1);
      const __m128i c = _mm_loadu_si128(from + 2);
      const __m128i d = _mm_loadu_si128(from + 3);
      _mm_stream_si128(to, a);
      _mm_stream_si128(to + 1, b);
      _mm_stream_si128(to + 2, c);
      _mm_stream_si128(to + 3, d);
    }
    _mm_sfence();  // before the counter that says that the bytes are there
    bytes %= 64;
  }
#endif
  std::memmove(dst, src, bytes);  // addresses may overlap
}

}  // namespace

HostStream::HostStream(std::string name) : name_(std::move(name)), thread_([this] { Run(); }) {}

HostStream::~HostStream() {
  Stop();
}

void HostStream::Submit(Op op) {
  MutexLock lock(mutex_);
  queue_.push_back(std::move(op));
  ++submitted_;
  work_.notify_one();
}

uint64_t HostStream::submitted() const {
  MutexLock lock(mutex_);
  return submitted_;
}

Status HostStream::ErrorAt(uint64_t number) const {
  return !error_.ok() && error_number_ <= number ? error_ : OkStatus();
}

Result<bool> HostStream::IsComplete(uint64_t number) {
  if (completed_.load(std::memory_order_acquire) < number) return false;
  MutexLock lock(mutex_);
  Status error = ErrorAt(number);
  if (!error.ok()) return error;
  return true;
}

Status HostStream::WaitFor(uint64_t number, const std::atomic<bool>* cancelled) {
  MutexLock lock(mutex_);
  while (completed_.load(std::memory_order_relaxed) < number) {
    if (cancelled != nullptr && cancelled->load(std::memory_order_seq_cst)) {
      return Cancelled("wait for stream " + name_);
    }
    lock.Wait(done_);
  }
  return ErrorAt(number);
}

void HostStream::Poke() {
  MutexLock lock(mutex_);
  done_.notify_all();
}

void HostStream::Cancel() {
  cancelled_.store(true, std::memory_order_seq_cst);
  if (HostCounters::Cell* cell = blocked_on_.load(std::memory_order_seq_cst)) {
    HostCounters::Wake(*cell);
  }
  std::shared_ptr<HostStream> other;
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    work_.notify_one();
    other = blocked_stream_;
  }
  if (other) other->Poke();
}

void HostStream::Stop() {
  if (!thread_.joinable()) return;
  Cancel();
  thread_.join();
}

void HostStream::Run() {
  pthread_setname_np(pthread_self(), name_.substr(0, 15).c_str());
  for (;;) {
    Op op;
    bool failed = false;
    {
      MutexLock lock(mutex_);
      while (queue_.empty() && !stopping_) lock.Wait(work_);
      if (queue_.empty()) return;
      op = std::move(queue_.front());
      queue_.pop_front();
      failed = !error_.ok();
    }
    Status outcome = failed ? OkStatus() : Execute(op);
    op = Op();  // what a host function holds is gone before its event completes
    MutexLock lock(mutex_);
    const uint64_t number = completed_.load(std::memory_order_relaxed) + 1;
    if (!outcome.ok()) {
      error_ = outcome.WithContext("stream " + name_);
      error_number_ = number;
    }
    completed_.store(number, std::memory_order_release);
    done_.notify_all();
  }
}

Status HostStream::Execute(Op& op) {
  if (auto* copy = std::get_if<CopyOp>(&op)) {
    MoveBytes(copy->dst, copy->src, copy->bytes);
    return OkStatus();
  }
  if (auto* fill = std::get_if<FillOp>(&op)) {
    std::memset(fill->dst, std::to_integer<int>(fill->value), fill->bytes);
    return OkStatus();
  }
  if (auto* function = std::get_if<HostFunctionOp>(&op)) return function->fn();
  if (auto* wait = std::get_if<StreamWaitOp>(&op)) return WaitForOther(*wait);
  if (auto* write = std::get_if<WriteCounterOp>(&op)) {
    HostCounters::Store(*write->cell, write->value);
    return OkStatus();
  }
  auto& wait = std::get<WaitCounterOp>(op);
  blocked_on_.store(wait.cell, std::memory_order_seq_cst);
  Status outcome = HostCounters::Wait(*wait.cell, wait.at_least, ~uint64_t{0}, &cancelled_);
  blocked_on_.store(nullptr, std::memory_order_seq_cst);
  return outcome;
}

// |blocked_stream_| is set before the flag is looked at: whoever cancels sees one or is seen.
Status HostStream::WaitForOther(const StreamWaitOp& op) {
  {
    MutexLock lock(mutex_);
    blocked_stream_ = op.other;
  }
  Status outcome = op.other->WaitFor(op.number, &cancelled_);
  MutexLock lock(mutex_);
  blocked_stream_.reset();
  return outcome;
}

}  // namespace weir
