#include "vmm/granule_pool.h"

#include <cstdio>

#include "vmm/persist.h"
#include "vmm/trace.h"

namespace weir {
namespace {

constexpr size_t Index(GranuleState state) {
  return static_cast<size_t>(state);
}
constexpr size_t Index(Owner owner) {
  return static_cast<size_t>(owner);
}

constexpr uint8_t TierByte(Tier tier) {
  return static_cast<uint8_t>(tier);
}

std::string Name(const GranulePool& pool) {
  return "pool " + std::string(TierName(pool.tier()));
}

}  // namespace

// --- Commitment
// ------------------------------------------------------------------------------------

Commitment::~Commitment() {
  Refund(count_);
}

Commitment::Commitment(Commitment&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), count_(std::exchange(other.count_, 0)) {}

Commitment& Commitment::operator=(Commitment&& other) noexcept {
  if (this != &other) {
    Refund(count_);
    pool_ = std::exchange(other.pool_, nullptr);
    count_ = std::exchange(other.count_, 0);
  }
  return *this;
}

void Commitment::Refund(uint32_t n) {
  WEIR_CHECK(n <= count_, "refund of more than was committed");
  if (n == 0) return;
  count_ -= n;
  pool_->RefundCommitted(n);
}

void GranulePool::RefundCommitted(uint32_t n) {
  counts_.committed -= n;
  TraceEmit(TraceType::kCommitment, 0, -static_cast<int64_t>(n), counts_.committed);
}

// --- Creation
// --------------------------------------------------------------------------------------

Result<std::unique_ptr<GranulePool>> GranulePool::Create(Driver& driver, const Options& options) {
  const uint64_t granularity = driver.properties().granularity_bytes;
  if (!IsPowerOfTwo(options.granule_bytes) || options.granule_bytes % granularity != 0) {
    return InvalidArgument("granule of " + std::to_string(options.granule_bytes) +
                           " bytes; accepted are powers of two that are multiples of " +
                           std::to_string(granularity));
  }
  if (options.count == 0 || options.count >= GranuleId::kInvalidValue) {
    return InvalidArgument("pool of " + std::to_string(options.count) +
                           " granules; accepted are 1 to 4294967294");
  }
  std::unique_ptr<GranulePool> pool(new GranulePool(driver, options));
  std::vector<AllocId> allocs;
  allocs.reserve(options.count);
  for (uint32_t i = 0; i < options.count; ++i) {
    Result<AllocId> alloc = driver.Create(options.tier, options.granule_bytes);
    if (!alloc.ok()) {
      for (const AllocId a : allocs) (void)driver.Release(a);
      return alloc.status().WithContext(Name(*pool) + ": granule " + std::to_string(i) + " of " +
                                        std::to_string(options.count));
    }
    allocs.push_back(*alloc);
  }
  pool->granules_ = std::vector<Granule>(options.count);
  pool->granule_loan_.resize(options.count);
  pool->fence_failed_.resize(options.count, false);
  pool->counts_.total = pool->counts_.free = options.count;
  pool->counts_.by_owner[Index(Owner::kNone)] = options.count;
  for (uint32_t i = 0; i < options.count; ++i) {
    Granule& g = pool->granules_[i];
    g.id = GranuleId(i);
    g.alloc = allocs[i];
    pool->lists_[Index(GranuleState::kFree)].push_back(g);
    TraceEmit(TraceType::kCreate, TierByte(options.tier), i, options.granule_bytes);
  }
  return pool;
}

GranulePool::~GranulePool() {
  WEIR_CHECK(counts_.committed == 0, "a pool outlives its commitments");
  WEIR_CHECK(counts_.pinned == 0 && counts_.mapped == 0,
             "a pool is destroyed with granules in use");
  for (List& list : lists_) list.clear();
  for (Granule& g : granules_) {
    (void)g.pending.Wait(driver_);  // a failed event has ended too
    TraceEmit(TraceType::kRelease, TierByte(options_.tier), g.id.value, options_.granule_bytes);
    const Status released = Persist([&] { return driver_.Release(g.alloc); });
    if (!released.ok()) {
      std::fprintf(stderr, "weir: %s: granule %u is lost: %s\n", Name(*this).c_str(), g.id.value,
                   released.ToString().c_str());
    }
  }
}

// --- States
// ----------------------------------------------------------------------------------------

void GranulePool::Move(Granule& g, GranuleState to) {
  const auto count = [this](GranuleState s) -> uint32_t& {
    switch (s) {
      case GranuleState::kFree: return counts_.free;
      case GranuleState::kPinned: return counts_.pinned;
      case GranuleState::kMapped: return counts_.mapped;
      case GranuleState::kRetiring: return counts_.retiring;
    }
    return counts_.free;
  };
  List& from_list = lists_[Index(g.state)];
  from_list.erase(from_list.iterator_to(g));
  --count(g.state);
  TraceEmit(TraceType::kGranuleState, TierByte(options_.tier), g.id.value, g.state, to, g.owner);
  g.state = to;
  ++count(to);
  // Last freed, first taken: its pages are the likeliest to be in a cache.
  lists_[Index(to)].push_front(g);
}

void GranulePool::SetOwner(Granule& g, Owner owner) {
  --counts_.by_owner[Index(g.owner)];
  g.owner = owner;
  ++counts_.by_owner[Index(owner)];
}

GranuleId GranulePool::Take(Owner owner) {
  WEIR_CHECK(owner != Owner::kNone, "a granule in use has an owner");
  List& free = lists_[Index(GranuleState::kFree)];
  WEIR_CHECK(!free.empty(), "taken from an empty pool");
  Granule& g = free.front();
  SetOwner(g, owner);
  Move(g, GranuleState::kPinned);
  return g.id;
}

uint32_t GranulePool::Available() {
  if (counts_.retiring != 0) {
    Status polled = PollFences();
    if (!polled.ok()) unreported_ = std::move(polled);
  }
  // P2 holds: a commitment was taken from free granules, and those do not leave but through it.
  return counts_.free - counts_.committed;
}

Result<Commitment> GranulePool::Commit(uint32_t n) {
  const uint32_t available = Available();
  if (n > available) {
    return NoMemory(Name(*this) + " has " + std::to_string(available) + " available granules, " +
                    std::to_string(n) + " asked");
  }
  counts_.committed += n;
  TraceEmit(TraceType::kCommitment, 0, n, counts_.committed);
  return Commitment(this, n);
}

Result<GranuleId> GranulePool::Allocate(Owner owner) {
  if (owner == Owner::kNone) return InvalidArgument("allocation without an owner");
  if (Available() == 0) {
    return NoMemory(Name(*this) + " has no available granule (" + std::to_string(counts_.free) +
                    " free, " + std::to_string(counts_.committed) + " of them committed)");
  }
  return Take(owner);
}

GranuleId GranulePool::AllocateCommitted(Commitment& commitment, Owner owner) {
  WEIR_CHECK(commitment.pool_ == this && commitment.count_ > 0, "nothing is committed");
  --commitment.count_;
  --counts_.committed;
  TraceEmit(TraceType::kCommitment, 1, -int64_t{1}, counts_.committed);
  return Take(owner);
}

void GranulePool::Free(GranuleId id, Fence fence) {
  Granule& g = granules_[id.value];
  WEIR_CHECK(g.state == GranuleState::kPinned, "only a pinned granule can be freed");
  if (LoanId& loan = granule_loan_[id.value]; loan.valid()) {
    --loans_[loan.value].outstanding;
    loan = LoanId();
    g.lender = Owner::kNone;
  }
  SetOwner(g, Owner::kNone);
  g.pending = std::move(fence);
  bool busy = false;
  if (!g.pending.empty()) {
    const Result<bool> complete = g.pending.IsComplete(driver_);
    busy = !complete.ok() || !*complete;  // a failure is reported by PollFences
  }
  Move(g, busy ? GranuleState::kRetiring : GranuleState::kFree);
}

void GranulePool::ChangeOwner(GranuleId id, Owner owner) {
  Granule& g = granules_[id.value];
  WEIR_CHECK(g.state == GranuleState::kPinned || g.state == GranuleState::kMapped,
             "only a granule in use changes owner");
  WEIR_CHECK(owner != Owner::kNone, "a granule in use has an owner");
  WEIR_CHECK(!granule_loan_[id.value].valid(), "a lent granule is not the borrower's to hand on");
  TraceEmit(TraceType::kOwner, TierByte(options_.tier), id.value, g.owner, owner);
  SetOwner(g, owner);
}

void GranulePool::OnMapped(GranuleId id) {
  Granule& g = granules_[id.value];
  g.dirty = true;
  g.last_owner = g.owner;
  if (++g.map_count == 1) Move(g, GranuleState::kMapped);
}

void GranulePool::OnUnmapped(GranuleId id) {
  Granule& g = granules_[id.value];
  WEIR_CHECK(g.map_count > 0, "an unmapped granule is unmapped again");
  g.last_owner = g.owner;
  if (--g.map_count == 0) Move(g, GranuleState::kPinned);
}

Status GranulePool::PollFences() {
  Status first = std::exchange(unreported_, Status());
  List& retiring = lists_[Index(GranuleState::kRetiring)];
  for (auto it = retiring.begin(); it != retiring.end();) {
    Granule& g = *it++;
    if (fence_failed_[g.id.value]) continue;
    const Result<bool> complete = g.pending.IsComplete(driver_);
    if (!complete.ok()) {
      fence_failed_[g.id.value] = true;
      if (first.ok()) {
        first = complete.status().WithContext(Name(*this) + ": granule " +
                                              std::to_string(g.id.value) + " stays retired");
      }
    } else if (*complete) {
      Move(g, GranuleState::kFree);
    }
  }
  return first;
}

// --- Loans
// -----------------------------------------------------------------------------------------

Result<LoanId> GranulePool::BeginLoan(Owner lender, Owner borrower,
                                      std::vector<GranuleId>* granules, uint32_t n) {
  if (lender == Owner::kNone || borrower == Owner::kNone || lender == borrower || n == 0) {
    return InvalidArgument("a loan needs two different owners and at least one granule");
  }
  const uint32_t available = Available();
  if (n > available) {
    return NoMemory(Name(*this) + " has " + std::to_string(available) + " available granules, " +
                    std::to_string(n) + " asked for a loan");
  }
  const LoanId id(static_cast<uint32_t>(loans_.size()));
  loans_.push_back({lender, borrower, LoanState::kActive, n});
  for (uint32_t i = 0; i < n; ++i) {
    const GranuleId granule = Take(borrower);
    granules_[granule.value].lender = lender;
    granule_loan_[granule.value] = id;
    granules->push_back(granule);
  }
  TraceEmit(TraceType::kLoan, static_cast<uint8_t>(LoanState::kActive), id.value, lender, borrower,
            n);
  return id;
}

Status GranulePool::CancelLoan(LoanId loan) {
  const LoanState state = WEIR_TRY(loan_state(loan));
  if (state != LoanState::kActive) {
    return BadState("loan " + std::to_string(loan.value) + " was called before");
  }
  Loan& l = loans_[loan.value];
  l.state = LoanState::kCalled;
  TraceEmit(TraceType::kLoan, static_cast<uint8_t>(l.state), loan.value, l.lender, l.borrower,
            l.outstanding);
  return OkStatus();
}

Status GranulePool::EndLoan(LoanId loan) {
  const LoanState state = WEIR_TRY(loan_state(loan));
  if (state != LoanState::kCalled) {
    return BadState("loan " + std::to_string(loan.value) +
                    (state == LoanState::kEnded ? " has ended" : " was not called (CancelLoan)"));
  }
  Loan& l = loans_[loan.value];
  if (l.outstanding != 0) {
    return ShouldWait(std::string(OwnerName(l.borrower)) + " still holds " +
                      std::to_string(l.outstanding) + " granules of loan " +
                      std::to_string(loan.value));
  }
  l.state = LoanState::kEnded;
  TraceEmit(TraceType::kLoan, static_cast<uint8_t>(l.state), loan.value, l.lender, l.borrower, 0);
  return OkStatus();
}

Result<LoanState> GranulePool::loan_state(LoanId loan) const {
  if (loan.value >= loans_.size()) {
    return InvalidArgument("there is no loan " + std::to_string(loan.value));
  }
  return loans_[loan.value].state;
}

// --- Inspection
// ------------------------------------------------------------------------------------

void GranulePool::TraceState() const {
  const uint8_t tier = TierByte(options_.tier);
  const auto state = [tier](const Granule& g, GranuleState from, GranuleState to) {
    TraceEmit(TraceType::kGranuleState, tier, g.id.value, from, to, g.owner);
  };
  for (const Granule& g : granules_) {
    TraceEmit(TraceType::kCreate, tier, g.id.value, options_.granule_bytes);
    if (g.state == GranuleState::kFree) continue;
    // Mapping follows from the slots that the address space tells.
    state(g, GranuleState::kFree, GranuleState::kPinned);
    if (g.state == GranuleState::kRetiring) state(g, GranuleState::kPinned, g.state);
  }
}

Status GranulePool::CheckIntegrity() const {
  PoolCounts n;
  std::array<uint32_t, 4> by_state{};
  std::vector<uint32_t> outstanding(loans_.size(), 0);
  for (const Granule& g : granules_) {
    const std::string who = Name(*this) + ": granule " + std::to_string(g.id.value);
    ++n.total;
    ++by_state[Index(g.state)];
    ++n.by_owner[Index(g.owner)];
    if (!g.list_hook.is_linked()) return BadState(who + " is on no list");
    const bool in_use = g.state == GranuleState::kPinned || g.state == GranuleState::kMapped;
    if (in_use != (g.owner != Owner::kNone)) {
      return BadState(who + " is " + std::string(GranuleStateName(g.state)) + " and owned by " +
                      std::string(OwnerName(g.owner)));
    }
    if ((g.map_count != 0) != (g.state == GranuleState::kMapped)) {
      return BadState(who + " is " + std::string(GranuleStateName(g.state)) + " with " +
                      std::to_string(g.map_count) + " mappings");
    }
    if (g.state != GranuleState::kRetiring && !g.pending.empty()) {
      return BadState(who + " has a pending fence and is not retiring");
    }
    const LoanId loan = granule_loan_[g.id.value];
    if (loan.valid() != (g.lender != Owner::kNone) || (loan.valid() && !in_use)) {
      return BadState(who + " disagrees with its loan");
    }
    if (loan.valid()) ++outstanding[loan.value];
  }
  for (size_t s = 0; s < lists_.size(); ++s) {
    uint32_t listed = 0;
    for (const Granule& g : lists_[s]) {
      ++listed;
      if (Index(g.state) != s) return BadState(Name(*this) + ": a granule is on a wrong list (G1)");
    }
    if (listed != by_state[s]) return BadState(Name(*this) + ": a list misses granules (G1)");
  }
  for (size_t i = 0; i < loans_.size(); ++i) {
    if (outstanding[i] != loans_[i].outstanding) {
      return BadState(Name(*this) + ": loan " + std::to_string(i) + " counts wrongly");
    }
  }
  n.free = by_state[Index(GranuleState::kFree)];
  n.pinned = by_state[Index(GranuleState::kPinned)];
  n.mapped = by_state[Index(GranuleState::kMapped)];
  n.retiring = by_state[Index(GranuleState::kRetiring)];
  if (n.total != counts_.total || n.free != counts_.free || n.pinned != counts_.pinned ||
      n.mapped != counts_.mapped || n.retiring != counts_.retiring ||
      n.by_owner != counts_.by_owner) {
    return BadState(Name(*this) + ": counts disagree with the granules (G2)");
  }
  if (counts_.committed > counts_.free) {
    return BadState(Name(*this) + ": " + std::to_string(counts_.committed) + " committed, " +
                    std::to_string(counts_.free) + " free (P2)");
  }
  return OkStatus();
}

std::string GranulePool::Dump() const {
  std::string out = Name(*this) + ": " + std::to_string(counts_.total) + " x " +
                    std::to_string(options_.granule_bytes) + " bytes; free " +
                    std::to_string(counts_.free) + " (committed " +
                    std::to_string(counts_.committed) + "), pinned " +
                    std::to_string(counts_.pinned) + ", mapped " + std::to_string(counts_.mapped) +
                    ", retiring " + std::to_string(counts_.retiring) + "; owners";
  for (size_t o = 0; o < kOwnerCount; ++o) {
    out += " " + std::string(OwnerName(static_cast<Owner>(o))) + " " +
           std::to_string(counts_.by_owner[o]);
  }
  return out + "\n";
}

}  // namespace weir
