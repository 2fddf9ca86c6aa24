// BlockCopier: moves KV blocks inside the device (evacuation before an extent goes).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "pager/kv_arena.h"
#include "vmm/driver.h"

namespace weir {

struct BlockMove {
  uint32_t from = 0;
  uint32_t to = 0;
};

// Owns one copy stream. Engine thread only.
class BlockCopier {
 public:
  static Result<std::unique_ptr<BlockCopier>> Create(Driver& driver, const KvArena& arena);
  ~BlockCopier();
  // Waits until all have been copied. Sources and targets of one call must not overlap (checked).
  // On an error any of the targets may have been written to, and none is any more.
  Status Move(const std::vector<BlockMove>& moves);
  uint64_t blocks_moved() const { return blocks_moved_; }

 private:
  BlockCopier(Driver& driver, const KvArena& arena) : driver_(driver), arena_(arena) {}
  Status Check(const std::vector<BlockMove>& moves) const;
  Status Copy(const std::vector<BlockMove>& moves);
  Driver& driver_;
  const KvArena& arena_;
  StreamId stream_;  // invalid after an error
  uint64_t blocks_moved_ = 0;
};

}  // namespace weir
