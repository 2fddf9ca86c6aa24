// A simulated engine whose gates are passed by "kernels", two steps under way: its trace has every
// gate and every copy, adds up, and passes `weir-trace check`.
#include <random>

#include <gtest/gtest.h>

#include "engine/core.h"
#include "engine/trace_metadata.h"
#include "policy/registry.h"
#include "tests/pager/fault_driver.h"
#include "tests/support/checked_trace.h"
#include "tests/support/iterations.h"
#include "tests/support/sim_model.h"
#include "vmm/sim_driver.h"

namespace weir {
namespace {

using testing::CheckedTrace;
using testing::SimCompute;
using testing::SimModel;
using testing::SimModelShape;
using testing::TraceFindings;

class DeviceLife {
 public:
  explicit DeviceLife(uint64_t mask = ~uint64_t{0},
                      const std::string& policy_name = "stress_random")
      : trace([this] { return driver->Now(); }, mask) {
    MemoryOptions m;
    m.granule_bytes = 256;
    m.scratch_bytes = 1000;
    m.kv_block_bytes = shape.block_bytes;
    m.kv_least_blocks = 8;
    m.weights = SimModel::Layout(shape);
    m.lookup_in_place = true;
    m.hbm_budget_bytes =
        m.weights.region_bytes - shape.lookup_bytes + m.scratch_bytes + 20 * shape.block_bytes;
    m.pager.device_gates = true;
    m.pager.max_steps_under_way = 2;
    m.pager.gate_timeout_ns = kGateTimeoutNs;
    memory = Memory::Create(faulty, m).value();
    EXPECT_TRUE(memory->weights().Write(0, SimModel::WeightBytes(shape)).ok());
    EXPECT_TRUE(memory->weights().Seal().ok());
    EXPECT_TRUE(memory->MeasureLink().ok());
    const ComputeLimits limits{
        .max_rows = 32, .max_sequences = 8, .max_context = 512, .vocab_size = shape.vocab};
    compute = std::make_unique<SimCompute>(
        *driver, shape, limits,
        SimCompute::Memory{memory->weights().base(), memory->kv().base(),
                           memory->kv().block_stride()},
        [this](uint64_t ns) { driver->AdvanceBy(ns); }, 2);
    policy = MakePolicy(policy_name).value();
    CoreOptions options;
    options.scheduler.max_batched_tokens = limits.max_rows;
    options.scheduler.max_prefill_chunk = 16;
    options.scheduler.max_sequences = limits.max_sequences;
    options.max_model_len = 512;
    core = std::make_unique<EngineCore>(faulty, *memory, *compute, *policy, options);
    EXPECT_TRUE(core->Calibrate().ok());
    trace.Drain();
  }

  void Add(int requests) {
    for (int i = 0; i < requests; ++i) {
      CoreRequest request;
      for (int t = 0; t < 20 + 3 * i; ++t) request.prompt.push_back(t < 16 ? t : (t * i) % 50);
      request.sampling.temperature = 0;
      request.sampling.max_tokens = 24;
      ASSERT_TRUE(core->Add(std::move(request)).ok());
    }
  }
  // At most |steps| of them; false when all is done.
  bool Serve(int steps = 5000) {
    for (int i = 0; i < steps; ++i) {
      const auto worked = core->Step();
      EXPECT_TRUE(worked.ok()) << worked.status().ToString();
      trace.Drain();
      if (!worked.ok() || !*worked) return false;
    }
    return true;
  }
  // |complete|: the end of the memory system is recorded.
  TraceFindings Close(bool complete = true) {
    EngineInfo info;
    info.granule_bytes = 256;
    info.kv_block_bytes = shape.block_bytes;
    const std::string metadata = TraceMetadata({}, info, *memory, *policy);
    counters = memory->weights().stats();
    border_moves = core->stats().border_moves;
    failed_steps = core->stats().failed_steps;
    core.reset();
    compute.reset();
    memory.reset();
    EXPECT_EQ(driver->stamp_count(), 0U);
    EXPECT_EQ(driver->violations(), 0U);
    trace.Drain();
    EXPECT_EQ(trace.tracer().dropped(), 0U);
    return trace.Check(metadata, complete);
  }

  static constexpr uint64_t kGateTimeoutNs = 20'000'000;
  SimModelShape shape{.lookup_bytes = 4096};
  std::unique_ptr<SimDriver> driver = SimDriver::Create({.granularity_bytes = 256}).value();
  test::FaultDriver faulty{*driver};
  CheckedTrace trace;
  std::unique_ptr<Memory> memory;
  std::unique_ptr<SimCompute> compute;
  std::unique_ptr<Policy> policy;
  std::unique_ptr<EngineCore> core;
  WeightPagerStats counters;
  uint64_t border_moves = 0, failed_steps = 0;
};

void ExpectSound(const TraceFindings& f) {
  EXPECT_EQ(f.violations, 0U) << f.first;
  EXPECT_TRUE(f.conclusive);
}

TEST(TraceOfDeviceGates, GatesCopiesStallAndBytesAddUpExactly) {
  DeviceLife life;
  life.driver->faults().link_slowdown = 200;  // so that gates are faults
  life.Add(12);
  EXPECT_FALSE(life.Serve());
  const TraceFindings f = life.Close();
  ExpectSound(f);
  EXPECT_GT(life.border_moves, 0U);
  EXPECT_GT(f.moves, 0U);
  EXPECT_EQ(f.moves, life.counters.hidden_transitions + life.counters.split_transitions);
  EXPECT_GT(f.faults, 0U);
  EXPECT_EQ(f.faults, life.counters.faults);
  EXPECT_EQ(f.stall_ns, life.counters.stall_ns);
  EXPECT_EQ(f.passes, life.counters.gate_arrivals);
  EXPECT_GT(f.copies, 0U);
  EXPECT_EQ(f.copies, life.counters.chunks_copied);
  EXPECT_EQ(f.copied_bytes, life.counters.bytes_copied);
  EXPECT_EQ(f.copied_bytes, f.expected_bytes);
  EXPECT_EQ(f.device_steps, f.steps);
  // The link is slow: what was waited for was on its way, queued behind others, or of a new plan.
  EXPECT_GT(f.by_cause.at(FaultCause::kStillCopying), 0U);
  EXPECT_GT(f.by_cause.at(FaultCause::kNewPlan), 0U);
  EXPECT_FALSE(f.by_cause.contains(FaultCause::kUnknown));
}

TEST(TraceOfDeviceGates, OneLateCopyIsOneMajorFaultWithThatCauseAndItsWait) {
  DeviceLife life(~uint64_t{0}, "fixed{granules_per_layer=2}");
  life.Add(4);
  ASSERT_TRUE(life.Serve(8));
  const uint64_t before = life.memory->weights().stats().stall_ns;
  constexpr uint64_t kLateNs = 5'000'000;
  life.driver->faults().late_ns = kLateNs;
  life.driver->faults().NthCopy(SimCopyFault::kLate, 3);
  EXPECT_FALSE(life.Serve());
  const TraceFindings f = life.Close();
  ExpectSound(f);
  EXPECT_EQ(life.failed_steps, 0U);
  ASSERT_GE(f.by_cause.at(FaultCause::kLateCopy), 1U);
  uint64_t longest = 0;
  for (const TraceRecord& r : f.fault_records) {
    if (r.cause == static_cast<uint8_t>(FaultCause::kLateCopy)) {
      longest = std::max(longest, r.args[3]);
    }
  }
  EXPECT_GT(longest, kLateNs / 2);
  EXPECT_LE(longest, 2 * kLateNs);
  EXPECT_GE(life.counters.stall_ns - before, longest);
  EXPECT_EQ(f.stall_ns, life.counters.stall_ns);
}

TEST(TraceOfDeviceGates, AStripeThatDoesNotComeFailsTheStepAndTheAccountsStillHold) {
  for (uint64_t nth = 1; nth <= 40; nth += 3) {
    SCOPED_TRACE("copy " + std::to_string(nth));
    DeviceLife life(~uint64_t{0}, "stress_random{hold_steps=2}");
    life.Add(6);
    life.driver->faults().late_ns = 3 * DeviceLife::kGateTimeoutNs;
    life.driver->faults().NthCopy(SimCopyFault::kLate, nth);
    EXPECT_FALSE(life.Serve());
    const TraceFindings f = life.Close();
    ExpectSound(f);
    EXPECT_EQ(f.stall_ns, life.counters.stall_ns);
    if (life.failed_steps > 0) {
      EXPECT_GT(f.by_cause.at(FaultCause::kLateCopy), 0U);
    }
  }
}

TEST(TraceOfDeviceGates, ClocksThatAreOffByWhatTheySayGiveNoFalseAlarmAndByMoreAreFound) {
  for (const bool more : {false, true}) {
    DeviceLife life;
    std::mt19937 random(3);
    constexpr int64_t kError = 3000;  // longer than most copies take
    life.faulty.stamp_error = more ? 0 : kError;
    life.faulty.stamp_off = [&] { return static_cast<int64_t>(random() % (2 * kError)) - kError; };
    life.driver->faults().link_slowdown = 20;
    life.Add(12);
    EXPECT_FALSE(life.Serve());
    const TraceFindings f = life.Close();
    EXPECT_EQ(f.copied_bytes, life.counters.bytes_copied);
    EXPECT_EQ(f.stall_ns, life.counters.stall_ns);
    if (more) {
      EXPECT_GT(f.violations, 0U);
    } else {
      ExpectSound(f);
    }
  }
}

TEST(TraceOfDeviceGates, RandomLivesWithFaultsAreSoundAndTheirStallAddsUp) {
  constexpr const char* kPolicies[] = {"stress_random",
                                       "stress_random{hold_steps=1; seed=5}",
                                       "tide{hold_steps=2; settle_steps=1; min_gain=0}",
                                       "fixed{granules_per_layer=3}",
                                       "zero-inference",
                                       "static{fraction=0.5}",
                                       "static{fraction=0.5; placement=in_place}"};
  uint64_t failed_steps = 0, faults = 0, moves = 0, regroupings = 0, splits = 0;
  for (uint64_t seed = 0; seed < testing::Iterations("WEIR_TRACE_RUNS", 60); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    DeviceLife life(~uint64_t{0}, kPolicies[seed % std::size(kPolicies)]);
    life.faulty.stamp_error = random() % 4000;
    life.faulty.stamp_off = [&] {
      const auto error = static_cast<int64_t>(life.faulty.stamp_error);
      return static_cast<int64_t>(random() % (2 * life.faulty.stamp_error + 1)) - error;
    };
    life.compute->clock_error_ns = random() % 4 == 0 ? random() % 4000 : 0;
    life.compute->clock_off = [&] {
      const auto error = static_cast<int64_t>(life.compute->clock_error_ns);
      return static_cast<int64_t>(random() % (2 * life.compute->clock_error_ns + 1)) - error;
    };
    SimFaults& f = life.driver->faults();
    f.link_slowdown = static_cast<double>(1 + random() % 100);
    f.late_ns = 1'000 + random() % (2 * DeviceLife::kGateTimeoutNs);
    if (random() % 2 == 0) f.CopyWithProbability(SimCopyFault::kLate, 0.02);
    if (random() % 3 == 0) f.CopyWithProbability(SimCopyFault::kFail, 0.005);
    // A copy that is refused is asked for again; three times in a row void the step. With maps that
    // fail too the weights may end up incomplete for good, and nothing is computed any more.
    const bool refusing = random() % 4 == 0;
    if (refusing) f.FailWithProbability(SimCall::kCopy, 0.2);
    if (!refusing && random() % 3 == 0) f.FailWithProbability(SimCall::kMap, 0.02);
    if (!refusing && random() % 3 == 0) f.FailWithProbability(SimCall::kCopy, 0.01);
    life.Add(static_cast<int>(2 + random() % 12));
    EXPECT_FALSE(life.Serve());
    f.Clear();
    const TraceFindings found = life.Close();
    ExpectSound(found);
    EXPECT_EQ(found.stall_ns, life.counters.stall_ns);
    failed_steps += life.failed_steps;
    faults += found.faults;
    moves += found.moves;
    regroupings += found.regroupings;
    splits += life.counters.split_transitions;
  }
  EXPECT_GT(moves, 0U);
  EXPECT_GT(regroupings, 0U);
  EXPECT_GT(splits, 0U);
  EXPECT_GT(failed_steps, 0U);
  EXPECT_GT(faults, 0U);
}

TEST(TraceOfDeviceGates, WhereCopiesAreRefusedNothingMovesUnderThoseThatWereQueued) {
  uint64_t failed_steps = 0, moves = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    DeviceLife life(~uint64_t{0}, "stress_random{hold_steps=1; seed=" + std::to_string(seed) + "}");
    SimFaults& f = life.driver->faults();
    f.link_slowdown = 50;
    f.FailWithProbability(SimCall::kCopy, 0.25);
    life.Add(6);
    EXPECT_FALSE(life.Serve());
    f.Clear();
    const TraceFindings found = life.Close();  // the driver looks at what is unmapped
    ExpectSound(found);
    EXPECT_EQ(found.stall_ns, life.counters.stall_ns);
    failed_steps += life.failed_steps;
    moves += found.moves;
  }
  EXPECT_GT(failed_steps, 0U);
  EXPECT_GT(moves, 0U);
}

TEST(TraceOfDeviceGates, ARecordingThatBeginsOrEndsInTheMiddleIsSoundAndLeavesNoStamps) {
  DeviceLife life(/*mask=*/0);
  life.driver->faults().link_slowdown = 50;
  life.Add(12);
  for (int i = 0; i < 20; ++i) {
    life.trace.tracer().set_mask(i % 2 == 0 ? ~uint64_t{0} : 0);
    if (i % 2 == 0) {
      TraceEmit(TraceType::kSnapshotBegin, 0);
      life.memory->TraceState();
      life.core->scheduler().TraceState();
      TraceEmit(TraceType::kSnapshotEnd, 0);
    }
    if (!life.Serve(5)) break;
  }
  life.trace.tracer().set_mask(0);
  const TraceFindings f = life.Close(/*complete=*/false);
  EXPECT_EQ(f.violations, 0U) << f.first;
  EXPECT_GT(f.copies, 0U);
  EXPECT_GT(f.passes, 0U);
}

}  // namespace
}  // namespace weir
