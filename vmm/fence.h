// Fence: the set of events that must complete before a granule may be unmapped or used again.
//
// Represents pending device work. F1 monotonic: once complete, always complete. F2 merging never
// loses an event. F3 never waited on while a lock is held. Value type; engine thread.
#pragma once

#include <vector>

#include "vmm/driver.h"

namespace weir {

class Fence {
 public:
  Fence() = default;
  explicit Fence(EventId event) : events_{event} {}

  bool empty() const { return events_.empty(); }
  void Add(EventId event);
  void Merge(const Fence& other);

  // Drops completed events; true when none is left. An event whose stream failed is an error.
  Result<bool> IsComplete(Driver& driver);
  Status Wait(Driver& driver);

 private:
  std::vector<EventId> events_;
};

}  // namespace weir
