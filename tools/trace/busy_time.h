// BusyTime: how long at least one of many spans lasted, that is, the length of their union.
//
// Represents a link, of which several copies may have a part at the same time. Spans come roughly
// in the order of their ends; memory is bounded, so one that reaches further back than the last
// kMostOpen gaps counts from there on only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>

namespace weir::trace_tool {

class BusyTime {
 public:
  static constexpr size_t kMostOpen = 64;

  // [begin_ns, end_ns); nothing if it ends before it begins.
  void Add(uint64_t begin_ns, uint64_t end_ns) {
    begin_ns = std::max(begin_ns, settled_until_);
    if (begin_ns >= end_ns) return;
    auto it = open_.upper_bound(begin_ns);
    if (it != open_.begin() && std::prev(it)->second >= begin_ns) --it;
    while (it != open_.end() && it->first <= end_ns) {
      begin_ns = std::min(begin_ns, it->first);
      end_ns = std::max(end_ns, it->second);
      open_ns_ -= it->second - it->first;
      it = open_.erase(it);
    }
    open_.emplace(begin_ns, end_ns);
    open_ns_ += end_ns - begin_ns;
    if (open_.size() <= kMostOpen) return;
    const auto oldest = open_.begin();
    settled_ns_ += oldest->second - oldest->first;
    open_ns_ -= oldest->second - oldest->first;
    settled_until_ = oldest->second;
    open_.erase(oldest);
  }
  uint64_t ns() const { return settled_ns_ + open_ns_; }

 private:
  std::map<uint64_t, uint64_t> open_;  // begin -> end, apart from each other
  uint64_t open_ns_ = 0;
  uint64_t settled_ns_ = 0;  // of those that were put away, which end by |settled_until_|
  uint64_t settled_until_ = 0;
};

}  // namespace weir::trace_tool
