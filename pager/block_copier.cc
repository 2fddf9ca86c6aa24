#include "pager/block_copier.h"

#include <algorithm>
#include <string>

namespace weir {

Result<std::unique_ptr<BlockCopier>> BlockCopier::Create(Driver& driver, const KvArena& arena) {
  std::unique_ptr<BlockCopier> copier(new BlockCopier(driver, arena));
  copier->stream_ = WEIR_TRY(driver.CreateStream("weir-kv-move"));
  return copier;
}

BlockCopier::~BlockCopier() {
  if (stream_.valid()) (void)driver_.DestroyStream(stream_);
}

Status BlockCopier::Move(const std::vector<BlockMove>& moves) {
  WEIR_TRY(Check(moves));
  if (moves.empty()) return OkStatus();
  if (!stream_.valid()) stream_ = WEIR_TRY(driver_.CreateStream("weir-kv-move"));
  Status copied = Copy(moves);
  if (copied.ok()) return copied;
  // What was queued before the error must not reach blocks that others have by then, and a failed
  // stream carries nothing any more. This waits for it.
  (void)driver_.DestroyStream(stream_);
  stream_ = StreamId();
  return copied;
}

Status BlockCopier::Check(const std::vector<BlockMove>& moves) const {
  const KvGeometry& geometry = arena_.geometry();
  std::vector<uint32_t> targets, sources;
  for (const BlockMove& m : moves) {
    for (const uint32_t block : {m.from, m.to}) {
      const uint32_t extent = block / geometry.blocks_per_extent;
      if (extent >= arena_.max_extents() || !arena_.is_mapped(extent)) {
        return InvalidArgument("block " + std::to_string(block) + " to move is not mapped");
      }
    }
    sources.push_back(m.from);
    targets.push_back(m.to);
  }
  std::sort(sources.begin(), sources.end());
  std::sort(targets.begin(), targets.end());
  const auto twice = std::adjacent_find(targets.begin(), targets.end());
  if (twice != targets.end()) {
    return InvalidArgument("block " + std::to_string(*twice) + " is the target of two moves");
  }
  std::vector<uint32_t> both;
  std::set_intersection(sources.begin(), sources.end(), targets.begin(), targets.end(),
                        std::back_inserter(both));
  if (!both.empty()) {
    return InvalidArgument("block " + std::to_string(both.front()) +
                           " is source and target of one call");
  }
  return OkStatus();
}

Status BlockCopier::Copy(const std::vector<BlockMove>& moves) {
  const KvGeometry& geometry = arena_.geometry();
  const uint64_t stride = arena_.block_stride();
  for (size_t i = 0; i < moves.size();) {
    size_t run = 1;  // moves whose blocks lie side by side go in one copy
    while (i + run < moves.size() && moves[i + run].from == moves[i].from + run &&
           moves[i + run].to == moves[i].to + run) {
      ++run;
    }
    WEIR_TRY(driver_.Copy(stream_, arena_.base() + moves[i].to * stride,
                          arena_.base() + moves[i].from * stride,
                          (run - 1) * stride + geometry.block_bytes));
    blocks_moved_ += run;
    i += run;
  }
  return driver_.Wait(WEIR_TRY(driver_.Record(stream_)));
}

}  // namespace weir
