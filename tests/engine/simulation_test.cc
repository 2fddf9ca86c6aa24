// The whole engine as a deterministic simulation: random requests, budgets, policies and faults,
// one seed each. Every request's tokens must be those of SimModel::Expected, computed without any
// engine.
//   WEIR_SIMULATION_RUNS=10000   how many seeds
//   WEIR_SIMULATION_FIRST=50000  seeds begin here, so that processes can share a long run
//   WEIR_SIMULATION_SEED=1234    one seed only
#include <algorithm>
#include <map>
#include <random>
#include <sstream>

#include <gtest/gtest.h>

#include "engine/core.h"
#include "policy/registry.h"
#include "tests/support/iterations.h"
#include "tests/support/sim_model.h"
#include "vmm/sim_driver.h"

namespace weir {
namespace {

using testing::SimCompute;
using testing::SimModel;
using testing::SimModelShape;

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  uint64_t Below(uint64_t n) { return engine_() % n; }
  uint64_t Between(uint64_t low, uint64_t high) { return low + Below(high - low + 1); }
  bool Chance(double p) { return static_cast<double>(engine_() >> 11) * 0x1p-53 < p; }
  template <typename T>
  T Pick(std::initializer_list<T> values) {
    return values.begin()[Below(values.size())];
  }

 private:
  std::mt19937_64 engine_;
};

struct Client {
  std::vector<int32_t> prompt;
  uint32_t max_tokens = 0;
  uint64_t tenant = 1;
  uint64_t arrives_at = 0;               // step
  std::optional<uint64_t> cancelled_at;  // step
  RequestId id = 0;
  std::vector<int32_t> tokens;
  FinishReason reason = FinishReason::kNone;
  Status error;
};

// What must have happened over all seeds, or the test shows nothing.
struct Coverage {
  uint64_t border_moves = 0, placement_changes = 0, preemptions = 0, prefix_hits = 0,
           blocks_moved = 0, repairs = 0, faults_injected = 0, steps = 0, gates = 0, stalls = 0,
           failed_steps = 0, errors = 0, scrubbed_blocks = 0, hidden_moves = 0, parts = 0,
           links_held = 0, links_lost = 0, links_recovered = 0;
  uint32_t most_prompt_rows = 0;                 // of a step
  std::map<std::string, uint64_t> evictions_of;  // moves to a border with weights away, by policy
  uint64_t steps_in_place = 0;                   // that read weights in place
};

enum class Faults { kNone, kInjected };
// Who passes the gates of a step: the host, or "kernels" (SimCompute), with two steps under way.
// There a copy that is reported complete and was lost goes unnoticed: none is lost on purpose.
enum class Gates { kHost, kDevice };

// How prompts come: as the policy says, or a few tokens a step, as many as chance has it.
enum class Prompts { kAsDecided, kFew };

// The border of another policy, and few prompt tokens a step.
class FewPromptTokens final : public Policy {
 public:
  static constexpr uint32_t kMost = 7;
  FewPromptTokens(std::unique_ptr<Policy> border, uint64_t seed)
      : border_(std::move(border)), random_(seed) {}
  std::string_view name() const override { return border_->name(); }
  PolicyDecision Decide(const PolicySnapshot& snapshot) override {
    PolicyDecision decision = border_->Decide(snapshot);
    decision.prompt_tokens = static_cast<uint32_t>(random_.Between(1, kMost));
    return decision;
  }
  PolicyDecision Widest(const WeightsView& weights) const override {
    return border_->Widest(weights);
  }
  bool follows_load() const override { return border_->follows_load(); }
  bool lookup_in_place() const override { return border_->lookup_in_place(); }
  std::vector<std::pair<std::string, std::string>> Parameters() const override {
    return border_->Parameters();
  }

 private:
  std::unique_ptr<Policy> border_;
  Random random_;
};

// One simulated engine and its clients.
class World {
 public:
  World(uint64_t seed, Faults faults, Gates gates = Gates::kHost,
        Prompts prompts = Prompts::kAsDecided)
      : random_(seed),
        seed_(seed),
        faults_(faults),
        gates_(gates),
        prompts_(prompts),
        depth_(gates == Gates::kDevice ? 2 : static_cast<uint32_t>(1 + seed % 2)),
        tenants_(1 + seed / 2 % 3) {
    shape_.layers = static_cast<uint32_t>(random_.Between(2, 6));
    shape_.segments = static_cast<uint32_t>(random_.Between(1, 3));
    shape_.segment_bytes = 64 * random_.Between(16, 64);
    lookup_in_place_ = seed / 8 % 3 != 0;
    if (seed / 4 % 2 == 1) shape_.lookup_bytes = 64 * (1 + seed % 63);
    SimDriver::Options options{.granularity_bytes = 256, .seed = seed};
    // Where remaps cost time, moves while serving are made in parts.
    if (seed / 2 % 2 == 0)
      options.map_ns = options.unmap_ns = options.set_access_ns = 50 + seed % 2000;
    driver_ = SimDriver::Create(options).value();
  }

  Status Build() {
    MemoryOptions m;
    m.granule_bytes = random_.Pick<uint64_t>({256, 512});
    m.scratch_bytes = 1000;
    m.kv_block_bytes = shape_.block_bytes;
    m.kv_least_blocks = 8;
    m.weights = SimModel::Layout(shape_);
    m.lookup_in_place = lookup_in_place_;
    m.pager.verify_stripes = true;  // lost copies must be noticed
    m.pager.max_steps_under_way = depth_;
    m.pager.device_gates = gates_ == Gates::kDevice;
    if (m.pager.device_gates && faults_ == Faults::kInjected) {
      // Nothing repairs a copy at such a gate, so waits do run out: before, at and after the time
      // that late copies take.
      m.pager.gate_timeout_ns = random_.Pick<uint64_t>({100'000, 1'000'000, 20'000'000});
    }
    m.poison_freed = tenants_ == 1;  // else what is left in freed granules must stay to be found
    m.prefix_caching = random_.Chance(0.8);
    m.ring_slots = 2;
    // From the least that runs to more than enough.
    m.hbm_budget_bytes = 1;
    const Status refused = Memory::Create(*driver_, m).status();
    EXPECT_EQ(refused.code(), StatusCode::kNoMemory);
    const uint64_t weights = m.weights.region_bytes + m.scratch_bytes;
    for (uint64_t percent = random_.Between(20, 200);; percent += 10) {
      m.hbm_budget_bytes = weights * percent / 100;
      auto memory = Memory::Create(*driver_, m);
      if (memory.ok()) {
        memory_ = std::move(*memory);
        break;
      }
      if (memory.status().code() != StatusCode::kNoMemory) return memory.status();
    }
    const std::vector<std::byte> weights_bytes = SimModel::WeightBytes(shape_);
    WEIR_TRY(memory_->weights().Write(0, weights_bytes));
    WEIR_TRY(memory_->weights().Seal());
    WEIR_TRY(memory_->MeasureLink());

    const ComputeLimits limits{.max_rows = static_cast<uint32_t>(random_.Between(4, 64)),
                               .max_sequences = static_cast<uint32_t>(random_.Between(1, 8)),
                               .max_context = 512,
                               .vocab_size = shape_.vocab};
    compute_ = std::make_unique<SimCompute>(
        *driver_, shape_, limits,
        SimCompute::Memory{memory_->weights().base(), memory_->kv().base(),
                           memory_->kv().block_stride()},
        [this](uint64_t ns) { driver_->AdvanceBy(ns); }, depth_);
    policy_ = WEIR_TRY(MakePolicy(random_.Pick<std::string>(
        {"resident", "tide", "tide{hold_steps=2; settle_steps=1; min_gain=0}", "stress_random",
         "stress_random{hold_steps=1; seed=5}", "static{fraction=0.5}",
         "static{fraction=0.7; placement=stripe}", "static{fraction=0.7; placement=in_place}",
         "fixed{granules_per_layer=2; placement=in_place}", "zero-inference", "oneiros",
         "oneiros{hold_steps=2; cap=1}"})));
    if (prompts_ == Prompts::kFew) {
      policy_ = std::make_unique<FewPromptTokens>(std::move(policy_), seed_);
    }
    CoreOptions options;
    options.scheduler.max_batched_tokens = limits.max_rows;
    options.scheduler.max_prefill_chunk =
        static_cast<uint32_t>(random_.Between(1, limits.max_rows));
    options.scheduler.max_sequences = limits.max_sequences;
    options.max_model_len = 512;
    compute_->tenant_of = [this](uint64_t key) { return tenant_by_request_.at(key); };
    core_ = std::make_unique<EngineCore>(*driver_, *memory_, *compute_, *policy_, options);
    if (random_.Chance(0.5)) WEIR_TRY(core_->Calibrate());
    compute_->most_prompt_rows = 0;
    placed_ = memory_->weights().plan().target();
    return OkStatus();
  }

  void MakeClients() {
    std::vector<int32_t> shared(random_.Below(64));
    for (int32_t& t : shared) t = static_cast<int32_t>(random_.Below(shape_.vocab));
    const uint64_t n = random_.Between(3, 16);
    for (uint64_t i = 0; i < n; ++i) {
      Client c;
      if (random_.Chance(0.6)) c.prompt = shared;
      const uint64_t own = random_.Between(1, 40);
      for (uint64_t t = 0; t < own; ++t) {
        c.prompt.push_back(static_cast<int32_t>(random_.Below(shape_.vocab)));
      }
      c.max_tokens = static_cast<uint32_t>(random_.Between(1, 48));
      c.tenant = 1 + i % tenants_;
      c.arrives_at = random_.Below(60);
      if (random_.Chance(0.15)) c.cancelled_at = c.arrives_at + random_.Below(30);
      clients_.push_back(std::move(c));
    }
  }

  SimDriver& driver() { return *driver_; }
  EngineCore& core() { return *core_; }
  // Gives everything back; what is then left in the driver has leaked.
  void Close() {
    core_.reset();
    policy_.reset();
    compute_.reset();
    memory_.reset();
  }
  void CheckLeaks() {
    EXPECT_EQ(driver_->mapping_count(), 0U);
    EXPECT_EQ(driver_->allocation_count(), 0U);
    EXPECT_EQ(driver_->reservation_count(), 0U);
    EXPECT_EQ(driver_->word_count(), 0U);
    EXPECT_EQ(driver_->violations(), 0U) << driver_->violation_list()[0];
  }

  void ArmFaults() {
    if (faults_ == Faults::kNone) return;
    if (gates_ == Gates::kDevice) ArmFailingSubmits();
    SimFaults& f = driver_->faults();
    f.late_ns = random_.Between(1, 100) * 10'000;
    if (random_.Chance(0.4)) f.CopyWithProbability(SimCopyFault::kLate, 0.05);
    if (gates_ == Gates::kHost && random_.Chance(0.4)) {
      f.CopyWithProbability(SimCopyFault::kLost, 0.02);
    }
    if (random_.Chance(0.3)) f.CopyWithProbability(SimCopyFault::kFail, 0.01);
    if (random_.Chance(0.3)) f.FailWithProbability(SimCall::kMap, 0.02);
    if (random_.Chance(0.2)) f.FailWithProbability(SimCall::kSetAccess, 0.02);
    if (random_.Chance(0.2)) f.FailWithProbability(SimCall::kCopy, 0.01);
    if (random_.Chance(0.2)) f.FailWithProbability(SimCall::kCreate, 0.1, StatusCode::kNoMemory);
    if (random_.Chance(0.2)) f.link_slowdown = 10;
  }

  void ArmFailingSubmits() {
    if (!random_.Chance(0.3)) return;
    compute_->failed_submits_run = random_.Chance(0.5);
    compute_->submit_fails = [this] {
      return random_.Chance(0.02) ? DriverError("injected: a launch fails") : OkStatus();
    };
  }

  void Run() {
    constexpr uint64_t kMostSteps = 20'000;
    uint64_t step = 0;
    for (; step < kMostSteps; ++step) {
      for (Client& c : clients_) {
        if (c.arrives_at == step) Arrive(c);
        if (c.cancelled_at == step && c.id != 0 && c.reason == FinishReason::kNone) {
          ASSERT_TRUE(core_->Finish(c.id, FinishReason::kCancelled).ok());
        }
      }
      const auto worked = core_->Step();
      ASSERT_TRUE(worked.ok()) << worked.status().ToString();
      // Nothing runs until the link is tried again.
      if (core_->link().state == LinkState::kLost) driver_->AdvanceBy(core_->link().backoff_ns);
      Collect();
      NotePlacement();
      const Status sound = core_->CheckIntegrity();
      ASSERT_TRUE(sound.ok()) << "step " << step << ": " << sound.ToString() << "\n" << Describe();
      ASSERT_EQ(driver_->violations(), 0u) << driver_->violation_list()[0];
      ASSERT_EQ(compute_->canaries_seen(), 0U) << "step " << step << ": another tenant's KV";
      if (!*worked && step > 100) break;
    }
    ASSERT_LT(step, kMostSteps) << "no end: a request neither finished nor failed (S3)\n"
                                << Describe();
  }

  // Stops in the middle, with steps under way.
  void RunSome(uint64_t steps) {
    for (Client& c : clients_) Arrive(c);
    for (uint64_t i = 0; i < steps; ++i) ASSERT_TRUE(core_->Step().ok());
  }

  void CheckTokens() {
    for (const Client& c : clients_) {
      if (c.id == 0) continue;  // refused at Add
      ASSERT_NE(c.reason, FinishReason::kNone);
      const auto expected = SimModel::Expected(shape_, c.prompt, c.max_tokens, c.tenant);
      ASSERT_LE(c.tokens.size(), expected.size());
      EXPECT_TRUE(std::equal(c.tokens.begin(), c.tokens.end(), expected.begin()))
          << "request " << c.id << ": tokens differ from its solo run";
      if (c.reason == FinishReason::kLength) {
        EXPECT_EQ(c.tokens.size(), expected.size());
      }
      if (c.reason == FinishReason::kError && faults_ == Faults::kNone) {
        EXPECT_EQ(c.error.code(), StatusCode::kNoMemory) << c.error.ToString();
      }
    }
  }

  std::string Describe() const {
    const CoreStats& c = core_->stats();
    const BlockCounts& b = memory_->blocks().counts();
    const PolicySnapshot s = core_->Snapshot();
    std::ostringstream out;
    out << "policy " << policy_->name() << ", steps " << c.steps << ", failed " << c.failed_steps
        << ", finished " << c.requests_finished << ", errors " << c.requests_failed
        << ", border moves " << c.border_moves << ", refusals " << c.border_refusals
        << ", preemptions " << core_->scheduler_stats().preemptions << ", running "
        << s.demand.running << ", waiting " << s.demand.waiting << ", evicted "
        << s.weights.granules_per_layer << "/" << s.weights.max_granules_per_layer
        << " granules a layer, " << s.weights.layers_away << "/" << s.weights.max_layers_away
        << " layers"
        << ", blocks used " << b.used << " cached " << b.cached << " free " << b.free
        << ", pool free " << s.pool_free << ", faults " << driver_->faults().injected()
        << ", last border error " << core_->last_border_error().ToString();
    return out.str();
  }

  // FNV-1a over everything that happened.
  uint64_t Digest() const {
    uint64_t h = 0xcbf29ce484222325ULL;
    const auto add = [&h](uint64_t v) { h = (h ^ v) * 0x100000001b3ULL; };
    add(driver_->Now());
    add(core_->stats().steps);
    add(core_->stats().border_moves);
    for (const Client& c : clients_) {
      add(static_cast<uint64_t>(c.reason));
      for (const int32_t t : c.tokens) add(static_cast<uint64_t>(t));
    }
    return h;
  }

  void AddTo(Coverage* c) const {
    c->border_moves += core_->stats().border_moves;
    c->placement_changes += placement_changes_;
    c->evictions_of[std::string(policy_->name())] += evictions_;
    c->steps_in_place += steps_in_place_;
    c->steps += core_->stats().steps;
    c->most_prompt_rows = std::max(c->most_prompt_rows, compute_->most_prompt_rows);
    c->preemptions += core_->scheduler_stats().preemptions;
    c->prefix_hits += memory_->blocks().prefix_stats().hit_tokens;
    c->blocks_moved += memory_->blocks_moved();
    c->repairs += memory_->weights().stats().repairs;
    c->faults_injected += driver_->faults().injected();
    c->gates += memory_->weights().stats().gate_arrivals;
    c->stalls += memory_->weights().stats().faults;
    c->failed_steps += core_->stats().failed_steps;
    c->errors += core_->stats().requests_failed;
    c->scrubbed_blocks += core_->stats().scrubbed_blocks;
    if (tenants_ == 1) {
      EXPECT_EQ(core_->stats().scrubbed_blocks, 0U) << "there is one tenant";
    }
    c->hidden_moves += memory_->weights().stats().hidden_transitions;
    c->parts += parts_;
    c->links_held += core_->link().held;
    c->links_lost += core_->link().lost;
    c->links_recovered += core_->link().recovered;
  }

 private:
  // Counts borders with weights away, and how often stripes give way to whole layers or the other
  // way round with no step between in which nothing is away.
  void NotePlacement() {
    const EvictionTarget& now = memory_->weights().plan().target();
    if (!now.empty() && !placed_.empty() && now.placement != placed_.placement) {
      ++placement_changes_;
    }
    if (!now.empty() && now != placed_) ++evictions_;
    if (!now.empty() && now == placed_ && now.placement == Placement::kInPlace) ++steps_in_place_;
    if (core_->border_under_way()) ++parts_;
    placed_ = now;
  }

  void Arrive(Client& c) {
    CoreRequest request;
    request.prompt = c.prompt;
    request.cache_salt = c.tenant;
    request.sampling.temperature = 0;
    request.sampling.max_tokens = c.max_tokens;
    const auto id = core_->Add(std::move(request));
    if (id.ok()) {
      c.id = *id;
      tenant_by_request_[c.id] = c.tenant;
    } else {
      const bool lost = core_->link().state == LinkState::kLost;
      EXPECT_EQ(id.status().code(), lost ? StatusCode::kBadState : StatusCode::kNoMemory)
          << id.status().ToString();
    }
  }

  void Collect() {
    for (CoreOutput& out : core_->TakeOutputs()) {
      const auto it = std::find_if(clients_.begin(), clients_.end(),
                                   [&](const Client& c) { return c.id == out.id; });
      ASSERT_NE(it, clients_.end());
      ASSERT_EQ(it->reason, FinishReason::kNone) << "output after the end";
      for (const SampledToken& t : out.tokens) it->tokens.push_back(t.token);
      if (out.finished) {
        it->reason = out.reason;
        it->error = out.error;
      }
    }
  }

  Random random_;
  uint64_t seed_;
  Faults faults_;
  Gates gates_;
  Prompts prompts_;
  uint32_t depth_;  // steps under way at once
  bool lookup_in_place_ = false;
  SimModelShape shape_;
  std::unique_ptr<SimDriver> driver_;
  std::unique_ptr<Memory> memory_;
  std::unique_ptr<SimCompute> compute_;
  std::unique_ptr<Policy> policy_;
  std::unique_ptr<EngineCore> core_;
  const uint64_t tenants_;
  std::vector<Client> clients_;
  std::map<uint64_t, uint64_t> tenant_by_request_;
  EvictionTarget placed_;  // after the step before
  uint64_t placement_changes_ = 0;
  uint64_t evictions_ = 0;
  uint64_t steps_in_place_ = 0;
  uint64_t parts_ = 0;  // steps after which the border was on its way
};

uint64_t RunSeed(uint64_t seed, Faults faults, Gates gates, Coverage* coverage,
                 Prompts prompts = Prompts::kAsDecided) {
  World world(seed, faults, gates, prompts);
  const Status built = world.Build();
  EXPECT_TRUE(built.ok()) << built.ToString();
  if (!built.ok()) return 0;
  world.MakeClients();
  world.ArmFaults();
  world.Run();
  if (::testing::Test::HasFatalFailure()) return 0;
  world.CheckTokens();
  world.AddTo(coverage);
  const uint64_t digest = world.Digest();
  world.Close();
  world.CheckLeaks();
  return digest;
}

void RunSeeds(Faults faults, Gates gates = Gates::kHost) {
  const uint64_t only = testing::Iterations("WEIR_SIMULATION_SEED", 0);
  const uint64_t runs = testing::Iterations("WEIR_SIMULATION_RUNS", 500);
  Coverage coverage;
  const uint64_t first = only != 0 ? only : 1 + testing::Iterations("WEIR_SIMULATION_FIRST", 0);
  for (uint64_t seed = first; seed < first + (only != 0 ? 1 : runs); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RunSeed(seed, faults, gates, &coverage);
    if (::testing::Test::HasFailure()) return;
  }
  if (only != 0) return;
  EXPECT_GT(coverage.border_moves, 0U);
  EXPECT_GT(coverage.placement_changes, 0U);
  EXPECT_GT(coverage.steps_in_place, 0U);
  if (runs >= 500) {  // fewer seeds need not draw each policy in a world that makes it move
    for (const char* policy :
         {"tide", "stress_random", "static", "fixed", "zero-inference", "oneiros"}) {
      EXPECT_GT(coverage.evictions_of[policy], 0U) << policy;
    }
  }
  EXPECT_GT(coverage.parts, 0U);
  EXPECT_EQ(coverage.hidden_moves > 0, gates == Gates::kDevice);
  EXPECT_GT(coverage.preemptions, 0U);
  EXPECT_GT(coverage.prefix_hits, 0U);
  EXPECT_GT(coverage.blocks_moved, 0U);
  EXPECT_GT(coverage.scrubbed_blocks, 0U);
  if (faults == Faults::kInjected) {
    EXPECT_GT(coverage.repairs, 0U);
    EXPECT_GT(coverage.faults_injected, 0U);
    if (gates == Gates::kDevice) {
      EXPECT_GT(coverage.failed_steps, 0U);
    }
  } else {
    EXPECT_EQ(coverage.failed_steps, 0U);
  }
  std::printf(
      "%lu seeds: %lu steps, %lu border moves (%lu from one placement to the other, %lu behind "
      "gates; on the way after %lu steps), %lu preemptions, %lu tokens from the prefix cache, %lu "
      "blocks moved, %lu scrubbed, %lu faults injected, %lu "
      "stripes repaired, %lu armed gates (%lu waited), %lu steps failed, %lu requests failed\n",
      runs, coverage.steps, coverage.border_moves, coverage.placement_changes,
      coverage.hidden_moves, coverage.parts, coverage.preemptions, coverage.prefix_hits,
      coverage.blocks_moved, coverage.scrubbed_blocks, coverage.faults_injected, coverage.repairs,
      coverage.gates, coverage.stalls, coverage.failed_steps, coverage.errors);
  std::printf("  weights came home for good %lu times, could not %lu times, %lu links recovered\n",
              coverage.links_held, coverage.links_lost, coverage.links_recovered);
  for (const auto& [policy, evictions] : coverage.evictions_of) {
    std::printf("  %s: %lu borders with weights away\n", policy.c_str(), evictions);
  }
}

TEST(Simulation, TokensEqualTheSoloRunUnderAnyBudgetPolicyAndSchedule) {
  RunSeeds(Faults::kNone);
}

TEST(Simulation, InjectedFailuresNeverChangeATokenOrBreakAnInvariant) {
  RunSeeds(Faults::kInjected);
}

TEST(Simulation, PromptsThatComeAFewTokensAStepChangeNoToken) {
  Coverage coverage;
  const uint64_t runs = testing::Iterations("WEIR_SIMULATION_RUNS", 500);
  const uint64_t first = 1 + testing::Iterations("WEIR_SIMULATION_FIRST", 0);
  for (uint64_t seed = first; seed < first + runs && !HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RunSeed(seed, seed % 2 == 0 ? Faults::kNone : Faults::kInjected,
            seed % 3 == 0 ? Gates::kDevice : Gates::kHost, &coverage, Prompts::kFew);
  }
  EXPECT_GT(coverage.border_moves, 0U);
  EXPECT_GT(coverage.preemptions, 0U);
  EXPECT_GT(coverage.prefix_hits, 0U);
  EXPECT_GT(coverage.faults_injected, 0U);
  EXPECT_EQ(coverage.most_prompt_rows, FewPromptTokens::kMost);
}

TEST(Simulation, WithDeviceGatesTokensEqualTheSoloRun) {
  RunSeeds(Faults::kNone, Gates::kDevice);
}

TEST(Simulation, WithDeviceGatesReportedFailuresNeverChangeATokenOrBreakAnInvariant) {
  RunSeeds(Faults::kInjected, Gates::kDevice);
}

// With one and with two steps under way (even and odd seeds) and with device gates, on scripts that
// evict, restore, grow and shrink, in stripes and in whole layers.
class FailingCall : public ::testing::TestWithParam<std::pair<uint64_t, Gates>> {};

// Every driver call of a whole life (start, calibration, requests, border moves, end) fails once;
// WEIR_FAIL_NTH_STRIDE=1 tries each call (CI: every 11th).
TEST_P(FailingCall, IsSurvivedOrReported) {
  const auto [seed, gates] = GetParam();
  const uint64_t stride = testing::Iterations("WEIR_FAIL_NTH_STRIDE", 11);
  uint64_t calls = 0;
  {
    World world(seed, Faults::kNone, gates);
    ASSERT_TRUE(world.Build().ok());
    world.MakeClients();
    world.Run();
    EXPECT_GT(world.core().stats().border_moves, 0U) << world.Describe();
    world.Close();
    calls = world.driver().faults().total_calls();
  }
  uint64_t refused = 0;
  for (uint64_t n = 1; n <= calls; n += stride) {
    SCOPED_TRACE("failing driver call " + std::to_string(n) + " of " + std::to_string(calls));
    World world(seed, Faults::kInjected, gates);
    world.driver().faults().FailNthCall(n);
    const Status built = world.Build();
    if (built.ok()) {
      world.MakeClients();
      world.Run();
      if (HasFatalFailure()) return;
      world.CheckTokens();
    } else {
      ++refused;  // at start-up an error is the answer
    }
    world.Close();
    world.CheckLeaks();
    if (HasFailure()) return;
  }
  std::printf("%lu driver calls failed in turn, %lu of them at start-up\n", calls / stride,
              refused);
}

INSTANTIATE_TEST_SUITE_P(Seeds, FailingCall,
                         ::testing::Values(std::pair{36, Gates::kHost}, std::pair{41, Gates::kHost},
                                           std::pair{36, Gates::kDevice}));

TEST(Simulation, AnEngineThatEndsInTheMiddleLeavesNothingBehind) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    for (const Gates gates : {Gates::kHost, Gates::kDevice}) {
      World world(seed, Faults::kInjected, gates);
      ASSERT_TRUE(world.Build().ok());
      world.MakeClients();
      world.ArmFaults();
      world.RunSome(seed % 25);
      world.Close();
      world.CheckLeaks();
    }
    if (HasFailure()) return;
  }
}

// Seeds in which the first request never ended: it outgrew the policy's border, got a wider one,
// and lost that again while it computed what it had had.
TEST(Simulation, ARequestThatOutgrewTheBorderEnds) {
  Coverage unused;
  for (const uint64_t seed : {71544U, 71864U, 72201U, 100280U, 102068U, 103025U}) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    for (const Gates gates : {Gates::kHost, Gates::kDevice}) {
      for (const Faults faults : {Faults::kNone, Faults::kInjected}) {
        RunSeed(seed, faults, gates, &unused);
      }
    }
  }
}

TEST(Simulation, SameSeedIsTheSameRun) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Coverage unused;
    for (const Gates gates : {Gates::kHost, Gates::kDevice}) {
      EXPECT_EQ(RunSeed(seed, Faults::kInjected, gates, &unused),
                RunSeed(seed, Faults::kInjected, gates, &unused))
          << seed;
    }
  }
}

}  // namespace
}  // namespace weir
