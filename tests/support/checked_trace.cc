#include "tests/support/checked_trace.h"

#include <algorithm>
#include <cstdio>
#include <sstream>
#include <utility>

#include <gtest/gtest.h>
#include <unistd.h>

#include "tools/trace/reader.h"
#include "tools/trace/schema.h"
#include "vmm/trace_file.h"

namespace weir::testing {
namespace {

// Bytes that are to be copied, by the definitions of kPlacement, kTransition and kStripeStays.
class ExpectedBytes {
 public:
  explicit ExpectedBytes(uint64_t granule_bytes) : granule_bytes_(granule_bytes) {}
  void Add(const TraceRecord& r) {
    switch (static_cast<TraceType>(r.type)) {
      case TraceType::kPlacement:
        sum_ += r.args[5];
        rounds_.push_back({.bytes = r.cause == trace_tool::kPlacementInPlace ? 0 : r.args[3]});
        for (auto& [step, round] : under_way_) {
          if (step != transition_) round = rounds_.size() - 1;
        }
        break;
      case TraceType::kTransition:
        transition_ = r.args[0];
        rounds_.push_back({.bytes = r.args[3], .ahead_of_second = r.args[5]});
        under_way_[transition_] = rounds_.size() - 1;
        break;
      case TraceType::kStripeStays: rounds_.back().stays += r.args[3] * granule_bytes_; break;
      case TraceType::kStepBegin: under_way_[r.args[0]] = rounds_.size() - 1; break;
      case TraceType::kStepFailed: under_way_.erase(r.args[0]); break;
      case TraceType::kStepEnd: {
        Round& round = rounds_[under_way_[r.args[0]]];
        sum_ += round.bytes - std::exchange(round.stays, 0);
        if (++round.ended == 2) sum_ += round.ahead_of_second;
        under_way_.erase(r.args[0]);
        break;
      }
      default: break;
    }
  }
  uint64_t sum() const { return sum_; }

 private:
  struct Round {
    uint64_t bytes = 0, ahead_of_second = 0, ended = 0;
    uint64_t stays = 0;  // of its first step's
  };
  const uint64_t granule_bytes_;
  uint64_t sum_ = 0;
  uint64_t transition_ = UINT64_MAX;      // the last one's step
  std::vector<Round> rounds_{1};          // the first: before any placement
  std::map<uint64_t, size_t> under_way_;  // the round, by step
};

void AddTo(TraceFindings& f, const TraceRecord& r, uint64_t& device_end) {
  switch (static_cast<TraceType>(r.type)) {
    case TraceType::kFaultMajor:
      ++f.faults;
      ++f.by_cause[static_cast<FaultCause>(r.cause)];
      f.fault_records.push_back(r);
      break;
    case TraceType::kCopy:
      ++f.copies;
      f.copied_bytes += r.args[3];
      break;
    case TraceType::kTransition:
      ++(r.cause == static_cast<uint8_t>(TransitionKind::kMoves) ? f.moves : f.regroupings);
      break;
    case TraceType::kDeviceStep:
      ++f.device_steps;
      if (device_end != 0 && r.args[1] > device_end) f.device_idle_ns += r.args[1] - device_end;
      device_end = r.args[2];
      f.latest_clock_error_ns = r.args[3];
      f.most_clock_error_ns = std::max(f.most_clock_error_ns, r.args[3]);
      break;
    default: break;
  }
}

// The paging records of half a millisecond before and after, as lines.
std::string Around(std::span<const TraceRecord> records, uint64_t time_ns) {
  constexpr uint64_t kAround = 500'000;
  std::vector<TraceRecord> near;
  for (const TraceRecord& r : records) {
    const auto type = static_cast<TraceType>(r.type);
    const bool paging = type == TraceType::kCopy || type == TraceType::kGatePass ||
                        type == TraceType::kPlacement || type == TraceType::kTransition ||
                        type == TraceType::kStepBegin || type == TraceType::kStepEnd;
    if (paging && r.time_ns + kAround > time_ns && r.time_ns < time_ns + kAround) {
      near.push_back(r);
    }
  }
  std::ranges::stable_sort(near, {}, &TraceRecord::time_ns);
  std::ostringstream text;
  for (const TraceRecord& r : near) {
    text << "\n  " << std::showpos << static_cast<int64_t>(r.time_ns - time_ns) << std::noshowpos
         << " ns " << TraceTypeName(static_cast<TraceType>(r.type));
    for (const uint64_t arg : r.args) text << " " << arg;
  }
  return text.str();
}

}  // namespace

CheckedTrace::CheckedTrace(Tracer::Clock clock, uint64_t mask)
    : tracer_({.ring_records = 1U << 16, .mask = mask, .clock = std::move(clock)}),
      path_(::testing::TempDir() + "/" + std::to_string(::getpid()) + "_checked.trace") {
  SetTracer(&tracer_);
}

CheckedTrace::~CheckedTrace() {
  SetTracer(nullptr);
  (void)std::remove(path_.c_str());
}

void CheckedTrace::Drain() {
  tracer_.Drain([this](const TraceRecord& r) { records_.push_back(r); });
}

TraceFindings CheckedTrace::Check(const std::string& metadata, bool complete) {
  constexpr size_t kBlock = 1U << 12;
  auto file = TraceFileWriter::Create(path_, start_ns_, ~uint64_t{0}, metadata);
  EXPECT_TRUE(file.ok()) << file.status().ToString();
  for (size_t at = 0; at < records_.size(); at += kBlock) {
    const auto block = std::span(records_).subspan(at, std::min(kBlock, records_.size() - at));
    EXPECT_TRUE((*file)->Append(block, at == 0 ? tracer_.dropped() : 0).ok());
  }
  EXPECT_TRUE((*file)->Close(metadata).ok());

  trace_tool::TraceReader reader(trace_tool::OpenFile(path_));
  trace_tool::InvariantChecker checker(reader.meta(), reader.header().mask);
  TraceFindings f;
  uint64_t device_end = 0;
  ExpectedBytes expected(reader.meta().granule_bytes);
  reader.ForEach([&](const trace_tool::TraceEvent& event) {
    checker.Add(event);
    AddTo(f, event.record, device_end);
    expected.Add(event.record);
  });
  f.expected_bytes = expected.sum();
  checker.Finish(complete);
  f.violations = checker.violation_count();
  if (!checker.violations().empty()) {
    const trace_tool::Violation& v = checker.violations().front();
    f.first = v.rule + ": " + v.what + Around(records_, v.event.record.time_ns);
  }
  f.conclusive = checker.conclusive() && !reader.losses().any();
  f.steps = checker.steps();
  f.passes = checker.passes();
  f.stall_ns = checker.stall_ns();
  return f;
}

}  // namespace weir::testing
