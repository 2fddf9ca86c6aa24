// The link to the backing copy slows down, its copies fail, the copy itself is gone, or there was
// never memory for one: serving goes on as far as it can, no token changes, and it is said.
#include <algorithm>
#include <map>
#include <random>

#include <gtest/gtest.h>

#include "engine/core.h"
#include "engine/trace_metadata.h"
#include "policy/registry.h"
#include "tests/pager/fault_driver.h"
#include "tests/support/checked_trace.h"
#include "tests/support/iterations.h"
#include "tests/support/sim_model.h"
#include "vmm/host_driver.h"
#include "vmm/sim_driver.h"

namespace weir {
namespace {

using test::CopyFault;
using test::FaultDriver;
using testing::CheckedTrace;
using testing::SimCompute;
using testing::SimModel;
using testing::SimModelShape;

enum class Gates { kHost, kDevice };

struct WorldOptions {
  Gates gates = Gates::kHost;
  std::string policy = "tide";
  uint64_t budget_percent = 118;  // of weights and step buffers
  uint64_t seed = 1;
  bool traced = false;
  bool source = false;  // of weights whose copy is gone
};

// A model of 512 KiB behind a link that hides half of it in a step; few requests fit beside it.
class World {
 public:
  explicit World(const WorldOptions& options)
      : options_(options),
        rng_(options.seed),
        sim_(SimDriver::Create({.granularity_bytes = 4096,
                                .peer_bytes = 1 << 30,
                                .peer_link = {.in_bytes_per_s = 0.2e9, .out_bytes_per_s = 0.2e9},
                                .seed = options.seed})
                 .value()),
        driver(*sim_) {
    shape_ = {.layers = 8,
              .segments = 1,
              .segment_bytes = 64 << 10,
              .segment_ns = 200'000,
              .token_ns = 10'000};
    const uint32_t depth = options.gates == Gates::kDevice ? 2 : 1;
    MemoryOptions m;
    m.granule_bytes = 4096;
    m.scratch_bytes = 4096 * 8;
    m.kv_block_bytes = 4096;
    m.kv_least_blocks = 8;
    m.weights = SimModel::Layout(shape_);
    m.backing = BackingTier::kPeer;
    m.pager.max_steps_under_way = depth;
    m.pager.device_gates = options.gates == Gates::kDevice;
    m.hbm_budget_bytes = (m.weights.region_bytes + m.scratch_bytes) * options.budget_percent / 100;
    if (options.traced) {
      trace = std::make_unique<CheckedTrace>([this] { return sim_->Now(); });
    }
    memory_ = Memory::Create(driver, m).value();
    WeightPager& weights = memory_->weights();
    EXPECT_TRUE(weights.Write(0, SimModel::WeightBytes(shape_)).ok());
    EXPECT_TRUE(weights.Seal().ok());
    if (options.source) {
      weights.SetSource([this](std::span<const WeightRange> ranges) { return Make(ranges); });
    }
    driver.on_copy_from = [this](VirtAddr src) {
      backing_ = src;
      return CopyFault::kNone;
    };
    EXPECT_TRUE(memory_->MeasureLink().ok());  // fetches from the first byte on
    driver.on_copy_from = {};
    const ComputeLimits limits{
        .max_rows = 64, .max_sequences = 16, .max_context = 512, .vocab_size = shape_.vocab};
    compute_ = std::make_unique<SimCompute>(
        driver, shape_, limits,
        SimCompute::Memory{weights.base(), memory_->kv().base(), memory_->kv().block_stride()},
        [this](uint64_t ns) { sim_->AdvanceBy(ns); }, depth);
    policy_ = MakePolicy(options.policy).value();
    CoreOptions core_options;
    core_options.scheduler.max_batched_tokens = 64;
    core_options.scheduler.max_prefill_chunk = 64;
    core_options.scheduler.max_sequences = 16;
    core_options.max_model_len = 512;
    core = std::make_unique<EngineCore>(driver, *memory_, *compute_, *policy_, core_options);
    EXPECT_TRUE(core->Calibrate().ok());
  }
  ~World() {
    Close();
    EXPECT_EQ(sim_->violations(), 0U) << sim_->violation_list()[0];
    EXPECT_EQ(sim_->mapping_count(), 0U);
    EXPECT_EQ(sim_->allocation_count(), 0U);
  }

  // Everything is given back.
  void Close() {
    Mend();
    core.reset();
    compute_.reset();
    memory_.reset();
  }
  // Ends the engine; what `weir-trace check` finds.
  testing::TraceFindings CheckTrace() {
    EngineInfo info;
    info.granule_bytes = 4096;
    info.kv_block_bytes = 4096;
    const std::string metadata = TraceMetadata({}, info, *memory_, *policy_);
    Close();
    trace->Drain();
    EXPECT_EQ(trace->tracer().dropped(), 0U);
    return trace->Check(metadata, true);
  }

  bool InBacking(VirtAddr at) const {
    return at - backing_ < memory_->weights().layout().region_bytes;
  }
  enum class Reach { kStreamsFail, kStreamsRefuse, kGone };
  void Break(Reach reach) {
    driver.on_copy_from = [this, reach](VirtAddr src) {
      if (!InBacking(src)) return CopyFault::kNone;
      return reach == Reach::kStreamsRefuse ? CopyFault::kRefuse : CopyFault::kFail;
    };
    if (reach == Reach::kGone) driver.read_fails = [this](VirtAddr src) { return InBacking(src); };
  }
  void Mend() {
    driver.on_copy_from = {};
    driver.read_fails = {};
  }

  // As many requests as are known at once from now on.
  void set_load(uint32_t requests) { load_ = requests; }
  void Step() {
    for (uint32_t known = static_cast<uint32_t>(open_.size()); known < load_; ++known) Add();
    const Result<bool> worked = core->Step();
    ASSERT_TRUE(worked.ok()) << worked.status().ToString();
    ASSERT_EQ(sim_->violations(), 0U) << sim_->violation_list()[0];
    for (CoreOutput& out : core->TakeOutputs()) {
      Client& client = open_.at(out.id);
      for (const SampledToken& t : out.tokens) client.tokens.push_back(t.token);
      tokens += out.tokens.size();
      if (!out.finished) continue;
      if (out.reason == FinishReason::kError) {
        errors.push_back(out.error);
      } else {
        EXPECT_EQ(client.tokens, SimModel::Expected(shape_, client.prompt, client.max_tokens));
        ++finished;
      }
      open_.erase(out.id);
    }
    if (!*worked) sim_->AdvanceBy(200'000'000);
    if (trace) trace->Drain();
  }
  void Steps(uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) ASSERT_NO_FATAL_FAILURE(Step());
  }
  // Tokens a second of virtual time.
  double Rate(uint32_t steps) {
    const uint64_t before = tokens;
    const TimeNs start = sim_->Now();
    Steps(steps);
    return static_cast<double>(tokens - before) * 1e9 / static_cast<double>(sim_->Now() - start);
  }
  // Everything known ends.
  void Finish() {
    load_ = 0;
    for (int i = 0; i < 5000 && !open_.empty(); ++i) ASSERT_NO_FATAL_FAILURE(Step());
    EXPECT_TRUE(open_.empty());
    const Status sound = core->CheckIntegrity();
    EXPECT_TRUE(sound.ok()) << sound.ToString();
  }
  uint32_t away() const { return memory_->weights().planned().evicted_granules(); }
  void Pass(TimeNs ns) { sim_->AdvanceBy(ns); }
  SimDriver& sim() { return *sim_; }

  Status source_fails;
  std::unique_ptr<CheckedTrace> trace;
  // Status of the last request that was refused.
  Status refused;

 private:
  struct Client {
    std::vector<int32_t> prompt;
    uint32_t max_tokens = 0;
    std::vector<int32_t> tokens;
  };
  // A little more than was asked for, in pieces, as a loader has tensors.
  Status Make(std::span<const WeightRange> ranges) {
    WEIR_TRY(Status(source_fails));
    const std::vector<std::byte> all = SimModel::WeightBytes(shape_);
    for (const WeightRange& range : ranges) {
      const uint64_t end = std::min<uint64_t>(range.offset + range.bytes + 1000, all.size());
      for (uint64_t at = range.offset - std::min<uint64_t>(range.offset, 500); at < end;) {
        const uint64_t n = std::min<uint64_t>(end - at, 3000);
        WEIR_TRY(memory_->weights().Write(at, std::span(all).subspan(at, n)));
        at += n;
      }
    }
    return OkStatus();
  }
  void Add() {
    Client client;
    client.prompt.resize(8 + rng_() % 24);
    for (int32_t& t : client.prompt) t = static_cast<int32_t>(rng_() % shape_.vocab);
    client.max_tokens = static_cast<uint32_t>(32 + rng_() % 48);
    CoreRequest request{.prompt = client.prompt, .sampling = {}};
    request.sampling.temperature = 0;
    request.sampling.max_tokens = client.max_tokens;
    const Result<RequestId> id = core->Add(std::move(request));
    if (id.ok()) {
      open_.emplace(*id, std::move(client));
    } else {
      refused = id.status();
    }
  }

  WorldOptions options_;
  std::mt19937_64 rng_;
  std::unique_ptr<SimDriver> sim_;
  SimModelShape shape_;
  VirtAddr backing_ = 0;
  uint32_t load_ = 0;

 public:
  FaultDriver driver;

 private:
  std::unique_ptr<Memory> memory_;
  std::unique_ptr<SimCompute> compute_;
  std::unique_ptr<Policy> policy_;
  std::map<RequestId, Client> open_;

 public:
  std::unique_ptr<EngineCore> core;
  uint64_t tokens = 0;
  uint64_t finished = 0;
  std::vector<Status> errors;
};

class LinkTest : public ::testing::TestWithParam<Gates> {};

TEST_P(LinkTest, TideBacksOffFromALinkThatSlowsToATenthAndGoesOutAgain) {
  double resident = 0;
  {
    World world({.gates = GetParam(), .policy = "resident"});
    world.set_load(24);
    world.Steps(400);
    resident = world.Rate(400);
    world.Finish();
  }
  World world({.gates = GetParam()});
  world.set_load(24);
  world.Steps(400);
  const uint32_t away = world.away();
  const double before = world.Rate(400);
  EXPECT_GT(away, 0U);
  EXPECT_GT(before, 1.3 * resident);
  ASSERT_TRUE(world.core->link().state == LinkState::kGood) << world.core->link().cause;

  world.sim().faults().link_slowdown = 10;
  constexpr uint32_t kBound = 24;  // 8 to be sure, the rest to move
  world.Steps(kBound);
  EXPECT_EQ(world.core->link().slow, 1U);
  EXPECT_EQ(world.core->link().state, LinkState::kSlow);
  EXPECT_LE(world.away(), away / 3);
  const double during = world.Rate(400);
  EXPECT_GE(during, 0.98 * resident);
  EXPECT_EQ(world.core->link().troubles(), 1U);

  world.sim().faults().link_slowdown = 1;
  world.Pass(120'000'000'000);  // past any back-off
  world.Steps(400);
  EXPECT_EQ(world.core->link().recovered, 1U);
  EXPECT_EQ(world.core->link().state, LinkState::kGood);
  EXPECT_GE(world.away(), away / 2);
  const double after = world.Rate(400);
  EXPECT_GE(after, 0.95 * before);
  EXPECT_EQ(world.core->link().troubles(), 1U);
  std::printf("tokens/s: resident %.0f, tide %.0f, slow link %.0f, after %.0f; away %u\n", resident,
              before, during, after, away);
  world.Finish();
  EXPECT_TRUE(world.errors.empty()) << world.errors[0].ToString();
}

// Between a half and what it should be nothing is said; at each probe of a link that stays slow the
// back-off doubles, and the border does not wander.
TEST_P(LinkTest, ALinkThatStaysSlowIsSaidOnceAndProbedLessAndLess) {
  World world({.gates = GetParam()});
  world.set_load(24);
  world.Steps(400);
  world.sim().faults().link_slowdown = 10;
  world.Steps(100);
  ASSERT_EQ(world.core->link().state, LinkState::kSlow);
  const uint64_t moves = world.core->stats().border_moves;
  TimeNs backoff = 0;
  for (int i = 0; i < 8; ++i) {
    EXPECT_GE(world.core->link().backoff_ns, std::min<TimeNs>(2 * backoff, 60'000'000'000));
    backoff = world.core->link().backoff_ns;
    world.Pass(backoff);
    world.Steps(20);
  }
  EXPECT_EQ(backoff, 60'000'000'000U);
  EXPECT_EQ(world.core->link().troubles(), 1U);
  EXPECT_EQ(world.core->link().recovered, 0U);
  EXPECT_LE(world.core->stats().border_moves, moves + 2);
  world.Finish();
}

TEST_P(LinkTest, OtherPoliciesStayWhereTheyAreWhenTheLinkIsSlow) {
  World world({.gates = GetParam(), .policy = "fixed{granules_per_layer=8}"});
  world.set_load(24);
  world.Steps(200);
  const uint32_t away = world.away();
  ASSERT_GT(away, 0U);
  world.sim().faults().link_slowdown = 10;
  world.Steps(100);
  EXPECT_EQ(world.core->link().slow, 1U);
  EXPECT_EQ(world.away(), away);
  world.Finish();
  EXPECT_TRUE(world.errors.empty());
}

TEST_P(LinkTest, CopiesThatKeepFailingBringWeightsHomeForABackOff) {
  const uint64_t runs = testing::Iterations("WEIR_LINK_RUNS", 12);
  for (uint64_t seed = 1; seed <= runs; ++seed) {
    const auto reach = seed % 2 == 0 ? World::Reach::kStreamsFail : World::Reach::kStreamsRefuse;
    const char* policies[] = {"tide", "fixed{granules_per_layer=8}", "static{fraction=0.5}",
                              "zero-inference"};
    const std::string policy = policies[seed % std::size(policies)];
    SCOPED_TRACE("seed " + std::to_string(seed) + ", " + policy);
    World world({.gates = GetParam(), .policy = policy, .seed = seed});
    world.set_load(20);
    world.Steps(60 + static_cast<uint32_t>(seed * 7 % 50));
    ASSERT_GT(world.away(), 0U);
    world.Break(reach);
    world.Steps(12);
    EXPECT_EQ(world.core->link().state, LinkState::kHeld) << world.core->link().cause;
    EXPECT_EQ(world.core->link().held, 1U);
    EXPECT_NE(world.core->link().cause.find("tier peer"), std::string::npos);
    EXPECT_EQ(world.away(), 0U);
    const uint64_t finished = world.finished;
    const uint64_t failed = world.core->stats().failed_steps;
    EXPECT_LE(failed, 3U * (GetParam() == Gates::kDevice ? 2 : 1));
    EXPECT_EQ(world.core->stats().steps_without_weights, failed);
    world.Steps(150);
    EXPECT_GT(world.finished, finished) << "serving goes on";
    EXPECT_EQ(world.away(), 0U);
    EXPECT_EQ(world.core->stats().failed_steps, failed);
    // Tried again in vain: nothing leaves, no step fails.
    world.Pass(1'000'000'000);
    world.Steps(20);
    EXPECT_EQ(world.core->link().state, LinkState::kHeld);
    EXPECT_EQ(world.away(), 0U);
    EXPECT_EQ(world.core->stats().failed_steps, failed);
    world.Mend();
    world.Pass(60'000'000'000);
    world.Steps(100);
    EXPECT_EQ(world.core->link().recovered, 1U);
    EXPECT_GT(world.away(), 0U);
    world.Finish();
    EXPECT_TRUE(world.errors.empty()) << world.errors[0].ToString();
    if (HasFailure()) return;
  }
}

// No step waits for what is read in place: a probe notices, once a second.
TEST_P(LinkTest, WeightsThatAreReadInPlaceComeHomeTooWhenTheyCannotBeCopied) {
  const uint64_t runs = testing::Iterations("WEIR_LINK_RUNS", 12);
  for (uint64_t seed = 1; seed <= runs; ++seed) {
    const auto reach = seed % 2 == 0 ? World::Reach::kStreamsFail : World::Reach::kStreamsRefuse;
    SCOPED_TRACE("seed " + std::to_string(seed));
    World world({.gates = GetParam(),
                 .policy = "fixed{granules_per_layer=8; placement=in_place}",
                 .seed = seed});
    world.set_load(seed % 3 == 0 ? 20 : 3);
    world.Steps(60 + static_cast<uint32_t>(seed * 7 % 50));
    ASSERT_EQ(world.away(), 64U);
    world.Break(reach);
    world.Pass(1'000'000'000);
    world.set_load(3);  // a probe needs a KV block that nobody uses
    for (int i = 0; i < 400 && world.core->link().state == LinkState::kGood; ++i) world.Steps(1);
    EXPECT_EQ(world.core->link().state, LinkState::kHeld) << world.core->link().cause;
    EXPECT_EQ(world.away(), 0U);
    world.Steps(100);
    EXPECT_EQ(world.away(), 0U) << "in place neither";
    EXPECT_EQ(world.core->stats().failed_steps, 0U) << "no step lacked weights";
    world.Mend();
    world.Pass(60'000'000'000);
    world.Steps(100);
    EXPECT_EQ(world.core->link().recovered, 1U);
    EXPECT_EQ(world.away(), 64U);
    world.Finish();
    EXPECT_TRUE(world.errors.empty()) << world.errors[0].ToString();
    if (HasFailure()) return;
  }
}

TEST_P(LinkTest, WhereWhatIsReadInPlaceIsGoneRequestsFailUntilItIsThereAgain) {
  World world({.gates = GetParam(), .policy = "fixed{granules_per_layer=8; placement=in_place}"});
  world.set_load(3);
  world.Steps(60);
  ASSERT_EQ(world.away(), 64U);
  world.Break(World::Reach::kGone);
  world.Pass(1'000'000'000);
  world.Steps(12);
  EXPECT_EQ(world.core->link().state, LinkState::kLost);
  EXPECT_EQ(world.away(), 64U);
  EXPECT_EQ(world.errors.size(), 3U);
  world.Mend();
  world.Pass(60'000'000'000);
  world.errors.clear();
  world.Steps(150);
  EXPECT_NE(world.core->link().state, LinkState::kLost);
  EXPECT_GT(world.finished, 0U);
  world.Finish();
  EXPECT_TRUE(world.errors.empty()) << world.errors[0].ToString();
}

TEST_P(LinkTest, WhereTheOnlyCopyIsGoneRequestsFailAndTheEngineWaitsForIt) {
  const uint64_t runs = testing::Iterations("WEIR_LINK_RUNS", 12);
  for (uint64_t seed = 1; seed <= runs; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    World world({.gates = GetParam(), .policy = "fixed{granules_per_layer=8}", .seed = seed});
    world.set_load(20);
    world.Steps(60 + static_cast<uint32_t>(seed * 7 % 50));
    ASSERT_GT(world.away(), 0U);
    world.Break(World::Reach::kGone);
    world.Steps(12);
    EXPECT_EQ(world.core->link().state, LinkState::kLost);
    EXPECT_EQ(world.errors.size(), 20U);
    for (const Status& error : world.errors) {
      EXPECT_EQ(error.code(), StatusCode::kBadState);
      EXPECT_NE(error.message().find("weights in tier peer cannot be read"), std::string::npos)
          << error.message();
      EXPECT_NE(error.message().find("injected"), std::string::npos) << error.message();
    }
    EXPECT_EQ(world.refused.code(), StatusCode::kBadState) << world.refused.ToString();
    world.Steps(50);  // 10 s
    EXPECT_EQ(world.core->link().state, LinkState::kLost);
    EXPECT_GE(world.core->link().backoff_ns, 4'000'000'000U);
    world.Mend();
    world.Pass(60'000'000'000);
    world.errors.clear();
    world.Steps(150);
    EXPECT_NE(world.core->link().state, LinkState::kLost);
    EXPECT_GT(world.finished, 0U);
    world.Finish();
    EXPECT_TRUE(world.errors.empty()) << world.errors[0].ToString();
    if (HasFailure()) return;
  }
}

// The same where the weights can be read from where they were loaded: nobody notices but the log.
TEST_P(LinkTest, WhereTheOnlyCopyIsGoneWeightsAreReadAnew) {
  const uint64_t runs = testing::Iterations("WEIR_LINK_RUNS", 12);
  for (uint64_t seed = 1; seed <= runs; ++seed) {
    const char* policies[] = {"tide", "fixed{granules_per_layer=8}", "zero-inference",
                              "fixed{granules_per_layer=5}"};
    const std::string policy = policies[seed % std::size(policies)];
    SCOPED_TRACE("seed " + std::to_string(seed) + ", " + policy);
    World world({.gates = GetParam(), .policy = policy, .seed = seed, .source = true});
    world.set_load(20);
    world.Steps(60 + static_cast<uint32_t>(seed * 7 % 50));
    ASSERT_GT(world.away(), 0U);
    world.Break(World::Reach::kGone);
    world.Steps(12);
    const LinkReport& link = world.core->link();
    EXPECT_EQ(link.state, LinkState::kHeld) << link.cause;
    EXPECT_EQ(link.held, 1U);
    EXPECT_EQ(link.reread, 1U);
    EXPECT_EQ(link.lost, 0U);
    EXPECT_NE(link.cause.find("read anew from the checkpoint"), std::string::npos) << link.cause;
    EXPECT_EQ(world.away(), 0U);
    const uint64_t finished = world.finished;
    world.Steps(150);
    EXPECT_GT(world.finished, finished);
    world.Pass(1'000'000'000);
    world.Steps(20);  // probed in vain
    EXPECT_EQ(link.state, LinkState::kHeld);
    EXPECT_EQ(world.away(), 0U);
    EXPECT_EQ(link.reread, 1U);
    world.Mend();
    world.Finish();  // compares what is home with the copy, too
    EXPECT_TRUE(world.errors.empty()) << world.errors[0].ToString();
    if (HasFailure()) return;
  }
}

TEST_P(LinkTest, WhereNeitherCopyNorCheckpointCanBeReadBothAreNamed) {
  World world({.gates = GetParam(), .policy = "fixed{granules_per_layer=8}", .source = true});
  world.source_fails = DataLoss("model.safetensors has changed");
  world.set_load(20);
  world.Steps(80);
  ASSERT_GT(world.away(), 0U);
  world.Break(World::Reach::kGone);
  world.Steps(12);
  EXPECT_EQ(world.core->link().state, LinkState::kLost);
  ASSERT_EQ(world.errors.size(), 20U);
  EXPECT_NE(world.errors[0].message().find("model.safetensors has changed"), std::string::npos)
      << world.errors[0].message();
  EXPECT_NE(world.errors[0].message().find("weights in tier peer cannot be read"),
            std::string::npos);
  world.source_fails = OkStatus();  // it is there again
  world.Pass(60'000'000'000);
  world.errors.clear();
  world.Steps(150);
  EXPECT_EQ(world.core->link().state, LinkState::kHeld);
  EXPECT_EQ(world.core->link().reread, 1U);
  EXPECT_GT(world.finished, 0U);
  world.Mend();
  world.Finish();
  EXPECT_TRUE(world.errors.empty());
}

// A source that leaves something out is no source.
TEST_P(LinkTest, WeightsThatWereNotWrittenAnewDoNotCount) {
  World world({.gates = GetParam(), .policy = "fixed{granules_per_layer=8}"});
  world.core->memory().weights().SetSource([](std::span<const WeightRange>) { return OkStatus(); });
  world.set_load(20);
  world.Steps(80);
  ASSERT_GT(world.away(), 0U);
  world.Break(World::Reach::kGone);
  world.Steps(12);
  EXPECT_EQ(world.core->link().state, LinkState::kLost);
  EXPECT_NE(world.core->link().cause.find("were not written anew"), std::string::npos)
      << world.core->link().cause;
  world.Mend();
  world.Finish();
}

TEST_P(LinkTest, EachTroubleIsInATraceThatIsSound) {
  World world({.gates = GetParam(), .traced = true});
  world.set_load(24);
  world.Steps(200);
  world.sim().faults().link_slowdown = 10;
  world.Steps(40);
  world.Pass(1'000'000'000);
  world.Steps(1);  // a probe, in vain
  world.sim().faults().link_slowdown = 1;
  world.Pass(60'000'000'000);
  world.Steps(200);
  ASSERT_GT(world.away(), 0U);
  world.Break(World::Reach::kStreamsFail);
  world.Steps(20);
  world.Mend();
  world.Pass(60'000'000'000);
  world.Steps(200);
  ASSERT_GT(world.away(), 0U);
  world.Break(World::Reach::kGone);
  world.Steps(20);
  world.Mend();
  world.Pass(60'000'000'000);
  world.Steps(20);  // they come home, and stay
  world.Pass(60'000'000'000);
  world.Steps(20);
  world.Finish();
  const testing::TraceFindings found = world.CheckTrace();
  EXPECT_TRUE(found.conclusive);
  // `check` does not know that weights may be remapped in a step whose gates are held closed.
  if (GetParam() == Gates::kHost) {
    EXPECT_EQ(found.violations, 0U) << found.first;
  }
  std::vector<LinkTrouble> causes;
  uint32_t probes_failed = 0;
  for (const TraceRecord& r : world.trace->records()) {
    if (r.type != static_cast<uint16_t>(TraceType::kLink)) continue;
    const auto cause = static_cast<LinkTrouble>(r.cause);
    if (cause == LinkTrouble::kProbeFailed) {
      ++probes_failed;
      continue;
    }
    causes.push_back(cause);
    EXPECT_EQ(r.args[0], static_cast<uint64_t>(Tier::kPeer));
    EXPECT_NEAR(static_cast<double>(r.args[2]), 0.2e9, 0.01e9);  // expected
    EXPECT_EQ(r.args[3] == 0, causes.back() == LinkTrouble::kRecovered);
    if (causes.back() == LinkTrouble::kSlow) {
      EXPECT_NEAR(static_cast<double>(r.args[1]), 0.02e9, 0.002e9);
    }
  }
  using enum LinkTrouble;
  EXPECT_EQ(causes, (std::vector{kSlow, kRecovered, kHeld, kRecovered, kLost, kHeld, kRecovered}));
  EXPECT_GT(probes_failed, 0U);
}

// Waiting for such a copy would be in vain: whoever supervises the process is to start another one.
TEST_P(LinkTest, ALostDeviceIsAnErrorOfTheStep) {
  World world({.gates = GetParam()});
  world.set_load(24);
  world.Steps(100);
  ASSERT_GT(world.away(), 0U);
  world.Break(World::Reach::kGone);
  world.driver.lost = DriverError("device lost: injected");
  Status error;
  for (int i = 0; i < 12 && error.ok(); ++i) error = world.core->Step().status();
  EXPECT_EQ(error.message(), "device lost: injected");
}

// A budget that does not hold all weights.
TEST_P(LinkTest, WhereWeightsDoNotFitTheyWaitForTheLink) {
  World world({.gates = GetParam(), .policy = "tide", .budget_percent = 80});
  world.set_load(10);
  world.Steps(60);
  ASSERT_GT(world.away(), 0U);
  world.Break(World::Reach::kStreamsFail);
  world.Steps(12);
  EXPECT_EQ(world.core->link().state, LinkState::kLost);
  ASSERT_FALSE(world.errors.empty());
  EXPECT_NE(world.errors[0].message().find("does not hold all weights"), std::string::npos);
  world.Mend();
  world.Pass(60'000'000'000);
  world.errors.clear();
  world.Steps(100);
  EXPECT_EQ(world.core->link().state, LinkState::kGood);
  world.Finish();
  EXPECT_TRUE(world.errors.empty());
}

// Nothing is away when the copy goes: nothing leaves for it.
TEST_P(LinkTest, WeightsDoNotLeaveForACopyThatCannotBeRead) {
  World world({.gates = GetParam()});
  world.Break(World::Reach::kGone);
  world.set_load(24);
  world.Steps(300);
  EXPECT_EQ(world.core->link().state, LinkState::kHeld);
  EXPECT_EQ(world.away(), 0U);
  EXPECT_EQ(world.core->stats().failed_steps, 0U);
  EXPECT_GT(world.finished, 0U);
  world.Mend();
  world.Finish();
  EXPECT_TRUE(world.errors.empty());
}

MemoryOptions Sizes(const SimModelShape& shape, uint64_t granule) {
  MemoryOptions m;
  m.granule_bytes = granule;
  m.scratch_bytes = granule;
  m.kv_block_bytes = 4096;
  m.kv_least_blocks = 4;
  m.weights = SimModel::Layout(shape);
  return m;
}

// A lookup table in place needs the backing copy. Without memory for that it is at home as well.
TEST(BackingRefusal, ALookupTableIsAtHomeThen) {
  constexpr uint64_t kGranule = 64 << 10;
  const SimModelShape shape{
      .layers = 6, .segments = 1, .segment_bytes = 1 << 20, .lookup_bytes = 3 << 20};
  const std::vector<std::byte> bytes = SimModel::WeightBytes(shape);
  for (const StatusCode code : {StatusCode::kNoMemory, StatusCode::kInvalidArgument}) {
    for (const int nth : {1, 2, 60, 1000}) {  // pieces before one is refused; 1000: none is
      SCOPED_TRACE(std::string(StatusCodeName(code)) + " " + std::to_string(nth));
      const auto inner = HostDriver::Create({}).value();
      FaultDriver driver(*inner);
      driver.create_fails = [code, nth, n = 0](Tier tier) mutable {
        if (tier != Tier::kHost || ++n < nth) return OkStatus();
        return Status(code, "injected: cannot be pinned");
      };
      std::unique_ptr<Memory> memory;
      int loads = 0;
      const Status loaded =
          LoadWithLookup(true, BackingTier::kHost, &memory, [&](bool lookup_in_place) -> Status {
            ++loads;
            MemoryOptions m = Sizes(shape, kGranule);
            m.lookup_in_place = lookup_in_place;
            m.hbm_budget_bytes = AlignUp(m.weights.region_bytes, kGranule) + 5 * kGranule;
            memory = WEIR_TRY(Memory::Create(driver, m));
            WEIR_TRY(memory->weights().Write(0, bytes));
            return memory->weights().Seal();
          });
      const bool refused = nth < 1000;
      EXPECT_EQ(loads, refused && code == StatusCode::kNoMemory ? 2 : 1);
      if (refused && code != StatusCode::kNoMemory) {
        EXPECT_EQ(loaded.code(), code);
        continue;
      }
      ASSERT_TRUE(loaded.ok()) << loaded.ToString();
      EXPECT_EQ(memory->lookup_bytes(), refused ? 0U : 3U << 20);
      EXPECT_EQ(memory->backing_refusal().ok(), !refused);
      const uint64_t table = (3 << 20) / kGranule;
      EXPECT_EQ(*memory->KvBlocksAt({}), (4 + (refused ? 0 : table)) * kGranule / 4096);
      std::vector<std::byte> region(bytes.size());
      ASSERT_TRUE(inner->Read(memory->weights().base(), region).ok());
      EXPECT_TRUE(region == bytes);
      const Status sound = memory->CheckIntegrity();
      EXPECT_TRUE(sound.ok()) << sound.ToString();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Gates, LinkTest, ::testing::Values(Gates::kHost, Gates::kDevice),
                         [](const auto& gates) {
                           return gates.param == Gates::kHost ? "Host" : "Device";
                         });

// A file that cannot be read has the code of a refusal.
TEST(BackingRefusal, WhatFailsForAnotherReasonIsNotLoadedAgain) {
  const SimModelShape shape{.segment_bytes = 1 << 20, .lookup_bytes = 3 << 20};
  const auto driver = HostDriver::Create({}).value();
  std::unique_ptr<Memory> memory;
  int loads = 0;
  const Status loaded =
      LoadWithLookup(true, BackingTier::kHost, &memory, [&](bool lookup_in_place) -> Status {
        ++loads;
        MemoryOptions m = Sizes(shape, 64 << 10);
        m.lookup_in_place = lookup_in_place;
        memory = WEIR_TRY(Memory::Create(*driver, m));
        return IoError("injected: a checkpoint that cannot be read");
      });
  EXPECT_EQ(loaded.code(), StatusCode::kIo);
  EXPECT_EQ(loads, 1);
}

// Whatever a device answers when memory cannot be pinned, and however late: what fits stays, what
// does not is refused.
TEST(BackingRefusal, WeightsStayWhereNoHostMemoryCanBePinned) {
  constexpr uint64_t kSegment = 6 << 20;
  constexpr uint64_t kGranule = 64 << 10;
  const SimModelShape shape{.layers = 6, .segments = 1, .segment_bytes = kSegment};
  const auto drivers = [](bool sim) -> std::unique_ptr<Driver> {
    if (sim) return SimDriver::Create({.granularity_bytes = 4096}).value();
    return HostDriver::Create({}).value();
  };
  const std::vector<std::byte> bytes = SimModel::WeightBytes(shape);
  for (const StatusCode code : {StatusCode::kNoMemory, StatusCode::kDriver, StatusCode::kIo,
                                StatusCode::kUnsupported, StatusCode::kInvalidArgument}) {
    for (const bool fits : {true, false}) {
      for (int nth = 1; nth <= 2; ++nth) {  // the first piece of the copy, or a later one
        for (const bool on_sim : {true, false}) {
          SCOPED_TRACE(std::string(StatusCodeName(code)) + (fits ? ", fits" : "") +
                       (on_sim ? ", sim, " : ", host, ") + std::to_string(nth));
          const auto inner = drivers(on_sim);
          FaultDriver driver(*inner);
          driver.create_fails = [code, nth, n = 0](Tier tier) mutable {
            if (tier != Tier::kHost || ++n != nth) return OkStatus();
            return Status(code, "injected: cannot be pinned");
          };
          MemoryOptions m = Sizes(shape, kGranule);
          const uint64_t all = AlignUp(m.weights.region_bytes, kGranule) + kGranule;
          m.hbm_budget_bytes = fits ? all + kGranule * 4 : all * 7 / 10;
          Tracer tracer({.mask = Tracer::MaskOf(TraceType::kLink)});
          SetTracer(&tracer);
          auto memory = Memory::Create(driver, m);
          Status loaded = memory.status();
          if (loaded.ok()) {
            for (uint64_t at = 0; at < bytes.size() && loaded.ok(); at += kSegment / 3) {
              loaded = (*memory)->weights().Write(
                  at, std::span(bytes).subspan(at, std::min(kSegment / 3, bytes.size() - at)));
            }
            if (loaded.ok()) loaded = (*memory)->weights().Seal();
          }
          SetTracer(nullptr);
          std::vector<TraceRecord> said;
          tracer.Drain([&](const TraceRecord& r) { said.push_back(r); });
          if (fits && code != StatusCode::kInvalidArgument) {
            ASSERT_TRUE(loaded.ok()) << loaded.ToString();
            EXPECT_EQ((*memory)->backing_refusal().code(), code);
            EXPECT_EQ((*memory)->max_granules_per_layer(), 0U);
            EXPECT_EQ((*memory)->max_layers(), 0U);
            EXPECT_EQ((*memory)->most_kv_blocks(), 4 * kGranule / 4096);
            ASSERT_EQ(said.size(), 1U);
            EXPECT_EQ(said[0].cause, static_cast<uint8_t>(LinkTrouble::kRefused));
            EXPECT_EQ(said[0].args[0], static_cast<uint64_t>(Tier::kHost));
            EXPECT_TRUE((*memory)->MeasureLink().ok());
            EXPECT_FALSE((*memory)->ProbeLink().ok());
            EXPECT_TRUE((*memory)->weights().BeginStep().ok());
            EXPECT_TRUE((*memory)->weights().EndStep().ok());
            EXPECT_FALSE((*memory)->weights().Apply({.granules_per_layer = 1}).ok());
            std::vector<std::byte> region(bytes.size());
            ASSERT_TRUE(inner->Read((*memory)->weights().base(), region).ok());
            EXPECT_TRUE(region == bytes);
            const Status sound = (*memory)->CheckIntegrity();
            EXPECT_TRUE(sound.ok()) << sound.ToString();
          } else {
            EXPECT_TRUE(said.empty());
            EXPECT_EQ(loaded.code(), code);
          }
          memory = BadState("ends");
          if (auto* sim = dynamic_cast<SimDriver*>(inner.get())) {
            EXPECT_EQ(sim->allocation_count(), 0U);
            EXPECT_EQ(sim->violations(), 0U);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace weir
