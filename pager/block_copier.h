// BlockCopier: moves KV blocks inside the device (evacuation before an extent goes).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "pager/kv_arena.h"
#include "vmm/fence.h"

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
  // Queues the copies in order; the fence completes when all have. Sources and targets of one call
  // must not overlap (checked).
  Result<Fence> Move(const std::vector<BlockMove>& moves);
  uint64_t blocks_moved() const { return blocks_moved_; }

 private:
  BlockCopier(Driver& driver, const KvArena& arena, StreamId stream)
      : driver_(driver), arena_(arena), stream_(stream) {}
  Driver& driver_;
  const KvArena& arena_;
  StreamId stream_;
  uint64_t blocks_moved_ = 0;
};

}  // namespace weir
