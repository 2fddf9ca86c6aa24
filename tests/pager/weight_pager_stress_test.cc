// Targets at random a thousand times, with faults, on random layouts.
#include <thread>

#include "pager/kv_arena.h"
#include "tests/pager/pager_world.h"

namespace weir {
namespace {

using test::Backing;
using test::CopyFault;
using test::DriverKind;
using test::kGranule;
using test::World;

struct StressCase {
  DriverKind driver;
  Backing backing;
  uint64_t seed;
  bool faults;
};

EvictionTarget RandomTarget(std::mt19937_64& rng, const WeightPager& pager) {
  EvictionTarget target;
  target.ring_slots = static_cast<uint32_t>(2 + rng() % 3);
  const uint64_t draw = rng() % 4;
  if (draw == 0 && pager.CanReadInPlace().ok()) {
    target.placement = Placement::kInPlace;
    target.granules_per_layer = static_cast<uint32_t>(rng() % (pager.max_granules_per_layer() + 1));
  } else if (draw == 1) {
    target.placement = Placement::kLayer;
    if (rng() % 3 == 0) target.ring_slots = 1;
    target.layers = static_cast<uint32_t>(rng() % (pager.layout().layers.size() + 1));
  } else if (rng() % 5 != 0) {
    target.granules_per_layer = static_cast<uint32_t>(rng() % (pager.max_granules_per_layer() + 1));
  }
  return target;
}

// A layout from which something can be evicted.
WeightLayout StressLayout(std::mt19937_64& rng) {
  for (;;) {
    WeightLayout layout = test::RandomLayout(rng, kGranule);
    if (layout.layers.size() > 4 && EvictionPlan::MaxGranulesPerLayer(layout, kGranule) > 1) {
      return layout;
    }
  }
}

// |transitions| random targets, one to three steps between them. Returns how many took effect.
uint64_t Stress(const StressCase& c, uint64_t transitions) {
  std::mt19937_64 rng(c.seed);
  test::WorldOptions options{.driver = c.driver, .backing = c.backing, .layout = StressLayout(rng)};
  if (c.backing == Backing::kHost) {
    options.layout = test::WithSomeLookup(std::move(options.layout), rng, kGranule);
  }
  options.granules =
      static_cast<uint32_t>(EvictionPlan::GranulesAtHome(options.layout, kGranule) + rng() % 20);
  options.pager.verify_stripes = c.faults;
  World w(options);
  if (c.faults) {
    w.driver.on_copy = [&rng] {
      const uint64_t r = rng() % 400;
      return r == 0   ? CopyFault::kFail
             : r == 1 ? CopyFault::kLose
             : r == 2 ? CopyFault::kRefuse
                      : CopyFault::kNone;
    };
    w.driver.map_fails = [&rng] { return rng() % 300 == 0; };
  }
  // Somebody else who takes and gives back granules, as the KV cache does.
  std::vector<GranuleId> others;
  uint64_t refused = 0;
  for (uint64_t i = 0; i < transitions; ++i) {
    const EvictionTarget target = RandomTarget(rng, *w.pager);
    const EvictionTarget before = w.pager->plan().target();
    const Status applied = w.pager->Apply(target);
    if (!applied.ok()) {
      EXPECT_EQ(w.pager->plan().target(), before) << applied.ToString();
      EXPECT_NE(applied.code(), StatusCode::kBadState) << applied.ToString();
      ++refused;
    }
    for (uint64_t s = 1 + rng() % 3; s > 0; --s) {
      const Status step = w.Step();
      EXPECT_TRUE(step.ok()) << "seed " << c.seed << " transition " << i << ": " << step.ToString();
    }
    if (rng() % 2 == 0 && w.pool->Available() > 0) {
      others.push_back(*w.pool->Allocate(Owner::kKv));
    } else if (!others.empty()) {
      w.pool->Free(others.back());
      others.pop_back();
    }
    w.CheckAll();
    if (testing::Test::HasFailure()) break;
  }
  for (const GranuleId g : others) w.pool->Free(g);
  w.driver.on_copy = {};
  w.driver.map_fails = {};
  EXPECT_TRUE(w.pager->Apply({}).ok());
  w.CheckAll();
  EXPECT_TRUE(w.BytesAre(0, w.bytes.size())) << "seed " << c.seed;
  EXPECT_LT(refused, transitions * 3 / 4) << "seed " << c.seed;
  return w.pager->stats().transitions;
}

class WeightPagerStressTest : public testing::TestWithParam<StressCase> {};
INSTANTIATE_TEST_SUITE_P(Cases, WeightPagerStressTest,
                         testing::Values(StressCase{DriverKind::kHost, Backing::kHost, 1, false},
                                         StressCase{DriverKind::kHost, Backing::kHost, 2, true},
                                         StressCase{DriverKind::kSim, Backing::kHost, 3, false},
                                         StressCase{DriverKind::kSim, Backing::kHost, 4, true}),
                         [](const auto& param) {
                           return test::KindName(param.param.driver) +
                                  (param.param.faults ? "Faults" : "Clean");
                         });

TEST_P(WeightPagerStressTest, AThousandRandomTargetsNeverShowAWrongByte) {
  uint64_t transitions = 0;
  for (uint64_t round = 0; round < 5; ++round) {
    StressCase c = GetParam();
    c.seed = c.seed * 1000 + round;
    transitions += Stress(c, 200);
    if (HasFailure()) break;
  }
  EXPECT_GT(transitions, 300U);
}

// Two real threads: one computes through the gates, the engine's grows and shrinks KV meanwhile and
// moves the border between steps.
TEST(WeightPagerThreadTest, AComputeThreadReadsRightBytesWhileTheEngineThreadRemapsKv) {
  std::mt19937_64 rng(31);
  test::WorldOptions options{.driver = DriverKind::kHost,
                             .backing = Backing::kHost,
                             .layout = test::RegularLayout(8, {57'344, 86'016}, 3000, 500)};
  options.pager.verify_stripes = true;
  World w(options);
  auto kv = KvArena::Create(*w.space, *KvGeometry::Choose(20 * kKiB, kGranule), 20);
  ASSERT_TRUE(kv.ok());
  for (int i = 0; i < 60; ++i) {
    const EvictionTarget target{.granules_per_layer = static_cast<uint32_t>(rng() % 6)};
    std::vector<uint32_t> mapped;
    for (uint32_t e = 0; e < (*kv)->max_extents(); ++e) {
      if ((*kv)->is_mapped(e)) mapped.push_back(e);
    }
    ASSERT_TRUE((*kv)->Shrink(mapped, {}).ok());
    const Status applied = w.pager->Apply(target);
    ASSERT_TRUE(applied.ok()) << applied.ToString();
    if (i % 3 == 0) {  // a copy of the coming step fails: the compute thread repairs it
      w.driver.on_copy = [n = 0]() mutable {
        return ++n == 2 ? CopyFault::kFail : CopyFault::kNone;
      };
    }
    ASSERT_TRUE(w.pager->BeginStep().ok());
    w.driver.on_copy = {};
    Status computed;
    std::thread compute([&] { computed = w.Compute(); });
    std::vector<uint32_t> extents;
    EXPECT_TRUE((*kv)->Grow(3, &extents).ok());
    if (extents.size() > 1) {
      EXPECT_TRUE((*kv)->Shrink({extents.back()}, {}).ok());
    }
    compute.join();
    ASSERT_TRUE(computed.ok()) << computed.ToString();
    ASSERT_TRUE(w.pager->EndStep().ok());
    w.CheckAll();
  }
  std::vector<uint32_t> mapped;
  for (uint32_t e = 0; e < (*kv)->max_extents(); ++e) {
    if ((*kv)->is_mapped(e)) mapped.push_back(e);
  }
  EXPECT_TRUE((*kv)->Shrink(mapped, {}).ok());
}

TEST(WeightPagerStressFileTest, FiftyRandomTargetsFromAFile) {
  Stress({DriverKind::kHost, Backing::kFile, 77, false}, 50);
  Stress({DriverKind::kHost, Backing::kFile, 78, true}, 50);
}

}  // namespace
}  // namespace weir
