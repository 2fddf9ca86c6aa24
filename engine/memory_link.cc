// Memory's link to the backing copy: what it gives, at start and when somebody doubts it.
#include <algorithm>

#include "engine/kv_trace.h"
#include "engine/memory.h"

namespace weir {
namespace {

constexpr uint64_t kMostBytes = 32 * kMiB;
constexpr int kFetches = 3;  // the fastest counts

}  // namespace

// The best of some fetches on a stream of their own.
Result<double> Memory::TimeFetch(uint64_t offset, uint64_t bytes, VirtAddr to) {
  const StreamId stream = WEIR_TRY(driver_.CreateStream("weir-link"));
  TimeNs best = ~TimeNs{0};
  Status status;
  for (int i = 0; i < kFetches && status.ok(); ++i) {
    const TimeNs start = driver_.Now();
    status = backing_->Fetch(stream, offset, bytes, to);
    if (!status.ok()) break;
    const Result<EventId> done = driver_.Record(stream);
    status = done.ok() ? driver_.WaitFor(*done, options_.pager.gate_timeout_ns) : done.status();
    best = std::min(best, driver_.Now() - start);
  }
  if (status.code() == StatusCode::kShouldWait) status = DriverError(status.message());
  Status destroyed = driver_.DestroyStream(stream);
  backing_->StreamGone(stream);
  WEIR_TRY(std::move(status));
  WEIR_TRY(std::move(destroyed));
  return static_cast<double>(bytes) / static_cast<double>(std::max<TimeNs>(best, 1));
}

Status Memory::MeasureLink() {
  if (backing_ == nullptr || (max_granules_per_layer_ == 0 && max_in_place_per_layer_ == 0)) {
    return OkStatus();
  }
  const uint64_t bytes =
      std::min({kMostBytes, space_->region(scratch_).bytes(), AlignDown(backing_->bytes(), 4096)});
  link_bytes_per_ns_ = WEIR_TRY(TimeFetch(0, bytes, scratch()));
  weights_->SetLinkRate(link_bytes_per_ns_);
  return OkStatus();
}

Result<double> Memory::ProbeLink() {
  if (backing_ == nullptr) return BadState("there is no backing copy to read from");
  if (blocks_->available() == 0) (void)GrowKv(1);
  const Result<BlockId> block = blocks_->Allocate(kNobody);
  if (!block.ok()) return ShouldWait("every KV block is used: there is nowhere to read to");
  {
    BlockRuns allocated(TraceType::kKvAlloc, kTraceNoSequence);
    allocated.Add(*block);
  }
  const uint64_t bytes = std::min({kMostBytes, options_.kv_block_bytes, backing_->bytes()});
  if (probe_offset_ > backing_->bytes() - bytes) probe_offset_ = 0;
  Result<double> rate =
      TimeFetch(probe_offset_, bytes, kv_->base() + uint64_t{*block} * kv_->block_stride());
  probe_offset_ += bytes;
  blocks_->Release(*block);
  BlockRuns freed(TraceType::kKvFree, kTraceNoSequence);
  freed.Add(*block);
  return rate;
}

}  // namespace weir
