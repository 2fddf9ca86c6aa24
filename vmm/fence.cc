#include "vmm/fence.h"

#include <algorithm>

namespace weir {

void Fence::Add(EventId event) {
  if (std::find(events_.begin(), events_.end(), event) == events_.end()) events_.push_back(event);
}

void Fence::Merge(const Fence& other) {
  for (const EventId event : other.events_) Add(event);
}

Result<bool> Fence::IsComplete(Driver& driver) {
  for (size_t i = 0; i < events_.size();) {
    Result<bool> complete = driver.IsComplete(events_[i]);
    if (!complete.ok()) return complete.status();
    if (*complete) {
      events_[i] = events_.back();
      events_.pop_back();
    } else {
      ++i;
    }
  }
  return events_.empty();
}

// Waits for every event even after an error: whoever asked wants the work to have ended.
Status Fence::Wait(Driver& driver) {
  Status first;
  std::vector<EventId> failed;
  for (const EventId event : events_) {
    Status s = driver.Wait(event);
    if (s.ok()) continue;
    failed.push_back(event);
    if (first.ok()) first = std::move(s);
  }
  events_ = std::move(failed);
  return first;
}

}  // namespace weir
