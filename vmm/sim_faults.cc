#include "vmm/sim_faults.h"

namespace weir {
namespace {

constexpr std::array<const char*, kSimCallCount> kCallNames = {
    "create", "reserve", "map", "set access", "unmap", "copy", "fill"};
}  // namespace

void SimFaults::FailNth(SimCall call, uint64_t nth, StatusCode code) {
  Rule& rule = rules_[static_cast<size_t>(call)];
  rule.at = nth == 0 ? 0 : counts_[static_cast<size_t>(call)] + nth;
  rule.at_code = code;
}

void SimFaults::FailNthCall(uint64_t nth, StatusCode code) {
  any_.at = nth == 0 ? 0 : total_ + nth;
  any_.at_code = code;
}

void SimFaults::FailWithProbability(SimCall call, double p, StatusCode code) {
  Rule& rule = rules_[static_cast<size_t>(call)];
  rule.probability = p;
  rule.code = code;
}

void SimFaults::NthCopy(SimCopyFault fault, uint64_t nth) {
  copy_rules_[static_cast<size_t>(fault)].at = nth == 0 ? 0 : copies_ + nth;
}

void SimFaults::CopyWithProbability(SimCopyFault fault, double p) {
  copy_rules_[static_cast<size_t>(fault)].probability = p;
}

void SimFaults::Clear() {
  rules_ = {};
  any_ = {};
  copy_rules_ = {};
  link_slowdown = 1.0;
}

// splitmix64 (Steele, Lea, Flood 2014). Drawn only where a probability is set, so that turning one
// fault on does not move the others of a run without it.
bool SimFaults::Chance(double p) {
  if (p <= 0) return false;
  uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1.0p-53 < p;
}

Status SimFaults::OnCall(SimCall call) {
  const auto i = static_cast<size_t>(call);
  ++counts_[i];
  ++total_;
  std::optional<StatusCode> code;
  if (any_.at == total_) code = any_.at_code;
  if (rules_[i].at == counts_[i]) code = rules_[i].at_code;
  if (!code && Chance(rules_[i].probability)) code = rules_[i].code;
  if (!code) return OkStatus();
  ++injected_;
  return {*code, "injected: " + std::string(kCallNames[i]) + " call " + std::to_string(counts_[i]) +
                     " fails"};
}

std::optional<SimCopyFault> SimFaults::OnCopy() {
  ++copies_;
  for (size_t i = 0; i < copy_rules_.size(); ++i) {
    if (copy_rules_[i].at == copies_ || Chance(copy_rules_[i].probability)) {
      ++injected_;
      return static_cast<SimCopyFault>(i);
    }
  }
  return std::nullopt;
}

}  // namespace weir
