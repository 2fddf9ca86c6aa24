#include "vmm/host_counters.h"

#include <algorithm>
#include <chrono>
#include <climits>
#include <ctime>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vmm/mapping_table.h"

namespace weir {
namespace {

constexpr uint64_t kSpinNs = 20'000;
constexpr int kPollsPerClockRead = 32;

uint64_t NowNs() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

void CpuRelax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// |*word| is 4 bytes of process-private memory. Returns on a wake, a timeout, a signal or when the
// word is not |expected|: the caller looks again in every case.
void FutexWait(std::atomic<uint32_t>* word, uint32_t expected, uint64_t timeout_ns) {
  timespec timeout{};
  timeout.tv_sec = static_cast<time_t>(std::min<uint64_t>(timeout_ns / 1'000'000'000, 1U << 30));
  timeout.tv_nsec = static_cast<long>(timeout_ns % 1'000'000'000);
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT_PRIVATE, expected, &timeout,
            nullptr, 0);
}

}  // namespace

static_assert(sizeof(HostCounters::Cell) == 64, "one counter a cache line");
static_assert(std::atomic<uint64_t>::is_always_lock_free);

HostCounters::HostCounters(uint32_t capacity)
    : capacity_(capacity), cells_(std::make_unique<Cell[]>(capacity)), live_(capacity, false) {
  free_.reserve(capacity);
  for (uint32_t i = capacity; i > 0; --i) free_.push_back(i - 1);
}

VirtAddr HostCounters::AddressOf(uint32_t index) const {
  return reinterpret_cast<VirtAddr>(&cells_[index].value);
}

Result<VirtAddr> HostCounters::Create() {
  if (free_.empty()) {
    return NoMemory("all " + std::to_string(capacity_) + " counters are in use");
  }
  const uint32_t index = free_.back();
  free_.pop_back();
  live_[index] = true;
  cells_[index].value.store(0);
  return AddressOf(index);
}

Status HostCounters::Check(VirtAddr counter) const {
  const VirtAddr first = AddressOf(0);
  const uint64_t index = (counter - first) / sizeof(Cell);
  if (counter < first || (counter - first) % sizeof(Cell) != 0 || index >= capacity_ ||
      !live_[index]) {
    return InvalidArgument("there is no counter at " + HexAddress(counter));
  }
  return OkStatus();
}

Status HostCounters::Destroy(VirtAddr counter) {
  WEIR_TRY(Check(counter));
  if (CellOf(counter).waiters.load() != 0) {
    return BadState("the counter at " + HexAddress(counter) + " is waited for");
  }
  const auto index = static_cast<uint32_t>((counter - AddressOf(0)) / sizeof(Cell));
  live_[index] = false;
  free_.push_back(index);
  return OkStatus();
}

HostCounters::Cell& HostCounters::CellOf(VirtAddr counter) {
  const VirtAddr first = AddressOf(0);
  WEIR_CHECK(counter >= first && (counter - first) / sizeof(Cell) < capacity_ &&
                 (counter - first) % sizeof(Cell) == 0,
             "an address that is no counter's");
  return cells_[(counter - first) / sizeof(Cell)];
}

void HostCounters::Store(Cell& cell, uint64_t value) {
  cell.value.store(value, std::memory_order_seq_cst);
  if (cell.waiters.load(std::memory_order_seq_cst) != 0) Wake(cell);
}

void HostCounters::Wake(Cell& cell) {
  cell.wake_count.fetch_add(1, std::memory_order_seq_cst);
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&cell.wake_count), FUTEX_WAKE_PRIVATE, INT_MAX,
            nullptr, nullptr, 0);
}

Status HostCounters::Wait(Cell& cell, uint64_t at_least, uint64_t timeout_ns,
                          const std::atomic<bool>* cancelled) {
  const auto reached = [&] { return cell.value.load(std::memory_order_seq_cst) >= at_least; };
  const auto is_cancelled = [&] {
    return cancelled != nullptr && cancelled->load(std::memory_order_seq_cst);
  };
  if (reached()) return OkStatus();
  const uint64_t begin = NowNs();
  const uint64_t spin = std::min(kSpinNs, timeout_ns);
  do {
    for (int i = 0; i < kPollsPerClockRead; ++i) {
      if (reached()) return OkStatus();
      CpuRelax();
    }
  } while (NowNs() - begin < spin && !is_cancelled());

  cell.waiters.fetch_add(1, std::memory_order_seq_cst);
  Status outcome;
  for (;;) {
    const uint32_t seen = cell.wake_count.load(std::memory_order_seq_cst);
    if (reached()) break;
    if (is_cancelled()) {
      outcome = Cancelled("wait for counter " + HexAddress(reinterpret_cast<VirtAddr>(&cell)) +
                          " to reach " + std::to_string(at_least) + "; it is at " +
                          std::to_string(cell.value.load()));
      break;
    }
    const uint64_t waited = NowNs() - begin;
    if (waited >= timeout_ns) {
      outcome = ShouldWait("counter is at " + std::to_string(cell.value.load()) + ", waited " +
                           std::to_string(timeout_ns) + " ns for " + std::to_string(at_least));
      break;
    }
    FutexWait(&cell.wake_count, seen, timeout_ns - waited);
  }
  cell.waiters.fetch_sub(1, std::memory_order_seq_cst);
  return outcome;
}

}  // namespace weir
