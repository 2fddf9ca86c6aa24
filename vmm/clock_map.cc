#include "vmm/clock_map.h"

#include <algorithm>
#include <cmath>

namespace weir {
namespace {

constexpr double kRateFromNs = 1e9;    // the shortest time from which a rate is measured
constexpr double kAnchorForNs = 2e10;  // the longest: rates change with temperature

// Of unsigned times whose distance fits.
int64_t Minus(uint64_t a, uint64_t b) {
  return static_cast<int64_t>(a - b);
}

}  // namespace

void ClockMap::Bound(uint64_t device_ns, TimeNs not_before, TimeNs not_after) {
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  int64_t low = not_before == kEver ? -kNone : Minus(not_before, device_ns);
  int64_t high = not_after == kNever ? kNone : Minus(not_after, device_ns);
  const bool both = low != -kNone && high != kNone;
  if (!known_) {
    if (!both) return;
    known_ = true;
    at_ = device_ns;
    low_ = low;
    high_ = high;
    base_ = low;
    MeasureRate(device_ns, low, high);
    return;
  }
  // Both to the later of the two moments.
  const double apart = static_cast<double>(Minus(device_ns, at_));
  const auto drift = static_cast<int64_t>(std::llround(rate_ * std::abs(apart)));
  const auto slack = static_cast<int64_t>(std::ceil(rate_error_ * std::abs(apart)));
  if (apart >= 0) {
    low_ += drift - slack;
    high_ += drift + slack;
    at_ = device_ns;
  } else {
    if (low != -kNone) low += drift - slack;
    if (high != kNone) high += drift + slack;
  }
  const int64_t width = high_ - low_;
  if (low > high_ || high < low_) {
    ++contradictions_;
    rate_error_ = kMostDrift;
    anchor_ = 0;
    if (low > high_) {
      low_ = low;
      high_ = high == kNone ? low + width : high;
    } else {
      high_ = high;
      low_ = low == -kNone ? high - width : low;
    }
  } else {
    low_ = std::max(low_, low);
    high_ = std::min(high_, high);
  }
  if (both && apart >= 0) MeasureRate(device_ns, low, high);
}

void ClockMap::MeasureRate(uint64_t device_ns, int64_t low, int64_t high) {
  const double error = static_cast<double>(high - low) / 2;
  const double middle = static_cast<double>(low - base_) + error;
  if (anchor_ != 0) {
    const double apart = static_cast<double>(Minus(device_ns, anchor_));
    if (apart < kRateFromNs) return;
    const double rate_error = (error + anchor_error_) / apart + kWander;
    if (rate_error < rate_error_ || apart > kAnchorForNs) {
      rate_ = (middle - anchor_middle_) / apart;
      rate_error_ = std::min(rate_error, kMostDrift);
    }
    if (apart < kAnchorForNs) return;
  }
  anchor_ = device_ns;
  anchor_middle_ = middle;
  anchor_error_ = error;
}

uint64_t ClockMap::error_ns(uint64_t device_ns) const {
  const double apart = std::abs(static_cast<double>(Minus(device_ns, at_)));
  return error_ns() + static_cast<uint64_t>(std::ceil(rate_error_ * apart));
}

TimeNs ClockMap::ToHost(uint64_t device_ns) const {
  if (!known_) return 0;
  const double apart = static_cast<double>(Minus(device_ns, at_));
  const int64_t offset =
      low_ + (high_ - low_) / 2 + static_cast<int64_t>(std::llround(rate_ * apart));
  return device_ns + static_cast<uint64_t>(offset);
}

}  // namespace weir
