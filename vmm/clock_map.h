// ClockMap: readings of a device's clock as times of the host's.
//
// Represents an interval in which the distance between the two clocks lies, and how fast it grows.
// Bounds come from causes and effects: what the host asked for did not happen before it asked, what
// it has seen did not happen later. Between bounds the interval moves with the rate measured so far
// and widens by what that may be wrong. A bound that contradicts all before it (a clock was set, or
// its rate jumped) is believed, and the rate is measured anew.
#pragma once

#include <cstdint>
#include <limits>

#include "vmm/types.h"

namespace weir {

class ClockMap {
 public:
  // Clocks are assumed to run apart by no more than this before their rate is known.
  static constexpr double kMostDrift = 200e-6;
  // Beyond the measured rate: what it may change by until it is measured again.
  static constexpr double kWander = 2e-6;
  static constexpr TimeNs kEver = 0;  // no bound on that side
  static constexpr TimeNs kNever = std::numeric_limits<TimeNs>::max();

  // The device's clock showed |device_ns| at a moment in [not_before, not_after] of the host's. A
  // bound on one side only is of use once there was one on both.
  void Bound(uint64_t device_ns, TimeNs not_before, TimeNs not_after);

  bool known() const { return known_; }
  // 0 before anything is known.
  TimeNs ToHost(uint64_t device_ns) const;
  // How far ToHost may be off at the latest moment there is a bound for; at another.
  uint64_t error_ns() const { return static_cast<uint64_t>(high_ - low_ + 1) / 2; }
  uint64_t error_ns(uint64_t device_ns) const;
  double drift() const { return rate_; }  // host seconds less device seconds, a device second
  uint64_t contradictions() const { return contradictions_; }

 private:
  void MeasureRate(uint64_t device_ns, int64_t low, int64_t high);

  bool known_ = false;
  uint64_t at_ = 0;             // device time that the interval is of
  int64_t low_ = 0, high_ = 0;  // host time less device time
  double rate_ = 0, rate_error_ = kMostDrift;
  // A bound on both sides, from which the rate is measured.
  uint64_t anchor_ = 0;
  double anchor_middle_ = 0, anchor_error_ = 0;  // middle: less |base_|
  int64_t base_ = 0;                             // distances are huge, doubles are not exact
  uint64_t contradictions_ = 0;
};

}  // namespace weir
