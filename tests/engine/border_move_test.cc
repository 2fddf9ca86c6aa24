// Moves of the border while steps run beside the host: how late they make a step. The shape of a
// 32B model on an H200, with granules scaled down to 4 KiB and the link with them.
#include <algorithm>
#include <cmath>

#include <gtest/gtest.h>

#include "engine/core.h"
#include "policy/resident.h"
#include "tests/support/sim_model.h"
#include "tests/support/stream_compute.h"
#include "vmm/sim_driver.h"

namespace weir {
namespace {

using testing::SimModel;
using testing::SimModelShape;
using testing::StreamCompute;

constexpr uint64_t kGranule = 4096;
constexpr uint32_t kLayers = 64;
constexpr uint64_t kLayerNs = 353'000;
constexpr uint64_t kTokensNs = 200'000;             // passing on a step's tokens
constexpr uint64_t kSubmitNs = 300'000;             // launching a step
constexpr double kLinkMibPerS = 345e9 / (1 << 20);  // 8 GiB in 1.1 of a step
constexpr uint64_t kLayerMib = 960;

// A validating build fills what is freed, with driver calls that count as remaps: it moves in other
// parts, and only that every byte is right and nothing is touched while it moves is looked at.
#ifdef WEIR_VALIDATE
constexpr bool kTimed = false;
#else
constexpr bool kTimed = true;
#endif

struct Costs {
  uint64_t remap_ns = 57'000;     // of a granule at rest
  double busy_factor = 1.4;       // and beside a step
  uint64_t handover_ns = 70'000;  // to an unmap that waited for copies
  uint64_t granule_mib = 32;
  uint64_t lookup_granules = 0;  // of a table that is read in place
};

class World {
 public:
  explicit World(const Costs& costs) {
    const double link = kLinkMibPerS / static_cast<double>(costs.granule_mib) * kGranule;
    SimDriver::Options options{.granularity_bytes = kGranule,
                               .peer_bytes = 1 << 30,
                               .peer_link = {.in_bytes_per_s = link, .out_bytes_per_s = link},
                               .content_bytes = 64};
    // In the shares measured: unmap, map, grant access.
    options.unmap_ns = costs.remap_ns * 4 / 10;
    options.map_ns = costs.remap_ns / 20;
    options.set_access_ns = costs.remap_ns - options.unmap_ns - options.map_ns;
    options.busy_factor = costs.busy_factor;
    options.unmap_waits_for_copies_ns = 1'000'000;
    options.unmap_handover_ns = costs.handover_ns;
    driver_ = SimDriver::Create(options).value();
    shape_ = {.layers = kLayers,
              .segments = 1,
              .segment_bytes = kLayerMib / costs.granule_mib * kGranule,
              .lookup_bytes = costs.lookup_granules * kGranule};
    MemoryOptions m;
    m.granule_bytes = kGranule;
    m.scratch_bytes = kGranule;
    m.kv_block_bytes = kGranule;
    m.kv_least_blocks = 8;
    m.weights = SimModel::Layout(shape_);
    m.lookup_in_place = true;
    m.backing = BackingTier::kPeer;
    m.pager.max_steps_under_way = 2;
    m.pager.device_gates = true;
    m.hbm_budget_bytes = m.weights.region_bytes + 256 * kGranule;
    memory_ = Memory::Create(*driver_, m).value();
    WeightPager& weights = memory_->weights();
    EXPECT_TRUE(weights.Write(0, SimModel::WeightBytes(shape_)).ok());
    EXPECT_TRUE(weights.Seal().ok());
    EXPECT_TRUE(memory_->MeasureLink().ok());
    const ComputeLimits limits{
        .max_rows = 64, .max_sequences = 5, .max_context = 1024, .vocab_size = shape_.vocab};
    compute_ = std::make_unique<StreamCompute>(
        *driver_, weights.layout(), weights.base(), limits,
        testing::StreamComputeOptions{
            .layer_ns = kLayerNs, .submit_ns = kSubmitNs, .granule_bytes = kGranule});
    CoreOptions core_options;
    core_options.scheduler.max_batched_tokens = 64;
    core_options.scheduler.max_prefill_chunk = 64;
    core_options.scheduler.max_sequences = 5;
    core_options.max_model_len = 1024;
    core = std::make_unique<EngineCore>(*driver_, *memory_, *compute_, home_, core_options);
    EXPECT_TRUE(core->Calibrate().ok());
    for (int i = 0; i < 4; ++i) {
      CoreRequest request;
      request.prompt.assign(16, i);
      request.sampling.ignore_eos = true;
      EXPECT_TRUE(core->Add(std::move(request)).ok());
    }
    Steps(10);
  }
  ~World() {
    core.reset();
    EXPECT_EQ(compute_->wrong_granules(), 0U);
    compute_.reset();
    memory_.reset();
    EXPECT_EQ(driver_->violations(), 0U) << driver_->violation_list()[0];
  }

  void Step() {
    const Result<bool> worked = core->Step();
    ASSERT_TRUE(worked.ok() && *worked) << worked.status().ToString();
    if (core->TakeOutputs().empty()) return;
    tokens_.push_back(driver_->Now());
    driver_->AdvanceBy(kTokensNs);
  }
  void Steps(int n) {
    for (int i = 0; i < n; ++i) ASSERT_NO_FATAL_FAILURE(Step());
  }
  const WeightPager& weights() const { return memory_->weights(); }
  Memory& memory() { return *memory_; }

  // Prompts that end at once and stay in the prefix cache, until KV has all there is.
  void FillPrefixCache() {
    for (int32_t i = 10; memory_->pool().Available() > 0; ++i) {
      ASSERT_LT(i, 100);
      CoreRequest request;
      request.prompt.assign(900, i % static_cast<int32_t>(shape_.vocab));
      request.prompt[0] = i / static_cast<int32_t>(shape_.vocab);
      request.sampling.max_tokens = 1;
      ASSERT_TRUE(core->Add(std::move(request)).ok());
      const uint64_t finished = core->stats().requests_finished;
      while (core->stats().requests_finished == finished) ASSERT_NO_FATAL_FAILURE(Step());
    }
  }

  struct Move {
    double ms = 0;                   // from the wish until the border is there
    uint64_t parts = 0, splits = 0;  // splits: steps that had no room for all of a part
    double steady = 0;               // median step, in ms: the longer of those before and after
    // The longest time from one step's end to the next's, and from one step's tokens to the next's,
    // while the border moves; over |steady|.
    double slowest = 0, slowest_tokens = 0;
  };
  Move MoveTo(uint32_t granules) {
    Move move;
    Steps(12);
    const double before = Median(Apart(compute_->ends(), compute_->ends().size() - 8));
    const uint64_t parts = weights().stats().hidden_transitions;
    const uint64_t splits = weights().stats().split_transitions;
    const size_t first = compute_->ends().size();
    const size_t first_token = tokens_.size();
    const TimeNs begin = driver_->Now();
    FixedPolicy& policy = granules == 0 ? home_ : away_;
    policy = FixedPolicy(FixedConfig{.granules_per_layer = granules});
    core->SetPolicy(policy);
    for (int i = 0; i < 100 && weights().plan().target().granules_per_layer != granules; ++i) {
      Steps(1);
    }
    EXPECT_EQ(weights().plan().target().granules_per_layer, granules);
    EXPECT_TRUE(core->last_border_error().ok()) << core->last_border_error().ToString();
    move.ms = static_cast<double>(driver_->Now() - begin) * 1e-6;
    move.parts = weights().stats().hidden_transitions - parts;
    move.splits = weights().stats().split_transitions - splits;
    Steps(3);  // those that were under way
    const std::vector<double> moving = Apart(compute_->ends(), first);
    const std::vector<double> tokens = Apart(tokens_, first_token);
    Steps(12);
    move.steady = std::max(before, Median(Apart(compute_->ends(), compute_->ends().size() - 8)));
    move.slowest = *std::max_element(moving.begin(), moving.end()) / move.steady;
    move.slowest_tokens = *std::max_element(tokens.begin(), tokens.end()) / move.steady;
    std::printf("to %u: %.1f ms, %lu parts, %lu split; steady %.2f ms; steps", granules, move.ms,
                move.parts, move.splits, move.steady);
    for (const double ms : moving) std::printf(" %.2f", ms);
    std::printf("; tokens");
    for (const double ms : tokens) std::printf(" %.2f", ms);
    std::printf("\n");
    return move;
  }

 private:
  // From each of |times| to the next, in ms, beginning with the one that ends with |first|.
  static std::vector<double> Apart(const std::vector<TimeNs>& times, size_t first) {
    std::vector<double> ms;
    for (size_t i = first; i < times.size(); ++i) {
      ms.push_back(static_cast<double>(times[i] - times[i - 1]) * 1e-6);
    }
    return ms;
  }
  static double Median(std::vector<double> ms) {
    std::sort(ms.begin(), ms.end());
    return ms[ms.size() / 2];
  }

  SimModelShape shape_;
  std::unique_ptr<SimDriver> driver_;
  std::unique_ptr<Memory> memory_;
  std::unique_ptr<StreamCompute> compute_;
  std::vector<TimeNs> tokens_;  // when each step's were handed over
  FixedPolicy home_{FixedConfig{}};
  FixedPolicy away_{FixedConfig{}};

 public:
  std::unique_ptr<EngineCore> core;
};

// Each way twice: no step is late by more than |most|, and the border is there within |ms|.
void ExpectHidden(World& world, uint32_t away, double most, double ms) {
  for (int round = 0; round < 2; ++round) {
    for (const uint32_t granules : {away, 0U}) {
      SCOPED_TRACE("to " + std::to_string(granules) + ", round " + std::to_string(round));
      const World::Move move = world.MoveTo(granules);
      if (!kTimed) continue;
      EXPECT_LE(move.slowest, most);
      EXPECT_LE(move.slowest_tokens, most);
      EXPECT_LE(move.ms, ms);
    }
  }
}

// 8 GiB. A remap waits for the copy under way and holds up the next one: half as many take half the
// time.
TEST(BorderMove, HidesBehindTheSteps) {
  World world(Costs{});
  ExpectHidden(world, 4, 1.095, 135);
  World small(Costs{.granule_mib = 16});
  ExpectHidden(small, 8, 1.115, 185);
}

// However long the engine takes to change hands: many chunks are remapped between two copies.
TEST(BorderMove, FewHandoversAreWaitedFor) {
  World world(Costs{.handover_ns = 300'000});
  ExpectHidden(world, 4, 1.10, 135);
}

// Copies take half of a step: there is room for all remaps, and for all but the last where the
// engine takes its time to change hands.
TEST(BorderMove, TakesAStepOrTwoWhereTheLinkDoesNotBindThem) {
  for (const uint64_t handover_ns : {uint64_t{0}, Costs{}.handover_ns}) {
    SCOPED_TRACE(handover_ns);
    World world(Costs{.handover_ns = handover_ns});
    for (const uint32_t granules : {2U, 0U}) {
      const World::Move move = world.MoveTo(granules);
      if (!kTimed) continue;
      const bool all = handover_ns == 0 || granules > 0;
      EXPECT_LE(move.splits, all ? 0U : 1U);
      EXPECT_LE(move.slowest, 1.075);
      EXPECT_LE(move.ms, all ? 50 : 75);
    }
  }
}

// However dear remaps are: the move takes longer, and not the steps.
TEST(BorderMove, DearerRemapsTakeMoreSteps) {
  World world(Costs{.remap_ns = 260'000});
  ExpectHidden(world, 4, 1.08, 370);
  World dear(Costs{.remap_ns = 800'000, .busy_factor = 1});
  for (const uint32_t granules : {2U, 0U}) {
    const World::Move move = dear.MoveTo(granules);
    if (!kTimed) continue;
    EXPECT_GT(move.splits, 3U);
    EXPECT_LE(move.slowest, 1.10);
  }
}

// KV has its room for good: no way home waits for it, however full KV is.
TEST(BorderMove, ALookupTableStaysWhereItIs) {
  World world(Costs{.lookup_granules = 40});
  World without(Costs{});
  EXPECT_EQ(*world.memory().KvBlocksAt({}), *without.memory().KvBlocksAt({}) + 40);
  for (const uint32_t granules : {4U, 3U, 1U, 2U, 0U}) {
    (void)world.MoveTo(granules);
    ASSERT_NO_FATAL_FAILURE(world.FillPrefixCache());
  }
  EXPECT_EQ(world.core->Snapshot().demand.preemptions, 0U);
}

// What is to come home lies in KV that the prefix cache has taken, whose unmaps wait for copies
// too.
TEST(BorderMove, KvGivesWayWithoutHoldingUpTheMove) {
  World world(Costs{});
  (void)world.MoveTo(4);
  ASSERT_NO_FATAL_FAILURE(world.FillPrefixCache());
  const World::Move move = world.MoveTo(0);
  if (!kTimed) return;
  EXPECT_LE(move.slowest, 1.15);
  EXPECT_LE(move.slowest_tokens, 1.15);
  EXPECT_LE(move.ms, 170);
}

// Whoever holds the granules that are to come home: no sequence gives way again and again for a
// move that cannot be, and the requests go on.
TEST(BorderMove, SequencesArePreemptedInVainOnce) {
  class HomePolicy final : public Policy {
   public:
    std::string_view name() const override { return "home"; }
    PolicyDecision Decide(const PolicySnapshot&) override { return {.preempt = true}; }
    std::vector<std::pair<std::string, std::string>> Parameters() const override { return {}; }
  };
  World world(Costs{});
  (void)world.MoveTo(4);
  Result<Commitment> held = world.memory().pool().Commit(world.memory().pool().Available());
  ASSERT_TRUE(held.ok());
  HomePolicy home;
  world.core->SetPolicy(home);
  const auto preemptions = [&] { return world.core->Snapshot().demand.preemptions; };
  ASSERT_EQ(preemptions(), 0U);
  world.Steps(30);
  EXPECT_EQ(world.core->last_border_error().code(), StatusCode::kNoMemory);
  EXPECT_EQ(world.weights().plan().target().granules_per_layer, 4U);
  EXPECT_EQ(preemptions(), 3U);
  held = Commitment();
  for (int i = 0; i < 100 && world.weights().plan().target().granules_per_layer > 0; ++i) {
    world.Steps(1);
  }
  EXPECT_EQ(world.weights().plan().target().granules_per_layer, 0U);
}

// What is not the border's: this world's host takes as long as it is told to.
TEST(StepRecord, TellsWhatTheHostDidWithoutWaiting) {
  World world(Costs{});
  world.core->set_keep_step_records(true);
  const CoreStats before = world.core->stats();
  world.Steps(20);
  const CoreStats& after = world.core->stats();
  const std::vector<StepRecord>& records = world.core->step_records();
  ASSERT_GE(records.size(), 19U);
  for (size_t i = 1; i < records.size(); ++i) EXPECT_EQ(records[i].host_ns, kSubmitNs) << i;
  EXPECT_EQ((after.step_ns - before.step_ns) - (after.waited_ns - before.waited_ns),
            20 * kSubmitNs);
  EXPECT_GT(after.waited_ns, before.waited_ns);
}

}  // namespace
}  // namespace weir
