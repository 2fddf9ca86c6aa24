// A weight pager whose gates are passed by kernels (played by SimStepGates), two steps under way.
#pragma once

#include <optional>
#include <utility>

#include "tests/pager/pager_world.h"
#include "tests/support/sim_gates.h"

namespace weir::test {

inline constexpr uint64_t kTimeoutNs = 20'000'000;

class DeviceGatesFixture : public ::testing::Test {
 protected:
  using Step = weir::testing::SimStepGates;

  explicit DeviceGatesFixture(const WorldOptions& options = Options()) : w(options) {
    EXPECT_TRUE(w.created.ok()) << w.created.ToString();
  }
  static WorldOptions Options() {
    WorldOptions options{.driver = DriverKind::kSim,
                         .backing = Backing::kHost,
                         .layout = RegularLayout(8, {57'344, 86'016}, 3000, 500)};
    options.pager.device_gates = true;
    options.pager.max_steps_under_way = 2;
    options.pager.gate_timeout_ns = kTimeoutNs;
    return options;
  }
  static std::function<CopyFault()> Nth(uint64_t n, CopyFault fault) {
    return [n, fault, i = uint64_t{0}]() mutable { return ++i == n ? fault : CopyFault::kNone; };
  }

  // Begins a step and submits its kernels, which run when it is collected.
  Step Begin() {
    const Status begun = w.pager->BeginStep();
    EXPECT_TRUE(begun.ok()) << begun.ToString();
    return {w.driver, w.pager->device_gates(), [this](uint64_t ns) {
              if (while_waiting) while_waiting();
              w.sim()->AdvanceBy(ns);
            }};
  }
  // Whether every byte was right; a step that failed reads them, too.
  bool RunKernels(Step& step) {
    const WeightLayout& layout = w.pager->layout();
    const uint32_t segments = layout.segments_per_layer();
    bool right = w.BytesAre(layout.lookup.offset, layout.lookup.bytes);
    for (uint32_t gate = 0; gate < layout.gates(); ++gate) {
      if (before_gate) before_gate(step, gate);
      EXPECT_TRUE(step.Arrive(gate).ok());
      const WeightSegment& s = layout.layers[gate / segments][gate % segments];
      right = w.BytesAre(s.offset, s.bytes) && right;
      w.sim()->AdvanceBy(s.bytes / 4);
      EXPECT_TRUE(step.Depart(gate).ok());
    }
    return right;
  }
  // Runs the oldest step and ends it.
  Status Collect(Step step) {
    const bool right = RunKernels(step);
    Status reported = step.armed() ? w.pager->Report(step.log()) : OkStatus();
    Status ended = w.pager->EndStep();
    if (reported.ok() && ended.ok()) {
      EXPECT_TRUE(right) << "wrong bytes behind a gate that was passed";
    }
    return reported.ok() ? ended : reported;
  }
  // |n| steps, of which two are under way at a time.
  void ServesOn(int n = 4) {
    std::optional<Step> before;
    for (int i = 0; i < n; ++i) {
      Step step = Begin();
      if (before) Expect(Collect(*std::exchange(before, std::nullopt)), i);
      before.emplace(std::move(step));
    }
    Expect(Collect(*before), n);
    w.CheckAll();
  }
  static void Expect(const Status& step, int i) {
    EXPECT_TRUE(step.ok()) << "step " << i << ": " << step.ToString();
  }

  World w;
  // Called while the kernels of a step stand before a gate; may be empty.
  std::function<void(const Step&, uint32_t)> before_gate;
  // Called while they wait at it; may be empty.
  std::function<void()> while_waiting;
};

}  // namespace weir::test
