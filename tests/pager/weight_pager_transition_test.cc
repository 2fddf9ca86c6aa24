// Moves of the border behind gates that are held closed, with two steps under way.
#include <map>

#include "tests/pager/device_gates_fixture.h"
#include "tests/support/iterations.h"
#include "vmm/trace.h"

namespace weir {
namespace {

using test::CopyFault;
using test::kGranule;
using test::kTimeoutNs;
using test::World;
using test::WorldOptions;

EvictionTarget Stripes(uint32_t granules) {
  return {.granules_per_layer = granules, .ring_slots = 2};
}

class TransitionTest : public test::DeviceGatesFixture {
 protected:
  explicit TransitionTest(const WorldOptions& options = Options()) : DeviceGatesFixture(options) {
    // Kernels stand before their gates while the host remaps, chunk by chunk.
    before_gate = [this](const Step& step, uint32_t gate) {
      const int32_t chunk = step.chunk(gate);
      while (w.pager->in_transition() && (chunk >= advanced_ || rng_() % 3 == 0)) Advance();
    };
  }
  ~TransitionTest() override {
    if (running_) (void)CollectRunning();
  }

  void Advance() {
    ++advanced_;
    const Status advanced = w.pager->AdvanceTransition(0, pace ? pace() : GatePace());
    if (advanced.ok()) return;
    failed_ = advanced;
    ++failures_;
  }
  // Submits a step behind the one that runs, which then ends; the result is its.
  Status NextStep() {
    Status ended;
    if (w.pager->in_transition()) {
      // All of it before the next step begins, or while the kernels run.
      if (rng_() % 2 == 0) ended = CollectRunning();
      while (w.pager->in_transition()) Advance();
    }
    std::optional<Step> next(Begin());
    if (ended.ok()) ended = CollectRunning();
    running_ = std::move(next);
    advanced_ = 0;
    return ended;
  }
  Status CollectRunning() {
    if (!running_) return OkStatus();
    Status ended = Collect(*std::exchange(running_, std::nullopt));
    advanced_ = 0;
    return ended;
  }
  void Steps(int n) {
    for (int i = 0; i < n; ++i) Expect(NextStep(), i);
  }
  void Rest() {
    Expect(CollectRunning(), 0);
    w.CheckAll();
    const Status sound = w.pager->CheckIntegrity();
    EXPECT_TRUE(sound.ok()) << sound.ToString();
  }
  // To |target| while steps run; a move that fails on the way is begun again.
  void MoveTo(const EvictionTarget& target) {
    for (int i = 0; i < 20; ++i) {
      if (w.pager->planned().target() == target && w.pager->settled()) return;
      const Status begun = w.pager->BeginTransition(target);
      EXPECT_TRUE(begun.ok()) << begun.ToString();
      if (!begun.ok()) return;
      (void)NextStep();
    }
    ADD_FAILURE() << "the border does not get there";
  }

  std::function<GatePace()> pace;  // of the next call; none: whatever it takes
  std::optional<Step> running_;
  int32_t advanced_ = 0;  // calls for the step that runs: each does one chunk
  Status failed_;         // the last error of AdvanceTransition
  int failures_ = 0;
  uint64_t moving_ = 0;  // moves begun by the stress test
  std::mt19937_64 rng_{5};
};

TEST_F(TransitionTest, EvictsAndRestoresWhileStepsRun) {
  Steps(2);
  uint64_t moves = 0;
  for (const uint32_t k : {1U, 3U, 6U, 5U, 2U, 4U, 0U, 6U, 0U}) {
    SCOPED_TRACE("to " + std::to_string(k));
    ASSERT_TRUE(w.pager->BeginTransition(Stripes(k)).ok());
    Steps(1);
    EXPECT_EQ(w.pager->planned().target().granules_per_layer, k);
    Steps(2);
    EXPECT_EQ(w.pager->plan().target().granules_per_layer, k);
    EXPECT_EQ(w.pager->stats().transitions, ++moves);
    Rest();
  }
  EXPECT_TRUE(failed_.ok()) << failed_.ToString();
  EXPECT_EQ(w.pager->stats().repairs, 0U);
  EXPECT_TRUE(w.BytesAre(0, w.bytes.size()));
}

// The pool has what the weights hold and not a granule more: one asked for in vain would be
// refused.
class LookupTransitionTest : public TransitionTest {
 protected:
  static WorldOptions LookupOptions() {
    WorldOptions options = Options();
    options.layout = test::WithLookup(std::move(options.layout), 7 * kGranule + 100);
    options.granules = EvictionPlan::GranulesAtHome(options.layout, kGranule);
    return options;
  }
  LookupTransitionTest() : TransitionTest(LookupOptions()) {}
};

TEST_F(LookupTransitionTest, ALookupTableNeverComesHome) {
  Steps(2);
  const uint32_t all = w.pool->counts().total;
  for (const uint32_t k : {1U, 3U, 2U, 0U, 6U, 5U, 0U}) {
    SCOPED_TRACE("to " + std::to_string(k));
    const Status begun = w.pager->BeginTransition(Stripes(k));
    ASSERT_TRUE(begun.ok()) << begun.ToString();
    Steps(3);
    Rest();
    EXPECT_EQ(w.pager->plan().held_granules(), all - w.pager->plan().freed_granules());
    EXPECT_EQ(w.pool->Available(), w.pager->plan().freed_granules());
  }
  EXPECT_TRUE(failed_.ok()) << failed_.ToString();
  EXPECT_TRUE(w.BytesAre(0, w.bytes.size()));
}

TEST_F(TransitionTest, AStepAfterAnother) {
  Steps(1);
  // Each step moves: the next move begins while the step of the one before runs.
  for (const uint32_t k : {1U, 2U, 3U, 5U, 6U, 5U, 4U, 3U, 1U, 0U, 4U, 2U, 6U}) {
    ASSERT_TRUE(w.pager->BeginTransition(Stripes(k)).ok());
    Steps(1);
    while (w.pager->in_transition()) Advance();
    EXPECT_EQ(w.pager->planned().target().granules_per_layer, k);
  }
  Steps(2);
  EXPECT_EQ(w.pager->stats().transitions, 13U);
  EXPECT_EQ(w.pager->stats().faults > 0, true);
  Rest();
}

TEST_F(TransitionTest, StepsThatMoveAndWholeLayersDoNotStreamEvenly) {
  ASSERT_TRUE(w.pager->Apply(Stripes(3)).ok());
  Steps(3);
  EXPECT_TRUE(w.pager->streamed_evenly());
  ASSERT_TRUE(w.pager->BeginTransition(Stripes(5)).ok());
  Steps(1);
  EXPECT_TRUE(w.pager->streamed_evenly()) << "the step before";
  Steps(1);
  EXPECT_FALSE(w.pager->streamed_evenly());
  Steps(2);
  EXPECT_TRUE(w.pager->streamed_evenly());
  Rest();
  ASSERT_TRUE(w.pager->Apply({.placement = Placement::kLayer, .layers = 4, .ring_slots = 2}).ok());
  Steps(3);
  EXPECT_FALSE(w.pager->streamed_evenly());
}

TEST_F(TransitionTest, OnlyWhatMovesIsRemapped) {
  Steps(2);
  const uint32_t layers = 8;
  for (const uint32_t k : {2U, 3U, 6U, 4U}) {
    const uint64_t before = w.pager->stats().granules_remapped;
    const uint32_t was = w.pager->planned().target().granules_per_layer;
    MoveTo(Stripes(k));
    Steps(2);
    EXPECT_EQ(w.pager->stats().granules_remapped - before, layers * (k > was ? k - was : was - k));
  }
}

TEST_F(TransitionTest, EvictingWorksWithAnEmptyPoolAndFreesGranulesAtOnce) {
  Steps(1);
  ASSERT_EQ(w.pool->Available(), 0U);
  ASSERT_TRUE(w.pager->BeginTransition(Stripes(3)).ok());
  Steps(1);
  ASSERT_TRUE(w.pager->in_transition());
  ASSERT_TRUE(w.pager->AdvanceTransition().ok());
  EXPECT_EQ(w.pool->Available(), 3U * (8 - 2)) << "the step that moves has not ended";
  EXPECT_TRUE(w.pager->plan().target().empty());
  // Somebody takes them: now nothing can come home, and that is said before anything changes.
  std::vector<GranuleId> others;
  while (w.pool->Available() > 2) others.push_back(*w.pool->Allocate(Owner::kKv));
  const Status refused = w.pager->BeginTransition(Stripes(2));
  EXPECT_EQ(refused.code(), StatusCode::kNoMemory) << refused.ToString();
  Steps(2);
  EXPECT_EQ(w.pager->plan().target().granules_per_layer, 3U);
  // What a move home needs is committed: nobody else gets it in between.
  while (others.size() > 10) w.pool->Free(others.back()), others.pop_back();
  ASSERT_TRUE(w.pager->BeginTransition(Stripes(2)).ok());
  EXPECT_EQ(w.pool->Available(), 18U - 10U - 6U);
  Steps(3);
  EXPECT_EQ(w.pager->plan().target().granules_per_layer, 2U);
  EXPECT_EQ(w.pool->Available(), 2U);
  for (const GranuleId g : others) w.pool->Free(g);
  Rest();
}

// Room for one chunk a step, the first: the copy of it takes for ever.
constexpr GatePace kNoRoom{.step_ns = 0, .link_bytes_per_ns = 1e-9};

TEST_F(TransitionTest, WhatAStepHasNoRoomForIsLeftAndCopiedByNoStepThatDoesNotNeedIt) {
  for (const auto& [from, to] : {std::pair{6U, 0U}, {0U, 4U}, {4U, 1U}, {1U, 6U}}) {
    SCOPED_TRACE(std::to_string(from) + " to " + std::to_string(to));
    MoveTo(Stripes(from));
    Steps(3);
    pace = [] { return kNoRoom; };
    const uint64_t splits = w.pager->stats().split_transitions;
    uint32_t away = w.pager->planned().evicted_granules();
    ASSERT_EQ(away, 8 * from);
    uint64_t steps = 0;
    while (!w.pager->settled() || w.pager->planned().target().granules_per_layer != to) {
      ASSERT_LT(++steps, 40U);
      ASSERT_TRUE(w.pager->BeginTransition(Stripes(to)).ok());
      const uint64_t copied = w.pager->stats().bytes_copied;
      Steps(1);
      while (w.pager->in_transition()) Advance();
      // All that is away before or after this step: not what had come home before, nor what has
      // still to leave.
      const uint32_t left = w.pager->planned().evicted_granules();
      EXPECT_EQ((w.pager->stats().bytes_copied - copied) / kGranule, std::max(away, left))
          << "step " << steps;
      EXPECT_EQ(from<to, left> away);
      away = left;
    }
    EXPECT_EQ(w.pager->stats().split_transitions - splits, steps - 1);
    EXPECT_GE(steps, 8U);
    pace = {};
    Steps(2);
    EXPECT_EQ(w.pager->plan().target().granules_per_layer, to);
    Rest();
  }
}

// A gate of what stays at home is closed until the copies before it are queued, and opens without
// one of its own: who stood at it stood there because the border moves.
TEST_F(TransitionTest, TheTraceSaysWhyAGateWaitedThatHadNothingToWaitFor) {
  Tracer tracer({});
  SetTracer(&tracer);
  std::map<FaultCause, uint64_t> faults;
  uint64_t stayed = 0;
  const auto drain = [&] {
    tracer.Drain([&](const TraceRecord& r) {
      const auto type = static_cast<TraceType>(r.type);
      if (type == TraceType::kStripeStays) ++stayed;
      if (type == TraceType::kFaultMajor) ++faults[static_cast<FaultCause>(r.cause)];
    });
  };
  pace = [] { return kNoRoom; };
  Steps(2);
  ASSERT_TRUE(w.pager->BeginTransition(Stripes(4)).ok());
  Step moving = Begin();
  ASSERT_TRUE(CollectRunning().ok());
  // The host does a chunk when kernels stand at its gate.
  int32_t waiting = 0;
  before_gate = [&](const Step& step, uint32_t gate) { waiting = step.chunk(gate); };
  while_waiting = [&] {
    if (waiting >= advanced_) Advance();
  };
  Expect(Collect(std::move(moving)), 0);
  before_gate = {};
  while_waiting = {};
  pace = {};
  drain();
  Rest();
  SetTracer(nullptr);
  EXPECT_GT(stayed, 0U);
  EXPECT_GT(faults[FaultCause::kNewPlan], stayed);
  EXPECT_EQ(faults.size(), 1U);
}

TEST_F(TransitionTest, FromInBetweenTheBorderGoesAnywhere) {
  for (const uint32_t from : {6U, 3U, 0U}) {
    for (const uint32_t towards : {0U, 2U, 6U}) {
      for (const uint32_t to : {0U, 1U, 3U, 5U, 6U}) {
        if (from == towards) continue;
        SCOPED_TRACE(std::to_string(from) + " towards " + std::to_string(towards) + ", then to " +
                     std::to_string(to));
        MoveTo(Stripes(from));
        Steps(2);
        pace = [] { return kNoRoom; };
        for (int i = 0; i < 3; ++i) {
          ASSERT_TRUE(w.pager->BeginTransition(Stripes(towards)).ok());
          Steps(1);
          while (w.pager->in_transition()) Advance();
        }
        EXPECT_FALSE(w.pager->planned().even());
        // It may stay there.
        Steps(2);
        Rest();
        EXPECT_FALSE(w.pager->settled());
        ServesOn();
        const uint64_t copied = w.pager->stats().bytes_copied;
        Steps(4);
        Expect(CollectRunning(), 0);
        EXPECT_EQ((w.pager->stats().bytes_copied - copied) / kGranule,
                  4 * w.pager->planned().evicted_granules());
        pace = {};
        if (to % 2 == 0) {
          ASSERT_TRUE(w.pager->Apply(Stripes(to)).ok());
        } else {
          MoveTo(Stripes(to));
        }
        Steps(2);
        Rest();
        EXPECT_EQ(w.pager->plan().target().granules_per_layer, to);
      }
    }
  }
  ASSERT_TRUE(w.pager->Apply({}).ok());
  EXPECT_TRUE(w.BytesAre(0, w.bytes.size()));
}

TEST_F(TransitionTest, WhenTheStepThatMovedAPartFailsAllOfItIsCopiedAgain) {
  for (const uint32_t from : {6U, 1U}) {
    for (uint64_t n = 1; n <= 20; ++n) {
      SCOPED_TRACE(std::to_string(from) + ", copy " + std::to_string(n));
      pace = {};
      MoveTo(Stripes(from));
      Steps(3);
      pace = [] { return kNoRoom; };
      ASSERT_TRUE(w.pager->BeginTransition(Stripes(4)).ok());
      (void)NextStep();
      w.driver.on_copy = Nth(n, CopyFault::kFail);
      while (w.pager->in_transition()) Advance();
      w.driver.on_copy = {};
      Step behind = Begin();
      const Status failed = CollectRunning();
      EXPECT_EQ(failed.ok(), Collect(std::move(behind)).ok());
      advanced_ = 0;
      ServesOn();
      EXPECT_FALSE(w.pager->settled());
      const Status sound = w.pager->CheckIntegrity();
      EXPECT_TRUE(sound.ok()) << sound.ToString();
    }
  }
}

TEST_F(TransitionTest, AMapThatFailsOnTheWayDoesNotFailTheStepAndTheMoveEndsLater) {
  for (const uint32_t k : {5U, 0U, 6U, 2U, 0U}) {
    for (uint64_t n = 1; n <= 60; n += 7) {
      SCOPED_TRACE("map " + std::to_string(n) + ", to " + std::to_string(k));
      const uint32_t from = w.pager->planned().target().granules_per_layer;
      Steps(1);
      w.driver.map_fails = [n, i = uint64_t{0}]() mutable { return ++i == n; };
      ASSERT_TRUE(w.pager->BeginTransition(Stripes(k)).ok());
      failed_ = OkStatus();
      Steps(3);
      w.driver.map_fails = {};
      EXPECT_EQ(w.pager->settled(), failed_.ok());
      const Status sound = w.pager->CheckIntegrity();
      EXPECT_TRUE(sound.ok()) << sound.ToString();
      // To the end, or back again.
      MoveTo(Stripes(n % 2 == 0 ? k : from));
      Steps(2);
      Rest();
      MoveTo(Stripes(from));
      Steps(2);
      Rest();
    }
    MoveTo(Stripes(k));
    Steps(2);
  }
  EXPECT_GT(failures_, 10);
}

TEST_F(TransitionTest, ACopyThatFailsOnTheWayVoidsTheStepAndNothingElse) {
  for (const CopyFault fault : {CopyFault::kFail, CopyFault::kRefuse}) {
    uint64_t failed = 0;
    for (uint64_t n = 1; n <= 30; ++n) {
      SCOPED_TRACE("copy " + std::to_string(n));
      const uint32_t k = n % 2 == 0 ? 6 : 1;
      Steps(1);
      w.driver.on_copy = [n, fault, i = uint64_t{0}]() mutable {
        ++i;
        return (fault == CopyFault::kRefuse ? i >= n : i == n) ? fault : CopyFault::kNone;
      };
      ASSERT_TRUE(w.pager->BeginTransition(Stripes(k)).ok());
      Status moved = NextStep();
      if (w.pager->in_transition()) (void)w.pager->AdvanceTransition();
      w.driver.on_copy = {};
      Status first = CollectRunning();
      if (!moved.ok() || !first.ok()) ++failed;
      advanced_ = 0;
      MoveTo(Stripes(k));
      Steps(2);
      EXPECT_EQ(w.pager->plan().target().granules_per_layer, k);
      Rest();
    }
    EXPECT_GT(failed, 0U);
  }
}

TEST_F(TransitionTest, WhenTheStepBeforeFailsTheMoveIsVoidAndCanBeBegunAgain) {
  MoveTo(Stripes(4));
  Steps(3);
  Rest();
  for (uint64_t n = 1; n <= 16; ++n) {
    for (const uint32_t k : {6U, 1U}) {
      SCOPED_TRACE("copy " + std::to_string(n) + ", to " + std::to_string(k));
      Steps(1);
      Rest();
      w.driver.on_copy = Nth(n, CopyFault::kFail);
      Step first = Begin();
      w.driver.on_copy = {};
      ASSERT_TRUE(w.pager->BeginTransition(Stripes(k)).ok());
      Step moving = Begin();
      const Status a = Collect(std::move(first));
      const Status advanced = w.pager->AdvanceTransition();
      EXPECT_TRUE(advanced.ok()) << advanced.ToString();
      const TimeNs begin = w.driver.Now();
      const Status b = Collect(std::move(moving));
      if (!a.ok()) {
        EXPECT_FALSE(b.ok());
        EXPECT_LT(w.driver.Now() - begin, kTimeoutNs) << "its gates were not let go";
        EXPECT_EQ(w.pager->plan().target().granules_per_layer, 4U);
      }
      advanced_ = 0;
      ServesOn();
      MoveTo(Stripes(4));
      Steps(3);
      Rest();
    }
  }
}

TEST_F(TransitionTest, ACancelledMoveChangesNothing) {
  for (const uint32_t k : {3U, 0U}) {
    Steps(1);
    ASSERT_TRUE(w.pager->BeginTransition(Stripes(5)).ok());
    Step cancelled = Begin();
    w.pager->CancelStep();
    EXPECT_FALSE(w.pager->BeginStep().ok()) << "its kernels may still depart from its chunks";
    Expect(CollectRunning(), 0);
    before_gate = {};
    (void)RunKernels(cancelled);
    before_gate = [this](const Step&, uint32_t) {
      while (w.pager->in_transition()) Advance();
    };
    ServesOn();
    MoveTo(Stripes(k));
    Steps(2);
    Rest();
    EXPECT_EQ(w.pager->plan().target().granules_per_layer, k);
  }
}

TEST_F(TransitionTest, AtRestTheRestOfAFailedMoveIsMadeAsAWhole) {
  for (const uint32_t k : {6U, 2U}) {
    for (uint64_t n = 3; n <= 40; n += 9) {
      SCOPED_TRACE("map " + std::to_string(n) + ", to " + std::to_string(k));
      ASSERT_TRUE(w.pager->Apply(Stripes(4)).ok());
      Steps(1);
      w.driver.map_fails = [n, i = uint64_t{0}]() mutable { return ++i == n; };
      ASSERT_TRUE(w.pager->BeginTransition(Stripes(k)).ok());
      Steps(2);
      w.driver.map_fails = {};
      Expect(CollectRunning(), 0);
      for (const uint32_t to : {k, 4U, 0U}) {
        ASSERT_TRUE(w.pager->Apply(Stripes(to)).ok());
        Rest();
        ServesOn();
      }
    }
  }
  EXPECT_TRUE(w.BytesAre(0, w.bytes.size()));
}

TEST_F(TransitionTest, WhatCannotMoveBehindGatesIsRefused) {
  ASSERT_TRUE(w.pager->Apply(Stripes(3)).ok());
  const EvictionTarget layers{.placement = Placement::kLayer, .layers = 4, .ring_slots = 2};
  const EvictionTarget other_ring{.granules_per_layer = 3, .ring_slots = 3};
  for (const EvictionTarget& target : {layers, other_ring}) {
    EXPECT_FALSE(w.pager->CanMoveBehindGates(target));
    const Status refused = w.pager->BeginTransition(target);
    EXPECT_NE(refused.message().find("ring of 2"), std::string::npos) << refused.ToString();
  }
  Status refused = w.pager->BeginTransition(Stripes(400));
  EXPECT_NE(refused.message().find("at most"), std::string::npos);
  Steps(1);
  ASSERT_TRUE(w.pager->BeginTransition(Stripes(5)).ok());
  Step moving = Begin();
  EXPECT_FALSE(w.pager->BeginTransition(Stripes(4)).ok()) << "its gates are still closed";
  Expect(CollectRunning(), 0);
  EXPECT_FALSE(w.pager->BeginStep().ok()) << "its gates are still closed";
  const TimeNs begin = w.driver.Now();
  before_gate = {};
  EXPECT_FALSE(Collect(std::move(moving)).ok()) << "nobody opened its gates";
  EXPECT_GE(w.driver.Now() - begin, kTimeoutNs);
  ServesOn();
}

TEST_F(TransitionTest, IsDestroyedInTheMiddleOfAMove) {
  for (int advance = 0; advance < 20; advance += 3) {
    for (const uint32_t k : {6U, 0U}) {
      World world(Options());
      ASSERT_TRUE(world.pager->Apply(Stripes(3)).ok());
      ASSERT_TRUE(world.pager->BeginTransition(Stripes(k)).ok() || k == 0);
      ASSERT_TRUE(world.pager->BeginStep().ok());
      for (int i = 0; i < advance; ++i) (void)world.pager->AdvanceTransition(0);
      world.pager.reset();
      EXPECT_EQ(world.sim()->word_count(), 0U);
      EXPECT_EQ(world.pool->counts().free, world.pool->counts().total);
    }
  }
}

// Any layout, a move at nearly every step, now and then something that fails.
class TransitionStressTest : public TransitionTest,
                             public ::testing::WithParamInterface<std::pair<uint64_t, bool>> {
 protected:
  static WorldOptions StressOptions() {
    WorldOptions options = Options();
    std::mt19937_64 rng(GetParam().first);
    do {
      options.layout = test::RandomLayout(rng, kGranule);
    } while (options.layout.layers.size() < 4 ||
             EvictionPlan::MaxGranulesPerLayer(options.layout, kGranule) < 2);
    options.layout = test::WithSomeLookup(std::move(options.layout), rng, kGranule);
    options.granules =
        static_cast<uint32_t>(EvictionPlan::GranulesAtHome(options.layout, kGranule) + rng() % 12);
    options.pager.gate_timeout_ns = 500'000;
    return options;
  }
  TransitionStressTest() : TransitionTest(StressOptions()) { rng_.seed(GetParam().first); }
};

INSTANTIATE_TEST_SUITE_P(Seeds, TransitionStressTest, ::testing::ValuesIn([] {
                           std::vector<std::pair<uint64_t, bool>> cases;
                           for (uint64_t seed = 1; seed <= 20; ++seed) {
                             cases.emplace_back(seed, seed % 2 == 0);
                           }
                           return cases;
                         }()));

TEST_P(TransitionStressTest, AThousandRandomTargetsNeverShowAWrongByte) {
  const uint64_t targets = testing::Iterations("WEIR_TRANSITION_TARGETS", 1000);
  const bool faults = GetParam().second;
  // Every other move finds room for a chunk here and there only.
  pace = [this] { return moving_ % 2 == 0 || rng_() % 3 == 0 ? GatePace() : kNoRoom; };
  if (faults) {
    w.driver.on_copy = [this] {
      const uint64_t r = rng_() % 600;
      return r == 0 ? CopyFault::kFail : r == 1 ? CopyFault::kRefuse : CopyFault::kNone;
    };
    w.driver.map_fails = [this] { return rng_() % 300 == 0; };
  }
  std::vector<GranuleId> others;
  uint64_t refused = 0, failed = 0;
  for (uint64_t i = 0; i < targets; ++i) {
    const auto most = w.pager->max_granules_per_layer();
    if (rng_() % 8 != 0 && !w.pager->in_transition()) {
      const auto granules = static_cast<uint32_t>(rng_() % (most + 1));
      const Status begun = w.pager->BeginTransition(Stripes(granules));
      if (!begun.ok()) ++refused;
      ++moving_;
    }
    if (rng_() % 10 == 0) {
      const Status ended = CollectRunning();
      if (!ended.ok()) ++failed;
      if (rng_() % 4 == 0)
        (void)w.pager->Apply(Stripes(static_cast<uint32_t>(rng_() % (most + 1))));
    }
    if (w.pager->BeginStep().ok()) {
      std::optional<Step> next(
          Step(w.driver, w.pager->device_gates(), [this](uint64_t ns) { w.sim()->AdvanceBy(ns); }));
      if (running_) {
        const Status ended = CollectRunning();
        if (!ended.ok()) ++failed;
      }
      running_ = std::move(next);
      advanced_ = 0;
    } else if (running_) {
      if (!CollectRunning().ok()) ++failed;
    }
    if (rng_() % 2 == 0) {
      while (w.pager->in_transition()) Advance();
    }
    if (rng_() % 2 == 0 && w.pool->Available() > 0) {
      others.push_back(*w.pool->Allocate(Owner::kKv));
    } else if (!others.empty()) {
      w.pool->Free(others.back());
      others.pop_back();
    }
    Status sound = w.pool->CheckIntegrity();
    ASSERT_TRUE(sound.ok()) << sound.ToString();
    sound = w.space->CheckIntegrity();
    ASSERT_TRUE(sound.ok()) << sound.ToString();
    sound = w.pager->CheckIntegrity();
    ASSERT_TRUE(sound.ok()) << "target " << i << ": " << sound.ToString();
    if (!faults) {
      ASSERT_EQ(failed, 0U) << "target " << i;
    }
  }
  for (const GranuleId g : others) w.pool->Free(g);
  w.driver.on_copy = {};
  w.driver.map_fails = {};
  pace = {};
  (void)CollectRunning();
  MoveTo({});
  Steps(3);
  Rest();
  EXPECT_TRUE(w.BytesAre(0, w.bytes.size()));
  EXPECT_GT(w.pager->stats().transitions, targets / 10);
  EXPECT_GT(w.pager->stats().split_transitions, 0U);
  std::printf("%lu moves, %lu on the way, %lu refused, %lu steps failed\n",
              w.pager->stats().transitions, w.pager->stats().split_transitions, refused, failed);
}

}  // namespace
}  // namespace weir
