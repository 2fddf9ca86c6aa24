// How drivers with numbered stream operations name their events: (stream, number of the last
// operation the event stands for). Nothing has to be kept or freed per event.
#pragma once

#include "vmm/types.h"

namespace weir {

inline constexpr unsigned kEventNumberBits = 40;
constexpr EventId MakeEvent(StreamId stream, uint64_t number) {
  return EventId((uint64_t{stream.value} << kEventNumberBits) | number);
}
constexpr uint64_t StreamIndexOf(EventId event) {
  return event.value >> kEventNumberBits;
}
constexpr uint64_t NumberOf(EventId event) {
  return event.value & ((uint64_t{1} << kEventNumberBits) - 1);
}

}  // namespace weir
