// Two copies on their way at once: order, rings of several sizes, a lane that is late, fails or
// stands still, and a link that is never idle.
#include <map>

#include "tests/pager/device_gates_fixture.h"
#include "tools/trace/busy_time.h"
#include "vmm/trace.h"

namespace weir {
namespace {

using test::Backing;
using test::CopyFault;
using test::DriverKind;
using test::kGranule;
using test::RegularLayout;
using test::World;

constexpr const char* kLanes[] = {"weir-weights", "weir-weights-2"};

EvictionTarget Stripes(uint32_t ring_slots) {
  return {.granules_per_layer = 5, .ring_slots = ring_slots};
}
// All copies on |lane|.
std::function<CopyFault(const std::string&)> On(const char* lane, CopyFault fault) {
  return [lane, fault](const std::string& stream) {
    return stream == lane ? fault : CopyFault::kNone;
  };
}

// --- Gates passed by the host
// ---------------------------------------------------------------------

class LanesTest : public ::testing::TestWithParam<std::tuple<DriverKind, uint32_t>> {
 protected:
  static DriverKind kind() { return std::get<0>(GetParam()); }
  static uint32_t ring() { return std::get<1>(GetParam()); }
  // Nothing is verified or repaired on the way: a gate that opens early shows wrong bytes.
  World w{{.driver = kind(),
           .backing = Backing::kHost,
           .layout = RegularLayout(9, {57'344, 86'016}, 3000, 500)}};
  void SetUp() override {
    ASSERT_TRUE(w.pager->Apply(Stripes(ring())).ok());
    ASSERT_TRUE(w.Step().ok());
  }
  void Serves(int steps = 3) {
    for (int i = 0; i < steps; ++i) {
      const Status step = w.Step();
      ASSERT_TRUE(step.ok()) << "step " << i << ": " << step.ToString();
    }
    w.CheckAll();
  }
};
INSTANTIATE_TEST_SUITE_P(Rings, LanesTest,
                         ::testing::Combine(::testing::Values(DriverKind::kHost, DriverKind::kSim),
                                            ::testing::Values(2U, 3U, 4U)),
                         [](const auto& param) {
                           return test::KindName(std::get<0>(param.param)) + "Ring" +
                                  std::to_string(std::get<1>(param.param));
                         });

TEST_P(LanesTest, ALateCopyOnEitherLaneHoldsItsOwnGateAndNoByteIsWrong) {
  const uint64_t copies = w.pager->plan().chunks().size();
  for (uint64_t n = 1; n <= copies; ++n) {
    SCOPED_TRACE("copy " + std::to_string(n));
    if (w.sim() != nullptr) {
      w.sim()->faults().NthCopy(SimCopyFault::kLate, n);
    } else {
      w.driver.on_copy = [n, i = uint64_t{0}]() mutable {
        return ++i == n ? CopyFault::kDelay : CopyFault::kNone;
      };
    }
    const uint64_t stall = w.pager->stats().stall_ns;
    Serves(2);
    EXPECT_GT(w.pager->stats().stall_ns, stall);
  }
  EXPECT_EQ(w.pager->stats().repairs, 0U);
}

TEST_P(LanesTest, ALaneThatIsAlwaysLateOnlyTakesTime) {
  for (const char* lane : kLanes) {
    SCOPED_TRACE(lane);
    uint64_t late = 0;
    w.driver.delay = std::chrono::microseconds(300);
    w.driver.on_copy_on = [&, lane](const std::string& stream) {
      if (stream != lane) return CopyFault::kNone;
      ++late;
      if (w.sim() == nullptr) return CopyFault::kDelay;
      w.sim()->faults().NthCopy(SimCopyFault::kLate, 1);
      return CopyFault::kNone;
    };
    const uint64_t copied = w.pager->stats().chunks_copied;
    Serves();
    EXPECT_EQ(late, (w.pager->stats().chunks_copied - copied) / 2);
    w.driver.on_copy_on = {};
    EXPECT_EQ(w.pager->stats().repairs, 0U);
  }
}

TEST_P(LanesTest, ALaneThatFailsEveryCopyFailsTheStepWithTheStripeNamedAndServingGoesOn) {
  for (const char* lane : kLanes) {
    SCOPED_TRACE(lane);
    w.driver.on_copy_on = On(lane, CopyFault::kFail);
    for (int i = 0; i < 2; ++i) {
      const Status step = w.Step();
      EXPECT_EQ(step.code(), StatusCode::kDriver) << step.ToString();
      EXPECT_NE(step.message().find("copy failed"), std::string::npos) << step.ToString();
      EXPECT_NE(step.message().find("layer"), std::string::npos) << step.ToString();
    }
    w.driver.on_copy_on = {};
    Serves();
  }
}

TEST_P(LanesTest, OneFailedCopyIsRepairedWhileTheOtherLaneWaitsForItsRingSlot) {
  const uint64_t copies = w.pager->plan().chunks().size();
  for (uint64_t n = 1; n <= copies; ++n) {
    SCOPED_TRACE("copy " + std::to_string(n));
    const uint64_t repairs = w.pager->stats().repairs;
    w.driver.on_copy = [n, i = uint64_t{0}]() mutable {
      return ++i == n ? CopyFault::kFail : CopyFault::kNone;
    };
    Serves(2);
    EXPECT_GT(w.pager->stats().repairs, repairs);
    w.driver.on_copy = {};
  }
}

TEST_P(LanesTest, ALaneThatRefusesOrCannotBeMadeIsAnErrorOfTheStepOnly) {
  for (const char* lane : kLanes) {
    SCOPED_TRACE(lane);
    w.driver.on_copy_on = On(lane, CopyFault::kRefuse);
    EXPECT_EQ(w.Step().code(), StatusCode::kDriver);
    w.driver.on_copy_on = {};
    Serves();
    w.driver.on_copy_on = On(lane, CopyFault::kFail);
    int streams = 0;
    w.driver.create_stream_fails = [&streams] { return ++streams % 2 == 0; };  // the second lane
    EXPECT_FALSE(w.Step().ok());
    w.driver.on_copy_on = {};
    w.driver.create_stream_fails = {};
    Serves();
  }
}

TEST_P(LanesTest, AStepGivenUpAnywhereIsFollowedByAWholeOne) {
  for (uint32_t stop = 0; stop < w.pager->layout().gates(); ++stop) {
    ASSERT_TRUE(w.pager->BeginStep().ok());
    for (uint32_t g = 0; g < stop; ++g) {
      ASSERT_TRUE(w.pager->Arrive(g).ok());
      w.pager->Depart(g);
    }
    EXPECT_EQ(w.pager->EndStep().code(), StatusCode::kBadState);
    // Numbers go on where they were given up: either lane may have the first chunk now.
    Serves(1);
    const uint32_t other = ring() == 4 ? 2 : ring() + 1;
    ASSERT_TRUE(w.pager->Apply(Stripes(other)).ok());
    Serves(1);
    ASSERT_TRUE(w.pager->Apply(Stripes(ring())).ok());
  }
}

TEST_P(LanesTest, CopiesOfDifferentLanesOverlapInTheTraceAndThoseOfOneDoNot) {
  Tracer::Clock clock;
  if (w.sim() != nullptr) clock = [this] { return w.sim()->Now(); };
  Tracer tracer({.clock = clock});
  SetTracer(&tracer);
  // So that copies take longer than what is between them.
  if (w.sim() != nullptr) {
    w.sim()->faults().link_slowdown = 20;
  } else {
    w.driver.on_copy = [] { return CopyFault::kDelay; };
    w.driver.delay = std::chrono::microseconds(300);
  }
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(w.Step().ok());
  std::vector<std::pair<TimeNs, TimeNs>> spans;
  tracer.Drain([&](const TraceRecord& r) {
    if (static_cast<TraceType>(r.type) != TraceType::kCopy) return;
    EXPECT_LE(r.args[4], r.args[5]);
    EXPECT_LE(r.args[5], r.time_ns);
    spans.emplace_back(r.args[4], r.args[5]);
  });
  SetTracer(nullptr);
  EXPECT_EQ(tracer.dropped(), 0U);
  ASSERT_GE(spans.size(), 2 * w.pager->plan().chunks().size());
  std::sort(spans.begin(), spans.end());
  size_t overlaps = 0;
  for (size_t i = 1; i < spans.size(); ++i)
    overlaps += spans[i].first < spans[i - 1].second ? 1U : 0U;
  EXPECT_GT(overlaps, 0U);
  for (size_t i = 2; i < spans.size(); ++i) {
    EXPECT_GE(spans[i].first, std::min(spans[i - 1].second, spans[i - 2].second))
        << "three copies at once";
  }
}

// --- Gates passed by kernels
// -----------------------------------------------------------------------

class DeviceLanesTest : public test::DeviceGatesFixture,
                        public ::testing::WithParamInterface<uint32_t> {
 protected:
  DeviceLanesTest() { EXPECT_TRUE(w.pager->Apply(Stripes(GetParam())).ok()); }
  uint64_t Produced() {
    uint64_t produced = 0;
    EXPECT_TRUE(
        w.driver
            .Read(w.pager->device_gates().produced, std::as_writable_bytes(std::span(&produced, 1)))
            .ok());
    return produced;
  }
};
INSTANTIATE_TEST_SUITE_P(Rings, DeviceLanesTest, ::testing::Values(2U, 3U, 4U),
                         [](const auto& param) { return "Ring" + std::to_string(param.param); });

TEST_P(DeviceLanesTest, ProducedDoesNotPassAChunkThatStandsStillOnTheOtherLane) {
  // Copies of this pass begin behind the prefix, which was made ahead.
  const uint64_t prefix = w.pager->plan().prefix_chunks();
  const uint64_t chunks = w.pager->plan().chunks().size();
  ASSERT_GT(chunks, prefix + 4);
  for (uint64_t index = prefix; index < chunks; ++index) {
    SCOPED_TRACE("chunk " + std::to_string(index));
    ServesOn(2);
    w.driver.blocker = *w.driver.CreateCounter();
    w.driver.on_copy = Nth(1 + index - prefix, CopyFault::kBlock);
    Step step = Begin();
    w.driver.on_copy = {};
    const uint64_t blocked = w.pager->device_gates().pass_base + index;
    bool released = false;
    before_gate = [&](const Step& s, uint32_t gate) {
      if (released || s.chunk(gate) + 1 < static_cast<int32_t>(index)) return;
      w.sim()->AdvanceBy(1'000'000);  // whatever can come has come
      EXPECT_EQ(Produced(), blocked) << "all before it have come, and nothing else counts";
      released = true;
      w.driver.StoreCounter(w.driver.blocker, 1);
    };
    const Status collected = Collect(std::move(step));
    before_gate = {};
    EXPECT_TRUE(collected.ok()) << collected.ToString();
    EXPECT_TRUE(released);
    ServesOn(2);
  }
}

TEST_P(DeviceLanesTest, ALateCopyOnEitherLaneShowsNoWrongByte) {
  for (uint64_t n = 1; n <= 2 * w.pager->plan().chunks().size(); ++n) {
    SCOPED_TRACE("copy " + std::to_string(n));
    w.sim()->faults().NthCopy(SimCopyFault::kLate, n);
    ServesOn(3);
  }
  EXPECT_GT(w.pager->stats().faults, 0U);
}

TEST_P(DeviceLanesTest, ALaneThatFailsVoidsTheStepsUnderWayAndTheNextIsWhole) {
  for (const char* lane : kLanes) {
    for (int i = 0; i < 3; ++i) {
      SCOPED_TRACE(lane);
      w.driver.on_copy_on = On(lane, CopyFault::kFail);
      Step first = Begin();
      Step second = Begin();
      w.driver.on_copy_on = {};
      EXPECT_FALSE(Collect(std::move(first)).ok());
      EXPECT_FALSE(Collect(std::move(second)).ok());
      ServesOn();
    }
  }
}

// With nothing to compute the link is the limit. One stream leaves it idle for the time that each
// copy takes to start.
class SaturatedLinkTest : public DeviceLanesTest {
 protected:
  struct Copies {
    uint64_t bytes = 0, count = 0, busy_ns = 0, took_ns = 0;
    double link_ns = 0;        // what the link takes for the bytes
    double one_stream_ns = 0;  // what one stream would take for the copies
  };
  void PassGates(Step& step) {
    for (uint32_t gate = 0; gate < w.pager->layout().gates(); ++gate) {
      ASSERT_TRUE(step.Arrive(gate).ok());
      ASSERT_TRUE(step.Depart(gate).ok());
    }
    ASSERT_TRUE(w.pager->Report(step.log()).ok());
    ASSERT_TRUE(w.pager->EndStep().ok());
  }
  Copies Run(uint32_t granules_per_layer) {
    constexpr double kSlowdown = 20;
    constexpr int kSteps = 20;
    EXPECT_TRUE(
        w.pager->Apply({.granules_per_layer = granules_per_layer, .ring_slots = GetParam()}).ok());
    w.sim()->faults().link_slowdown = kSlowdown;
    Tracer tracer({.clock = [this] { return w.sim()->Now(); }});
    SetTracer(&tracer);
    trace_tool::BusyTime busy;
    TimeNs first = ~TimeNs{0}, last = 0;
    Copies copies;
    std::optional<Step> running(Begin());
    for (int i = 0; i < kSteps; ++i) {
      std::optional<Step> next(Begin());
      PassGates(*running);
      running = std::move(next);
      tracer.Drain([&](const TraceRecord& r) {
        if (static_cast<TraceType>(r.type) != TraceType::kCopy) return;
        busy.Add(r.args[4], r.args[5]);
        copies.bytes += r.args[3];
        ++copies.count;
        first = std::min(first, r.args[4]);
        last = std::max(last, r.args[5]);
      });
    }
    PassGates(*running);
    SetTracer(nullptr);
    const SimDriver::Options defaults;
    copies.busy_ns = busy.ns();
    copies.took_ns = last - first;
    copies.link_ns =
        static_cast<double>(copies.bytes) * kSlowdown / defaults.host_link.in_bytes_per_s * 1e9;
    copies.one_stream_ns =
        copies.link_ns + static_cast<double>(copies.count * defaults.copy_latency_ns);
    std::printf("the link works %.2f %% of the time; with one stream it would %.2f %%\n",
                100 * copies.link_ns / static_cast<double>(copies.took_ns),
                100 * copies.link_ns / copies.one_stream_ns);
    return copies;
  }
};
INSTANTIATE_TEST_SUITE_P(Rings, SaturatedLinkTest, ::testing::Values(2U, 3U, 4U),
                         [](const auto& param) { return "Ring" + std::to_string(param.param); });

TEST_P(SaturatedLinkTest, IsNeverIdleWhereChunksAreAlike) {
  const Copies copies = Run(4);
  ASSERT_EQ(w.pager->plan().chunks().size(), w.pager->layout().layers.size());
  EXPECT_EQ(copies.busy_ns, copies.took_ns) << "at some time no copy was under way";
  EXPECT_GT(copies.link_ns, 0.99 * static_cast<double>(copies.took_ns));
  EXPECT_LE(copies.link_ns, static_cast<double>(copies.took_ns)) << "no copy outruns the link";
}

// A short chunk waits for the long one before it, and its lane with it.
TEST_P(SaturatedLinkTest, IsLessIdleThanWithOneStreamWhereShortAndLongChunksTakeTurns) {
  const Copies copies = Run(5);
  ASSERT_EQ(w.pager->plan().chunks().size(), 2 * w.pager->layout().layers.size());
  EXPECT_LT(static_cast<double>(copies.took_ns), 0.97 * copies.one_stream_ns);
  EXPECT_LE(copies.link_ns, static_cast<double>(copies.took_ns)) << "no copy outruns the link";
}

}  // namespace
}  // namespace weir
