#include "tests/support/checked_trace.h"

#include <algorithm>
#include <cstdio>

#include <gtest/gtest.h>
#include <unistd.h>

#include "tools/trace/reader.h"
#include "vmm/trace_file.h"

namespace weir::testing {
namespace {

// Bytes that are to be copied, by the definitions of kPlacement and kTransition.
class ExpectedBytes {
 public:
  void Add(const TraceRecord& r) {
    switch (static_cast<TraceType>(r.type)) {
      case TraceType::kPlacement:
        bytes_ = r.args[3];
        sum_ += r.args[5];
        ahead_ = 0;
        for (auto& [step, of_step] : by_step_) {
          if (step != transition_) of_step = bytes_;
        }
        break;
      case TraceType::kTransition:
        transition_ = r.args[0];
        by_step_[transition_] = bytes_ = r.args[3];
        ahead_ = r.args[5];
        break;
      case TraceType::kStepBegin: by_step_[r.args[0]] = bytes_; break;
      case TraceType::kStepFailed: by_step_.erase(r.args[0]); break;
      case TraceType::kStepEnd:
        sum_ += by_step_[r.args[0]];
        // The first step of a round behind closed gates has nothing copied ahead.
        if (r.args[0] == transition_ + 1 && !by_step_.contains(transition_)) sum_ += ahead_;
        by_step_.erase(r.args[0]);
        break;
      default: break;
    }
  }
  uint64_t sum() const { return sum_; }

 private:
  uint64_t bytes_ = 0, ahead_ = 0, sum_ = 0;
  uint64_t transition_ = UINT64_MAX - 1;  // the last one's step
  std::map<uint64_t, uint64_t> by_step_;  // under way
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
  ExpectedBytes expected;
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
    f.first = v.rule + ": " + v.what;
  }
  f.conclusive = checker.conclusive() && !reader.losses().any();
  f.steps = checker.steps();
  f.passes = checker.passes();
  f.stall_ns = checker.stall_ns();
  return f;
}

}  // namespace weir::testing
