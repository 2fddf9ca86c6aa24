// OpenSteps: how steps began, to be known when they end. Several may be under way at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "vmm/trace_format.h"

namespace weir::trace_tool {

class OpenSteps {
 public:
  // More are not under way: of the oldest the end was lost.
  static constexpr size_t kMost = 8;

  void Begin(const TraceRecord& r) {
    (void)End(r.args[0]);
    if (begun_.size() == kMost) begun_.erase(begun_.begin());
    begun_.push_back(r);
  }
  bool empty() const { return begun_.empty(); }
  // The kStepBegin of |step|, which is over; nothing if it was not seen.
  std::optional<TraceRecord> End(uint64_t step) {
    for (auto it = begun_.begin(); it != begun_.end(); ++it) {
      if (it->args[0] != step) continue;
      const TraceRecord found = *it;
      begun_.erase(it);
      return found;
    }
    return std::nullopt;
  }

 private:
  std::vector<TraceRecord> begun_;  // oldest first
};

}  // namespace weir::trace_tool
