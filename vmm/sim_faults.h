// SimFaults: what a SimDriver does wrong on purpose. Reachable from tests through
// SimDriver::faults(); all off at first. Deterministic: same seed and same calls, same faults.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "vmm/status.h"
#include "vmm/types.h"

namespace weir {

// Calls that can be made to fail.
enum class SimCall : uint8_t { kCreate, kReserve, kMap, kSetAccess, kUnmap, kCopy, kFill };
inline constexpr size_t kSimCallCount = 7;

// What can happen to a copy that was accepted.
enum class SimCopyFault : uint8_t {
  kLate,  // takes |late_ns| longer
  kLost,  // completes, but the bytes were not written
  kFail,  // fails: the stream's events carry kDriver
};
inline constexpr size_t kSimCopyFaultCount = 3;

class SimFaults {
 public:
  explicit SimFaults(uint64_t seed) : state_(seed) {}

  // The |nth| coming call (1: the next) fails once with |code|; 0 takes the order back.
  void FailNth(SimCall call, uint64_t nth, StatusCode code = StatusCode::kDriver);
  // Likewise, counting calls of every kind: the fail-Nth loop.
  void FailNthCall(uint64_t nth, StatusCode code = StatusCode::kDriver);
  void FailWithProbability(SimCall call, double p, StatusCode code = StatusCode::kDriver);
  void NthCopy(SimCopyFault fault, uint64_t nth);
  void CopyWithProbability(SimCopyFault fault, double p);
  void Clear();  // no more faults; counts go on

  TimeNs late_ns = 1'000'000;
  double link_slowdown = 1.0;  // factor on the time of copies between tiers, >= 1

  uint64_t calls(SimCall call) const { return counts_[static_cast<size_t>(call)]; }
  uint64_t total_calls() const { return total_; }
  uint64_t injected() const { return injected_; }

  // For SimDriver: counts the call; the error if it is to fail.
  Status OnCall(SimCall call);
  // For SimDriver: the fault of this copy, if any.
  std::optional<SimCopyFault> OnCopy();

 private:
  struct Rule {
    uint64_t at = 0;  // count at which it fires; 0: never
    double probability = 0;
    StatusCode at_code = StatusCode::kDriver;
    StatusCode code = StatusCode::kDriver;
  };
  bool Chance(double p);

  uint64_t state_;
  std::array<Rule, kSimCallCount> rules_{};
  std::array<uint64_t, kSimCallCount> counts_{};
  Rule any_;
  uint64_t total_ = 0;
  std::array<Rule, kSimCopyFaultCount> copy_rules_{};
  uint64_t copies_ = 0;
  uint64_t injected_ = 0;
};

}  // namespace weir
