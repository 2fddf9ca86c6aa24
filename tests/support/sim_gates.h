// SimStepGates: passes the gates of one step as kernels do (kernels/cuda/gates.cuh), in virtual
// time.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "pager/gates.h"
#include "vmm/driver.h"

namespace weir::testing {

class SimStepGates {
 public:
  // |gates| as of the submission of the step. |advance(ns)| passes virtual time.
  SimStepGates(Driver& driver, const DeviceGates& gates, std::function<void(uint64_t)> advance)
      : driver_(&driver),
        gates_(gates),
        chunk_of_gate_(gates.chunk_of_gate.begin(), gates.chunk_of_gate.end()),
        advance_(std::move(advance)),
        times_(gates.chunk_of_gate.size()) {
    gates_.chunk_of_gate = {};  // the pager's, which may change
  }

  bool armed() const {
    return std::any_of(chunk_of_gate_.begin(), chunk_of_gate_.end(),
                       [](int32_t chunk) { return chunk >= 0; });
  }
  int32_t chunk(uint32_t gate) const { return chunk_of_gate_[gate]; }
  // Its times are in this object.
  DeviceGateLog log() const {
    DeviceGateLog log = log_;
    log.times = times_;
    return log;
  }

  // An error is a misuse of the driver; a wait that runs out is noted in the log, and later gates
  // of the step do not wait.
  Status Arrive(uint32_t gate) {
    const int32_t chunk = chunk_of_gate_[gate];
    if (chunk < 0) return OkStatus();
    const uint64_t target = gates_.pass_base + static_cast<uint64_t>(chunk) + 1;
    const TimeNs begin = driver_->Now();
    if (WEIR_TRY(Produced()) < target) {
      WEIR_TRY(Wait(gate, target));
      const uint64_t stall = driver_->Now() - begin;
      ++log_.faults;
      log_.stall_ns += stall;
      log_.max_stall_ns = std::max(log_.max_stall_ns, stall);
    }
    ++log_.passed;
    times_[gate] = {begin, driver_->Now()};
    return OkStatus();
  }

  // In a failed step as well.
  Status Depart(uint32_t gate) {
    const int32_t chunk = chunk_of_gate_[gate];
    if (chunk < 0) return OkStatus();
    log_.departed = static_cast<uint32_t>(chunk) + 1;
    const uint64_t consumed = gates_.pass_base + log_.departed;
    return driver_->Write(gates_.consumed, std::as_bytes(std::span(&consumed, 1)));
  }

  // As if the clock of what it noted were off by |off|, and known to within |error|.
  void ShiftClock(int64_t off, uint64_t error) {
    log_.clock_error_ns = error;
    for (DeviceGateTimes& at : times_) {
      if (at.arrive_ns == 0) continue;
      at.arrive_ns += static_cast<uint64_t>(off);
      at.pass_ns += static_cast<uint64_t>(off);
    }
  }

 private:
  Result<uint64_t> Produced() const {
    uint64_t produced = 0;
    WEIR_TRY(driver_->Read(gates_.produced, std::as_writable_bytes(std::span(&produced, 1))));
    return produced;
  }

  Status Wait(uint32_t gate, uint64_t target) {
    constexpr uint64_t kPauseNs = 128;
    for (const TimeNs begin = driver_->Now(); log_.failed_gate < 0;) {
      if (WEIR_TRY(Produced()) >= target) break;
      const uint64_t waited = driver_->Now() - begin;
      if (waited >= gates_.timeout_ns) {
        log_.failed_gate = static_cast<int32_t>(gate);
        break;
      }
      // Looks less often the longer it waits: nobody polls for ten simulated seconds.
      advance_(std::min(std::max(kPauseNs, waited / 16), gates_.timeout_ns - waited));
    }
    return OkStatus();
  }

  Driver* driver_;
  DeviceGates gates_;
  std::vector<int32_t> chunk_of_gate_;
  std::function<void(uint64_t)> advance_;
  DeviceGateLog log_;
  std::vector<DeviceGateTimes> times_;  // by gate
};

}  // namespace weir::testing
