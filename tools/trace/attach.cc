#include "tools/trace/attach.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace weir::trace_tool {
namespace {

void Pause(int ms) {
  std::this_thread::sleep_for(std::chrono::milliseconds(ms));
}

// When the process began, in the kernel's ticks; 0: there is none, or it is a zombie.
uint64_t StartOf(int pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(in, text);
  const size_t name_end = text.rfind(')');  // the name may hold anything
  if (name_end == std::string::npos || name_end + 2 >= text.size()) return 0;
  const char state = text[name_end + 2];
  if (state == 'Z' || state == 'X') return 0;
  size_t at = name_end + 2;
  for (int field = 3; field < 22 && at != std::string::npos; ++field) at = text.find(' ', at + 1);
  return at == std::string::npos ? 1 : std::strtoull(text.c_str() + at, nullptr, 10) | 1;
}

}  // namespace

uint64_t MonotonicNs() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

TraceSegmentView::TraceSegmentView(int pid) : pid_(pid), started_(StartOf(pid)) {
  const std::string folder = "/proc/" + std::to_string(pid) + "/fd";
  const std::string who = "process " + std::to_string(pid);
  if (started_ == 0) throw TraceError("there is no " + who);
  std::error_code error;
  int fd = -1;
  int why = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    std::error_code ignored;
    const std::string target = std::filesystem::read_symlink(entry.path(), ignored).string();
    if (!target.starts_with(std::string("/memfd:") + kTraceSegmentName + " ")) continue;
    fd = open(entry.path().c_str(), O_RDWR | O_CLOEXEC);
    why = fd < 0 ? errno : 0;
    break;
  }
  if (error || why != 0) {
    const std::string reason = error ? error.message() : std::strerror(why);
    throw TraceError(who + " belongs to another user, or cannot be looked into: " + reason);
  }
  if (fd < 0) {
    throw TraceError(who + " is not a weir process that can be attached to (is trace.attach off?)");
  }
  struct stat info {};
  const bool sized =
      fstat(fd, &info) == 0 && static_cast<uint64_t>(info.st_size) >= sizeof(TraceSegmentHeader);
  bytes_ = static_cast<uint64_t>(info.st_size);
  void* at = sized ? mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
  close(fd);
  if (at == MAP_FAILED) throw TraceError(who + ": its trace rings cannot be mapped");
  base_ = static_cast<char*>(at);
  try {
    Check(who);
  } catch (...) {
    munmap(base_, bytes_);
    throw;
  }
}

TraceSegmentView::~TraceSegmentView() {
  munmap(base_, bytes_);
}

bool TraceSegmentView::alive() {
  return header().closed.load(std::memory_order_acquire) == 0 && StartOf(pid_) == started_;
}

uint32_t TraceSegmentView::rings() {
  return std::min(header().rings_used.load(std::memory_order_acquire), count_);
}

std::string TraceSegmentView::Metadata() {
  TraceSegmentHeader& h = header();
  for (int i = 0; i < 1000; ++i) {
    const uint64_t before = h.meta_sequence.load(std::memory_order_acquire);
    const uint64_t bytes = std::min<uint64_t>(h.meta_bytes.load(), meta_capacity_);
    std::string json(base_ + meta_, bytes);
    std::atomic_thread_fence(std::memory_order_acquire);
    if (before % 2 == 0 && before == h.meta_sequence.load(std::memory_order_relaxed)) {
      return json.empty() ? "{}" : json;
    }
    Pause(1);
  }
  return "{}";
}

// What is fixed is copied, so that later writes by the process cannot lead us astray.
void TraceSegmentView::Check(const std::string& who) {
  const TraceSegmentHeader& h = header();
  if (std::memcmp(h.magic, kTraceSegmentMagic, sizeof(h.magic)) != 0) {
    throw TraceError(who + " has not finished making its trace rings; try again");
  }
  if (h.version != kTraceVersion || h.record_bytes != sizeof(TraceRecord)) {
    throw TraceError(who + " writes trace version " + std::to_string(h.version) +
                     "; this weir-trace reads version " + std::to_string(kTraceVersion));
  }
  count_ = h.ring_count;
  capacity_ = h.ring_records;
  rings_ = h.rings_offset;
  records_ = h.records_offset;
  meta_ = h.meta_offset;
  meta_capacity_ = h.meta_capacity;
  const auto fits = [this](uint64_t at, uint64_t size) {
    return at <= bytes_ && size <= bytes_ - at;
  };
  if (count_ > 4096 || capacity_ == 0 || (capacity_ & (capacity_ - 1)) != 0 ||
      capacity_ > (1U << 30) || !fits(rings_, count_ * sizeof(TraceRing)) ||
      !fits(records_, count_ * capacity_ * sizeof(TraceRecord)) || !fits(meta_, meta_capacity_)) {
    throw TraceError(who + ": its trace rings have an impossible layout");
  }
}

RingLease::RingLease(TraceSegmentView& segment, uint64_t mask) : s_(segment), h_(segment.header()) {
  const uint64_t deadline = MonotonicNs() + kTraceLeaseNs + kTraceLeaseNs / 4;
  mine_ = (MonotonicNs() << 32) | static_cast<uint32_t>(getpid());
  for (;;) {
    uint64_t holder = h_.lease.load(std::memory_order_acquire);
    const uint64_t beat = h_.heartbeat_ns.load();
    const uint64_t now = MonotonicNs();
    const bool expired = now > beat && now - beat > kTraceLeaseNs;
    if ((holder == 0 || expired) && h_.lease.compare_exchange_strong(holder, mine_)) break;
    if (now > deadline) {
      const auto by = static_cast<int>(static_cast<uint32_t>(holder));
      throw TraceError("process " + std::to_string(s_.pid()) + " is already being recorded by " +
                       (by == s_.pid() ? "itself (--trace); read its file instead"
                                       : "process " + std::to_string(by)));
    }
    Pause(50);
  }
  h_.heartbeat_ns.store(MonotonicNs());
  for (uint32_t i = 0; i < s_.rings(); ++i) s_.ring(i).tail.store(s_.ring(i).head.load());
  session_ = h_.session.fetch_add(1) + 1;
  lost_without_ring_ = h_.lost_without_ring.load();
  h_.wanted_mask.store(mask, std::memory_order_release);
}

RingLease::~RingLease() {
  uint64_t mine = mine_;
  if (h_.lease.load() == mine) h_.wanted_mask.store(0);
  h_.lease.compare_exchange_strong(mine, 0);
}

bool RingLease::Drain(std::vector<TraceRecord>* out) {
  if (h_.lease.load(std::memory_order_acquire) != mine_) return false;
  h_.heartbeat_ns.store(MonotonicNs(), std::memory_order_release);
  for (uint32_t i = 0; i < s_.rings(); ++i) {
    TraceRing& ring = s_.ring(i);
    const uint64_t head = ring.head.load(std::memory_order_acquire);
    uint64_t tail = ring.tail.load(std::memory_order_relaxed);
    if (head - tail > s_.capacity()) tail = head;  // somebody wrote nonsense
    for (; tail != head; ++tail) out->push_back(s_.records(i)[tail & (s_.capacity() - 1)]);
    ring.tail.store(tail, std::memory_order_release);
  }
  return true;
}

uint64_t RingLease::Lost() {
  uint64_t n = h_.lost_without_ring.load() - lost_without_ring_;
  for (uint32_t i = 0; i < s_.rings(); ++i) {
    if (s_.ring(i).session.load() == session_) n += s_.ring(i).lost.load();
  }
  return n;
}

void RingLease::Stop() {
  h_.wanted_mask.store(0, std::memory_order_release);
  for (int i = 0; i < 30 && h_.active_mask.load(std::memory_order_acquire) != 0; ++i) Pause(10);
}

}  // namespace weir::trace_tool
