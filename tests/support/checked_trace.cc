#include "tests/support/checked_trace.h"

#include <algorithm>
#include <cstdio>

#include <gtest/gtest.h>
#include <unistd.h>

#include "tools/trace/reader.h"
#include "vmm/trace_file.h"

namespace weir::testing {
namespace {

void AddTo(TraceFindings& f, const TraceRecord& r, uint64_t& evicted_bytes, uint64_t& device_end) {
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
    case TraceType::kPlacement:
      evicted_bytes = r.args[3];
      f.expected_bytes += r.args[5];
      break;
    case TraceType::kStepEnd: f.expected_bytes += evicted_bytes; break;
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
  uint64_t evicted_bytes = 0, device_end = 0;
  reader.ForEach([&](const trace_tool::TraceEvent& event) {
    checker.Add(event);
    AddTo(f, event.record, evicted_bytes, device_end);
  });
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
