// RangeMap: a state for every number, kept as runs of equal states.
//
// Costs O(log runs) a change however long the range is, so that a hostile trace cannot make it
// expensive. Unset numbers have |initial|.
#pragma once

#include <cstdint>
#include <map>

namespace weir::trace_tool {

template <typename State>
class RangeMap {
 public:
  explicit RangeMap(State initial) { runs_[0] = initial; }

  State at(uint64_t i) const { return std::prev(runs_.upper_bound(i))->second; }

  // [first, first + count) becomes |state|; false (nothing changed) when the range overflows.
  bool Set(uint64_t first, uint64_t count, State state) {
    if (count == 0) return true;
    if (first > UINT64_MAX - count) return false;
    const uint64_t end = first + count;
    const State after = at(end);
    runs_.erase(runs_.lower_bound(first), runs_.upper_bound(end));
    runs_[first] = state;
    runs_[end] = after;
    return true;
  }

  // Calls |each|(first, count, state) for the runs of [first, first + count).
  template <typename Each>
  void ForRuns(uint64_t first, uint64_t count, Each each) const {
    if (count == 0 || first > UINT64_MAX - count) return;
    const uint64_t end = first + count;
    for (auto it = std::prev(runs_.upper_bound(first)); it != runs_.end() && it->first < end;
         ++it) {
      const auto next = std::next(it);
      const uint64_t from = it->first < first ? first : it->first;
      const uint64_t to = next == runs_.end() || next->first > end ? end : next->first;
      each(from, to - from, it->second);
    }
  }
  // How many of [first, first + count) are in |state|.
  uint64_t Count(uint64_t first, uint64_t count, State state) const {
    uint64_t n = 0;
    ForRuns(first, count,
            [&](uint64_t, uint64_t length, State s) { n += s == state ? length : 0; });
    return n;
  }

 private:
  std::map<uint64_t, State> runs_;  // by first number; the last run is endless
};

}  // namespace weir::trace_tool
