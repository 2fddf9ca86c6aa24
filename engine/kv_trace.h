// BlockRuns: KV blocks with consecutive numbers become one trace record.
#pragma once

#include <cstdint>

#include "vmm/trace.h"

namespace weir {

// Emits kKvAlloc or kKvFree for what is added, in runs (ascending or descending); the last when it
// is destroyed. Costs a branch when nobody subscribed.
class BlockRuns {
 public:
  BlockRuns(TraceType type, uint64_t sequence)
      : type_(type), sequence_(sequence), enabled_(TraceEnabled(type)) {}
  ~BlockRuns() { Flush(); }
  BlockRuns(const BlockRuns&) = delete;
  BlockRuns& operator=(const BlockRuns&) = delete;

  // |cached| (of kKvFree): the block became cached rather than free.
  void Add(uint32_t block, bool cached = false) {
    if (!enabled_) return;
    if (count_ != 0 && block + 1 == first_) {
      first_ = block;
    } else if (count_ == 0 || block != first_ + count_) {
      Flush();
      first_ = block;
    }
    ++count_;
    cached_ += cached ? 1 : 0;
  }

  void Flush() {
    if (count_ != 0) TraceEmit(type_, 0, sequence_, first_, count_, cached_);
    count_ = cached_ = 0;
  }

 private:
  const TraceType type_;
  const uint64_t sequence_;
  const bool enabled_;
  uint32_t first_ = 0;
  uint32_t count_ = 0;
  uint32_t cached_ = 0;
};

}  // namespace weir
