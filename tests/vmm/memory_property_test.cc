// Pool, address space and plans against a model that is a few maps, on random commands with random
// driver failures (rapidcheck picks and shrinks the seeds; a run is a function of its seed).
// WEIR_PROPERTY_COMMANDS: commands in all, 100,000 by default.
#include <cstdlib>
#include <map>
#include <random>

#include <rapidcheck.h>

#include "tests/vmm/memory_fixture.h"

namespace weir {
namespace {

constexpr uint64_t kGranule = 4096;
constexpr uint64_t kProbe = 16;  // bytes written to know a granule again

uint64_t CommandCount() {
  const char* text = std::getenv("WEIR_PROPERTY_COMMANDS");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 100'000;
}

// The reference: which "page" each slot shows, and a page's bytes and owner. A page is a granule
// from its MapFresh until no slot shows it.
struct Model {
  using Place = std::pair<uint32_t, uint32_t>;  // region, slot
  std::map<Place, uint64_t> slots;
  std::map<uint64_t, std::pair<Owner, uint64_t>> pages;  // page -> owner, pattern seed
  uint64_t next_page = 1;

  bool Apply(const RemapPlan& plan, uint64_t available) {
    uint64_t fresh = 0;
    for (const RemapOp& op : plan.ops) {
      if (const auto* u = std::get_if<UnmapOp>(&op)) {
        if (slots.erase({u->region.value, u->slot.value}) == 0) return false;
      } else if (const auto* m = std::get_if<MapFreshOp>(&op)) {
        if (!slots.emplace(Place{m->region.value, m->slot.value}, next_page).second) return false;
        pages[next_page++] = {m->owner, 0};
        ++fresh;
      } else {
        const auto& a = std::get<MapAliasOp>(op);
        const auto source = slots.find({a.source_region.value, a.source_slot.value});
        const Place place{a.region.value, a.slot.value};
        if (source == slots.end() || slots.contains(place)) return false;
        slots[place] = source->second;
      }
    }
    if (fresh > available) return false;
    std::map<uint64_t, std::pair<Owner, uint64_t>> live;
    for (const auto& [place, page] : slots) live[page] = pages[page];
    pages = std::move(live);
    return true;
  }
};

class Runner {
 public:
  Runner(uint64_t seed, bool faults) : rng_(seed), faults_(faults) {
    SimDriver::Options sim;
    sim.seed = seed;
    sim.content_bytes = kProbe;
    driver_ = SimDriver::Create(sim).value();
    pool_ = GranulePool::Create(*driver_, {Tier::kHbm, kGranule, 24}).value();
    AddressSpace::Options options;
    options.poison_freed = Pick(2) == 0;
    options.scrub_on_owner_change = Pick(2) == 0;
    space_ = AddressSpace::Create(*driver_, *pool_, options).value();
    for (uint32_t r = 0; r < 3; ++r) {
      regions_.push_back(space_->Reserve("r" + std::to_string(r), kSlots * kGranule).value());
    }
  }
  ~Runner() {
    driver_->faults().Clear();
    for (const GranuleId g : held_) pool_->Free(g);
  }

  // Runs |commands| and ends with an empty device.
  void Run(uint64_t commands) {
    for (uint64_t i = 0; i < commands; ++i) {
      switch (Pick(10)) {
        case 0: AllocateOrFree(); break;
        case 1: CommitOrRefund(); break;
        case 2: Loan(); break;
        case 3: WriteSomewhere(); break;
        default: Remap(); break;
      }
      Require(trace_.Poll());
    }
    Verify();
    RC_ASSERT(driver_->violations() == 0u);
  }
  void Finish() {
    driver_->faults().Clear();
    commitments_.clear();
    for (const GranuleId g : held_) pool_->Free(g);
    held_.clear();
    space_.reset();
    Require(pool_->CheckIntegrity());
    RC_ASSERT(pool_->Available() == pool_->counts().total);
    pool_.reset();
    RC_ASSERT(driver_->allocation_count() == 0u);
    RC_ASSERT(driver_->reservation_count() == 0u);
    Require(trace_.Poll());
    Require(trace_.audit().CheckAtEnd());
  }

 private:
  static constexpr uint32_t kSlots = 12;
  uint32_t Pick(uint32_t n) { return static_cast<uint32_t>(rng_() % n); }
  Owner PickOwner() { return static_cast<Owner>(1 + Pick(4)); }
  static void Require(const Status& s) {
    if (!s.ok()) RC_FAIL(s.ToString());
  }

  void AllocateOrFree() {
    if (!held_.empty() && Pick(2) == 0) {
      const size_t i = Pick(static_cast<uint32_t>(held_.size()));
      pool_->Free(held_[i]);
      held_.erase(held_.begin() + static_cast<ptrdiff_t>(i));
      return;
    }
    const uint32_t available = pool_->Available();
    const Result<GranuleId> g = pool_->Allocate(PickOwner());
    RC_ASSERT(g.ok() == (available > 0));
    if (g.ok()) held_.push_back(*g);
  }

  void CommitOrRefund() {
    if (!commitments_.empty() && Pick(2) == 0) {
      Commitment& c = commitments_.back();
      if (c.count() > 0 && Pick(2) == 0) {
        held_.push_back(pool_->AllocateCommitted(c, PickOwner()));
      } else {
        commitments_.pop_back();
      }
      return;
    }
    const uint32_t n = Pick(4);
    const uint32_t available = pool_->Available();
    Result<Commitment> c = pool_->Commit(n);
    RC_ASSERT(c.ok() == (n <= available));
    if (c.ok()) commitments_.push_back(std::move(c).value());
  }

  void Loan() {
    std::vector<GranuleId> lent;
    const Result<LoanId> loan = pool_->BeginLoan(Owner::kWeights, Owner::kKv, &lent, 1 + Pick(3));
    if (!loan.ok()) return;
    Require(pool_->CheckIntegrity());
    for (const GranuleId g : lent) pool_->Free(g);
    Require(pool_->CancelLoan(*loan));
    Require(pool_->EndLoan(*loan));
  }

  void WriteSomewhere() {
    if (model_.slots.empty()) return;
    auto it = model_.slots.begin();
    std::advance(it, Pick(static_cast<uint32_t>(model_.slots.size())));
    const uint64_t seed = rng_() | 1;
    Require(driver_->Write(AddressOf(it->first), Pattern(seed, kProbe)));
    model_.pages[it->second].second = seed;
  }

  VirtAddr AddressOf(Model::Place place) {
    return space_->region(regions_[place.first]).SlotAddress(SlotIndex(place.second));
  }

  // Mostly plans that make sense against the slots as the plan goes on, some that do not.
  RemapPlan RandomPlan() {
    RemapPlan plan;
    Model scratch = model_;
    const uint32_t n = 1 + Pick(8);
    for (uint32_t i = 0; i < n; ++i) {
      const RegionId region = regions_[Pick(3)];
      const SlotIndex slot(Pick(kSlots));
      RemapPlan one;
      if (scratch.slots.contains({region.value, slot.value})) {
        one.Unmap(region, slot);
      } else if (!scratch.slots.empty() && Pick(3) == 0) {
        auto source = scratch.slots.begin();
        std::advance(source, Pick(static_cast<uint32_t>(scratch.slots.size())));
        one.MapAlias(region, slot, regions_[source->first.first], SlotIndex(source->first.second));
      } else {
        one.MapFresh(region, slot, PickOwner());
      }
      if (Pick(40) == 0) one.ops[0] = UnmapOp{region, SlotIndex(Pick(kSlots))};  // maybe nonsense
      if (!scratch.Apply(one, ~uint64_t{0})) scratch = model_;
      plan.ops.push_back(one.ops[0]);
    }
    return plan;
  }

  void Remap() {
    RemapPlan plan = RandomPlan();
    Model after = model_;
    const bool valid = after.Apply(plan, pool_->Available());
    const PoolCounts before = pool_->counts();
    RC_ASSERT(space_->Validate(plan).ok() == valid);
    const uint64_t injected = driver_->faults().injected();
    // One failure at a random call: undoing it then succeeds.
    if (faults_ && Pick(4) == 0) driver_->faults().FailNthCall(1 + Pick(12));
    const Status s = space_->Commit(plan);
    const bool hit = driver_->faults().injected() != injected;
    driver_->faults().Clear();
    RC_ASSERT(valid || !s.ok());
    RC_ASSERT(!valid || s.ok() || (hit && s.code() == StatusCode::kDriver));
    if (s.ok()) {
      // Pages the plan made get a pattern of their own.
      for (const auto& [place, page] : after.slots) {
        auto& [owner, seed] = after.pages[page];
        if (seed != 0) continue;
        seed = rng_() | 1;
        Require(driver_->Write(AddressOf(place), Pattern(seed, kProbe)));
      }
      model_ = std::move(after);
    } else {  // T2
      RC_ASSERT(pool_->counts().free == before.free);
      RC_ASSERT(pool_->counts().mapped == before.mapped);
      RC_ASSERT(pool_->counts().by_owner == before.by_owner);
    }
    Verify();
  }

  void Verify() {
    Require(space_->CheckIntegrity());
    for (uint32_t r = 0; r < 3; ++r) {
      const Region& region = space_->region(regions_[r]);
      for (uint32_t s = 0; s < kSlots; ++s) {
        const auto it = model_.slots.find({r, s});
        RC_ASSERT(region.slots[s].valid() == (it != model_.slots.end()));
        if (it == model_.slots.end()) continue;
        const auto& [owner, seed] = model_.pages[it->second];
        RC_ASSERT(pool_->granule(region.slots[s]).owner == owner);
        std::array<std::byte, kProbe> bytes;
        Require(driver_->Read(AddressOf({r, s}), bytes));
        RC_ASSERT(std::memcmp(bytes.data(), Pattern(seed, kProbe).data(), kProbe) == 0);
      }
    }
  }

  std::mt19937_64 rng_;
  const bool faults_;
  AuditedTrace trace_;
  std::unique_ptr<SimDriver> driver_;
  std::unique_ptr<GranulePool> pool_;
  std::unique_ptr<AddressSpace> space_;
  std::vector<RegionId> regions_;
  std::vector<GranuleId> held_;
  std::vector<Commitment> commitments_;
  Model model_;
};

TEST(MemoryPropertyTest, PoolAndAddressSpaceBehaveLikeTheModel) {
  const uint64_t commands = CommandCount();
  constexpr uint64_t kPerRun = 500;
  uint64_t done = 0;
  uint64_t round = 0;  // every check draws the same numbers
  while (done < commands) {
    ++round;
    const bool ok = rc::check("a run of random commands", [&] {
      const auto seed = *rc::gen::arbitrary<uint64_t>() + round * 0x9e3779b97f4a7c15ULL;
      Runner runner(seed, seed % 4 != 0);
      runner.Run(kPerRun);
      runner.Finish();
      done += kPerRun;
    });
    ASSERT_TRUE(ok) << "set RC_PARAMS to the line above to repeat it";
  }
  std::printf("%llu commands\n", static_cast<unsigned long long>(done));
}

// Fail-Nth: a fixed script; driver call 1, 2, 3, ... fails once. Every status is ok or a clean
// error, nothing leaks, and the script goes on after the error.
TEST(MemoryPropertyTest, EveryDriverCallOfAScriptMayFailOnce) {
  uint64_t n = 1;
  for (bool reached = true; reached; ++n) {
    AuditedTrace trace;
    SimDriver::Options sim;
    sim.hbm_bytes = 16 * kGranule;
    auto driver = SimDriver::Create(sim).value();
    driver->faults().FailNthCall(n);
    [&] {
      auto pool = GranulePool::Create(*driver, {Tier::kHbm, kGranule, 12});
      if (!pool.ok()) return;
      auto space = AddressSpace::Create(*driver, **pool,
                                        {.poison_freed = true, .scrub_on_owner_change = true});
      if (!space.ok()) return;
      const auto weights = (*space)->Reserve("weights", 8 * kGranule);
      const auto ring = (*space)->Reserve("ring", kGranule);
      const auto kv = (*space)->Reserve("kv", 8 * kGranule);
      if (!weights.ok() || !ring.ok() || !kv.ok()) return;
      for (int round = 0; round < 3; ++round) {
        RemapPlan load{.cause = RemapCause::kLoad};
        for (uint32_t i = 0; i < 8; ++i) load.MapFresh(*weights, SlotIndex(i), Owner::kWeights);
        load.MapFresh(*ring, SlotIndex(0), Owner::kRing);
        RemapPlan evict{.cause = RemapCause::kEvict};
        RemapPlan grow{.cause = RemapCause::kKvGrow};
        RemapPlan drop{.cause = RemapCause::kShutdown};
        for (uint32_t i = 0; i < 8; ++i) {
          if (i % 2 == 1) {
            evict.Unmap(*weights, SlotIndex(i));
            evict.MapAlias(*weights, SlotIndex(i), *ring, SlotIndex(0));
            grow.MapFresh(*kv, SlotIndex(i), Owner::kKv);
          }
          drop.Unmap(*weights, SlotIndex(i));
        }
        drop.Unmap(*ring, SlotIndex(0));
        for (uint32_t i = 1; i < 8; i += 2) drop.Unmap(*kv, SlotIndex(i));
        for (RemapPlan* plan : {&load, &evict, &grow, &drop}) {
          Status s = (*space)->Commit(*plan);
          if (!s.ok()) {
            EXPECT_CODE(s, kDriver);
            s = (*space)->Commit(*plan);  // the fault was for once
          }
          EXPECT_OK(s);
          EXPECT_OK((*space)->CheckIntegrity());
        }
      }
    }();
    reached = driver->faults().injected() != 0;
    EXPECT_EQ(driver->allocation_count(), 0u) << "call " << n;
    EXPECT_EQ(driver->mapping_count(), 0u) << "call " << n;
    EXPECT_EQ(driver->reservation_count(), 0u) << "call " << n;
    EXPECT_EQ(driver->violations(), 0u) << "call " << n;
    EXPECT_OK(trace.Poll());
    EXPECT_OK(trace.audit().CheckAtEnd());
    if (::testing::Test::HasFailure()) break;
  }
  std::printf("%llu calls failed in turn\n", static_cast<unsigned long long>(n - 2));
  EXPECT_GT(n, 100u);
}

}  // namespace
}  // namespace weir
