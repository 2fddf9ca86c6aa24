// Weights that come home although no copy of them can be read: whoever loaded them writes them
// anew, through the calls that loading uses. Only what has been asked for is written.
#include <algorithm>

#include "pager/weight_pager_impl.h"
#include "vmm/trace.h"

namespace weir {

void WeightPager::SetSource(WeightSource source) {
  impl_->source = std::move(source);
}

Status WeightPager::Impl::FillFromSource(const std::vector<WeightSlotRun>& runs,
                                         WeightPagerStats* stats) {
  if (!source) return BadState("there is nowhere else to read them from");
  const TimeNs begin = driver.Now();
  const uint64_t end_of_weights = space.region(weights).slots.size() * granule_bytes;
  refilling.clear();
  for (const WeightSlotRun& run : runs) {
    const uint64_t offset = run.first * granule_bytes;
    refilling.push_back({offset, std::min(run.count * granule_bytes, end_of_weights - offset)});
  }
  written_again.clear();
  const State before = std::exchange(state, State::kRefilling);
  Status filled = source(refilling);
  state = before;
  for (size_t i = 0; i < runs.size() && filled.ok(); ++i) {
    filled = CheckRefilled(refilling[i]);
    if (!filled.ok() || !options.verify_stripes) continue;
    const Result<bool> same = SumsMatch(runs[i].first, runs[i].count);
    if (!same.ok()) filled = same.status();
    if (same.ok() && !*same) {
      filled =
          DataLoss("the weights read anew differ from the checksums of those that were loaded");
    }
  }
  if (filled.ok()) {
    for (const WeightSlotRun& run : runs) {
      stats->bytes_from_source += run.count * granule_bytes;
      TraceEmit(TraceType::kFill, static_cast<uint8_t>(Tier::kNvme), weights.value, run.first,
                run.count, run.count * granule_bytes, begin, driver.Now());
    }
  }
  refilling.clear();
  written_again.clear();
  return filled;
}

// What loading wrote has been written again; the padding between is zero, as Seal made it.
Status WeightPager::Impl::CheckRefilled(const WeightRange& range) {
  return ForGaps(written_again, range.offset, range.offset + range.bytes,
                 [&](uint64_t lo, uint64_t hi) {
                   uint64_t padding = 0;
                   WEIR_TRY(ForGaps(written, lo, hi, [&](uint64_t from, uint64_t to) {
                     padding += to - from;
                     return OkStatus();
                   }));
                   if (padding != hi - lo) {
                     return DataLoss("bytes " + std::to_string(lo) + " to " + std::to_string(hi) +
                                     " of the weights were not written anew");
                   }
                   const std::vector<std::byte> zeros(padding);
                   return driver.Write(space.region(weights).base + lo, zeros);
                 });
}

}  // namespace weir
