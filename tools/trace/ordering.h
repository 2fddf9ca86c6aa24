// OrderingWindow: puts the records of several threads in order of time, with bounded memory.
//
// A recorder drains one ring after the other, so a file is ordered within a thread and nearly
// ordered over all. The window holds what may still be overtaken. Records of one thread never
// change places, even if its clock went back. Of records of several threads at the same nanosecond,
// a copy comes first: a gate opens because of it, never before.
#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>
#include <vector>

#include "tools/trace/reader.h"

namespace weir::trace_tool {

class OrderingWindow {
 public:
  // Held at most; beyond that the older half leaves in the order known so far.
  static constexpr size_t kMostHeld = 1U << 20;

  explicit OrderingWindow(const TraceReader::Sink& sink) : sink_(sink) {}
  void Add(const TraceEvent& event);
  // Nothing before |time_ns| will be added any more.
  void ReleaseBefore(uint64_t time_ns);
  void ReleaseAll();
  // Records that came after a later one had left.
  uint64_t disordered() const { return disordered_; }

 private:
  struct Key {
    uint64_t time_ns;
    uint32_t index;  // into held_
  };
  void Sort();
  void Release(size_t count);
  void ReleaseTie(size_t begin, size_t end);
  void Hand(const Key& key);

  const TraceReader::Sink& sink_;
  std::vector<TraceEvent> held_;
  std::vector<Key> keys_;
  std::unordered_map<uint32_t, uint64_t> thread_clock_;
  uint64_t least_ns_ = UINT64_MAX;  // of what is held
  uint64_t released_ns_ = 0;
  uint64_t disordered_ = 0;
};

}  // namespace weir::trace_tool
