#include "pager/copy_lanes.h"

#include <utility>

#include "vmm/check.h"

namespace weir {

Status CopyLanes::Open(BackingStore& backing) {
  WEIR_CHECK(lanes_.empty(), "lanes are opened once");
  backing_ = &backing;
  for (uint32_t i = 0; i < CountFor(driver_.properties(), backing.tier()); ++i) {
    Result<StreamId> stream =
        driver_.CreateStream(i == 0 ? name_ : name_ + "-" + std::to_string(i + 1));
    if (!stream.ok()) {
      (void)Close();
      return stream.status();
    }
    lanes_.push_back({.stream = *stream, .last = EventId()});
  }
  return OkStatus();
}

Status CopyLanes::Close() {
  Status first;
  for (const Lane& lane : std::exchange(lanes_, {})) {
    Status destroyed = driver_.DestroyStream(lane.stream);
    backing_->StreamGone(lane.stream);
    if (first.ok()) first = std::move(destroyed);
  }
  return first;
}

Status CopyLanes::CheckOpen() const {
  return open() ? OkStatus() : DriverError("there is no copy stream: making one failed");
}

Result<EventId> CopyLanes::RecordOn(Lane& lane) {
  const EventId event = WEIR_TRY(driver_.Record(lane.stream));
  lane.last = event;
  return event;
}

Status CopyLanes::Follow(uint64_t chunk) {
  WEIR_TRY(CheckOpen());
  const StreamId own = Of(chunk);
  for (Lane& other : lanes_) {
    if (other.stream == own) continue;
    const EventId queued = WEIR_TRY(RecordOn(other));
    WEIR_TRY(driver_.StreamWait(own, queued));
  }
  return OkStatus();
}

Result<EventId> CopyLanes::RecordBehind(uint64_t chunk) {
  WEIR_TRY(CheckOpen());
  return RecordOn(lanes_[IndexOf(chunk)]);
}

Result<StreamId> CopyLanes::Join() {
  WEIR_TRY(Follow(0));
  return Of(0);
}

Result<EventId> CopyLanes::RecordAll() {
  WEIR_TRY(Join());
  return RecordBehind(0);
}

Status CopyLanes::Health() {
  WEIR_TRY(CheckOpen());
  for (const Lane& lane : lanes_) {
    if (!lane.last.valid()) continue;
    if (Result<bool> done = driver_.IsComplete(lane.last); !done.ok()) return done.status();
  }
  return OkStatus();
}

}  // namespace weir
