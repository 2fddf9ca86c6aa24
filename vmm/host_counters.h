// HostCounters: the counter words of a CPU driver, and how threads wait for them.
//
// Represents a fixed array of 64-byte cells; a counter's VirtAddr is the address of its word, so
// compute code may poll it directly. A waiter spins for about 20 us, then sleeps on a futex. The
// store side pays one store and one load when nobody sleeps. No wakeup is lost: the waiter
// announces itself before it looks at the value, the storer looks for waiters after it stored (both
// sequentially consistent, so one of the two sees the other).
// Any thread, except Create and Destroy (the driver's lock).
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "vmm/status.h"
#include "vmm/types.h"

namespace weir {

class HostCounters {
 public:
  struct alignas(64) Cell {
    std::atomic<uint64_t> value{0};
    std::atomic<uint32_t> waiters{0};
    std::atomic<uint32_t> wake_count{0};  // the futex word
  };
  explicit HostCounters(uint32_t capacity);

  Result<VirtAddr> Create();
  // kInvalidArgument: not a live counter. kBadState: somebody waits for it.
  Status Destroy(VirtAddr counter);
  // kInvalidArgument unless |counter| is live.
  Status Check(VirtAddr counter) const;

  // The cell of |counter|, which must be one of ours (checked). Cells live as long as this object.
  Cell& CellOf(VirtAddr counter);
  static void Store(Cell& cell, uint64_t value);
  // Wakes every waiter so that it looks at its |cancelled| flag.
  static void Wake(Cell& cell);
  // Waits for the value; kShouldWait after |timeout_ns|, kCancelled once |*cancelled| is set.
  static Status Wait(Cell& cell, uint64_t at_least, uint64_t timeout_ns,
                     const std::atomic<bool>* cancelled);

 private:
  VirtAddr AddressOf(uint32_t index) const;

  uint32_t capacity_;
  std::unique_ptr<Cell[]> cells_;
  std::vector<bool> live_;
  std::vector<uint32_t> free_;
};

}  // namespace weir
