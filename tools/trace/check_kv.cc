// KV blocks: free + cached + used = capacity (K1), and an index entry goes before its bytes (K3).
#include <algorithm>

#include "tools/trace/check.h"
#include "tools/trace/schema.h"

namespace weir::trace_tool {
namespace {

std::string RangeText(uint64_t first, uint64_t count) {
  if (count == 1) return "block " + std::to_string(first);
  return "blocks " + std::to_string(first) + " to " + std::to_string(first + count - 1);
}

}  // namespace

// Whether the range can be looked at; everything is adopted once the trace began in the middle.
bool InvariantChecker::KvRange(uint64_t first, uint64_t count) {
  constexpr uint64_t kMostBlocks = uint64_t{1} << 40;
  if (first < kMostBlocks && count < kMostBlocks) return !kv_adopting_;
  Fail("K1", "no KV cache has a " + RangeText(first, count));
  return false;
}

bool InvariantChecker::Expect(uint64_t first, uint64_t count, std::initializer_list<Block> states,
                              const char* rule, const char* what) {
  constexpr const char* kNames[] = {"not mapped", "free",           "used",
                                    "cached",     "free or cached", "unknown"};
  bool good = true;
  blocks_.ForRuns(first, count, [&](uint64_t from, uint64_t length, Block state) {
    for (const Block allowed : states) {
      if (state == allowed || state == Block::kUnknown) return;
    }
    if (good) {
      Fail(rule, std::string(what) + " " + RangeText(from, length) + ", which " +
                     (length == 1 ? "is " : "are ") + kNames[static_cast<size_t>(state)]);
    }
    good = false;
  });
  return good;
}

void InvariantChecker::OnKvCapacity() {
  const TraceRecord& r = event_.record;
  const uint64_t first = r.args[0], count = r.args[1];
  // An empty cache that begins to grow: all of its life is in the trace.
  if (kv_adopting_ && r.args[2] == 1 && r.args[3] == count && blocks_.at(0) == Block::kUnmapped) {
    kv_adopting_ = false;
  }
  if (!KvRange(first, count)) return;
  if (r.args[2] == 1) {
    Expect(first, count, {Block::kUnmapped}, "K1", "an extent adds");
    blocks_.Set(first, count, Block::kFree);
    kv_free_ += count;
  } else {
    const uint64_t cached = blocks_.Count(first, count, Block::kCached);
    if (cached != 0) {
      Fail("K3", RangeText(first, count) + " leave the cache while " + std::to_string(cached) +
                     " of them are in the prefix index");
    } else {
      Expect(first, count, {Block::kFree, Block::kIdle}, "K1", "an extent gives up");
    }
    blocks_.Set(first, count, Block::kUnmapped);
    kv_free_ -= std::min(kv_free_, count);
  }
  if (KvCapacity() != r.args[3]) {
    Fail("K1", "the capacity is said to be " + std::to_string(r.args[3]) +
                   " blocks; free + cached + used = " + std::to_string(KvCapacity()));
  }
}

void InvariantChecker::OnKvAlloc() {
  const TraceRecord& r = event_.record;
  if (!KvRange(r.args[1], r.args[2])) return;
  Expect(r.args[1], r.args[2], {Block::kFree, Block::kIdle}, "K1", "a sequence is given");
  blocks_.Set(r.args[1], r.args[2], Block::kUsed);
  kv_used_ += r.args[2];
  kv_free_ -= std::min(kv_free_, r.args[2]);
}

void InvariantChecker::OnKvFree() {
  const TraceRecord& r = event_.record;
  if (!KvRange(r.args[1], r.args[2])) return;
  Expect(r.args[1], r.args[2], {Block::kUsed}, "K1", "a sequence gives back");
  const uint64_t count = r.args[2];
  const uint64_t cached = r.args[3];
  if (cached > count) Fail("K1", "more blocks become cached than are given back");
  blocks_.Set(r.args[1], count,
              cached == 0       ? Block::kFree
              : cached == count ? Block::kCached
                                : Block::kIdle);
  kv_used_ -= std::min(kv_used_, count);
  kv_cached_ += std::min(cached, count);
  kv_free_ += count - std::min(cached, count);
}

void InvariantChecker::OnKvEvict() {
  const TraceRecord& r = event_.record;
  if (!KvRange(r.args[0], r.args[1])) return;
  Expect(r.args[0], r.args[1], {Block::kCached, Block::kIdle}, "K3", "the index forgets");
  blocks_.Set(r.args[0], r.args[1], Block::kFree);
  kv_cached_ -= std::min(kv_cached_, r.args[1]);
  kv_free_ += r.args[1];
}

void InvariantChecker::OnKvHit() {
  const TraceRecord& r = event_.record;
  const uint64_t first = r.args[3], count = r.args[1];
  if (!KvRange(first, count)) return;
  Expect(first, count, {Block::kCached, Block::kUsed, Block::kIdle}, "K3", "a prefix hits");
  const uint64_t cached = blocks_.Count(first, count, Block::kCached);
  const uint64_t unsure =
      blocks_.Count(first, count, Block::kIdle) + blocks_.Count(first, count, Block::kUnknown);
  if (r.args[4] < cached || r.args[4] > cached + unsure) {
    Fail("K1", std::to_string(r.args[4]) + " of the blocks hit are said to come from the cache; " +
                   std::to_string(cached) + " were cached");
  }
  blocks_.Set(first, count, Block::kUsed);
  kv_cached_ -= std::min(kv_cached_, r.args[4]);
  kv_used_ += r.args[4];
}

void InvariantChecker::OnKvMove() {
  const TraceRecord& r = event_.record;
  if (!KvRange(r.args[0], 1) || !KvRange(r.args[1], 1)) return;
  Expect(r.args[0], 1, {Block::kUsed}, "K1", "the content moves from");
  Expect(r.args[1], 1, {Block::kFree, Block::kIdle}, "K1", "the content moves to");
  blocks_.Set(r.args[0], 1, Block::kFree);
  blocks_.Set(r.args[1], 1, Block::kUsed);
}

void InvariantChecker::OnQueue() {
  const TraceRecord& r = event_.record;
  const uint64_t used = r.args[2], cached = r.args[3], free = r.args[4], capacity = r.args[5];
  if (used + cached + free != capacity) {
    Fail("K1", "used " + std::to_string(used) + " + cached " + std::to_string(cached) + " + free " +
                   std::to_string(free) + " is not the capacity " + std::to_string(capacity));
  }
  for (const TraceType type : {TraceType::kKvAlloc, TraceType::kKvFree, TraceType::kKvEvict,
                               TraceType::kKvHit, TraceType::kKvCapacity}) {
    if (!Recorded(type)) return;
  }
  if (kv_adopting_ || (used == kv_used_ && cached == kv_cached_ && free == kv_free_)) return;
  Fail("K1", "the engine counts " + std::to_string(used) + " used, " + std::to_string(cached) +
                 " cached, " + std::to_string(free) + " free blocks; the trace gives " +
                 std::to_string(kv_used_) + ", " + std::to_string(kv_cached_) + ", " +
                 std::to_string(kv_free_));
  kv_used_ = used;
  kv_cached_ = cached;
  kv_free_ = free;
}

// |slot| of the KV region has been unmapped: no block in it may count any more.
void InvariantChecker::KvSlotGone(uint64_t slot) {
  if (kv_adopting_ || meta_.granules_per_extent == 0 || meta_.blocks_per_extent == 0) return;
  if (!Recorded(TraceType::kKvCapacity) || slot > (uint64_t{1} << 40)) return;
  const uint64_t extent = slot / meta_.granules_per_extent;
  if (meta_.blocks_per_extent > (1U << 20)) return;
  const uint64_t first = extent * meta_.blocks_per_extent;
  const uint64_t gone = blocks_.Count(first, meta_.blocks_per_extent, Block::kUnmapped);
  // A rolled-back plan maps it again; the blocks are looked at when they are next used.
  if (gone == meta_.blocks_per_extent) return;
  Fail("K3", "the granule of KV slot " + std::to_string(slot) + " goes while " +
                 std::to_string(meta_.blocks_per_extent - gone) + " of its blocks still count");
}

}  // namespace weir::trace_tool
