#include "tools/trace/ordering.h"

#include <algorithm>

namespace weir::trace_tool {
namespace {

bool OpensGates(const TraceEvent& event) {
  const auto type = static_cast<TraceType>(event.record.type);
  return type == TraceType::kCopy || type == TraceType::kFill;
}

}  // namespace

void OrderingWindow::Add(const TraceEvent& event) {
  uint64_t& clock = thread_clock_[event.record.thread];
  clock = std::max(clock, event.record.time_ns);
  least_ns_ = std::min(least_ns_, clock);
  keys_.push_back({clock, static_cast<uint32_t>(held_.size())});
  held_.push_back(event);
  if (held_.size() >= kMostHeld) {
    Sort();
    Release(keys_.size() / 2);
  }
}

void OrderingWindow::Sort() {
  const auto before = [](const Key& a, const Key& b) {
    return a.time_ns != b.time_ns ? a.time_ns < b.time_ns : a.index < b.index;
  };
  if (!std::is_sorted(keys_.begin(), keys_.end(), before)) {
    std::sort(keys_.begin(), keys_.end(), before);
  }
}

void OrderingWindow::Hand(const Key& key) {
  if (key.time_ns < released_ns_) ++disordered_;
  released_ns_ = std::max(released_ns_, key.time_ns);
  sink_(held_[key.index]);
}

// Several threads at one moment: copies first, as far as their threads' order allows.
void OrderingWindow::ReleaseTie(size_t begin, size_t end) {
  std::vector<Key> late;
  constexpr size_t kMostThreads = 64;
  std::vector<uint32_t> blocked;  // threads that have an earlier record waiting
  for (size_t i = begin; i < end; ++i) {
    const uint32_t thread = held_[keys_[i].index].record.thread;
    const bool waits = blocked.size() == kMostThreads ||
                       std::find(blocked.begin(), blocked.end(), thread) != blocked.end();
    if (OpensGates(held_[keys_[i].index]) && !waits) {
      Hand(keys_[i]);
    } else {
      late.push_back(keys_[i]);
      if (!waits) blocked.push_back(thread);
    }
  }
  for (const Key& key : late) Hand(key);
}

void OrderingWindow::Release(size_t count) {
  for (size_t i = 0; i < count;) {
    size_t end = i + 1;
    bool several = false;
    while (end < count && keys_[end].time_ns == keys_[i].time_ns) {
      several =
          several || held_[keys_[end].index].record.thread != held_[keys_[i].index].record.thread;
      ++end;
    }
    if (several) {
      ReleaseTie(i, end);
    } else {
      for (size_t k = i; k < end; ++k) Hand(keys_[k]);
    }
    i = end;
  }
  // What stays keeps its order by index.
  std::vector<TraceEvent> rest;
  rest.reserve(keys_.size() - count);
  keys_.erase(keys_.begin(), keys_.begin() + static_cast<ptrdiff_t>(count));
  for (Key& key : keys_) {
    rest.push_back(held_[key.index]);
    key.index = static_cast<uint32_t>(rest.size() - 1);
  }
  held_ = std::move(rest);
  least_ns_ = keys_.empty() ? UINT64_MAX : keys_.front().time_ns;
}

void OrderingWindow::ReleaseBefore(uint64_t time_ns) {
  if (time_ns <= least_ns_) return;
  Sort();
  const auto end =
      std::lower_bound(keys_.begin(), keys_.end(), time_ns,
                       [](const Key& key, uint64_t time) { return key.time_ns < time; });
  Release(static_cast<size_t>(end - keys_.begin()));
}

void OrderingWindow::ReleaseAll() {
  Sort();
  Release(keys_.size());
}

}  // namespace weir::trace_tool
