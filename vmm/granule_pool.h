// GranulePool: owner of all granules of a tier.
//
// Every granule is created at start (creating and releasing driver allocations is two orders of
// magnitude dearer than mapping them, docs/performance.md), then lent to owners and taken back.
// Invariants, checked by CheckIntegrity():
//   G1 a granule is in one state and on one list;   G2 sum over states = sum over owners = total;
//   P2 free - committed >= 0: an allocation from a commitment cannot fail;
//   P3 a granule whose fence is pending is not handed out.
// Engine thread only.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include <boost/intrusive/list.hpp>

#include "vmm/driver.h"
#include "vmm/granule.h"

namespace weir {

class GranulePool;

// Represents a move-only right to |count| granules: what was committed can be allocated without
// failing. The destructor refunds what is left.
class Commitment {
 public:
  Commitment() = default;
  ~Commitment();
  Commitment(Commitment&& other) noexcept;
  Commitment& operator=(Commitment&& other) noexcept;
  uint32_t count() const { return count_; }
  // Gives |n| (at most count()) back to the pool.
  void Refund(uint32_t n);

 private:
  friend class GranulePool;
  Commitment(GranulePool* pool, uint32_t count) : pool_(pool), count_(count) {}
  GranulePool* pool_ = nullptr;
  uint32_t count_ = 0;
};

using LoanId = StrongId<struct LoanIdTag>;

// Granules of one owner lent to another, callable (protocol: Zircon's PmmNode loans).
//   kActive  -- CancelLoan --> kCalled (borrower takes no more, hands back) -- EndLoan --> kEnded
enum class LoanState : uint8_t { kActive, kCalled, kEnded };

struct PoolCounts {
  uint32_t total = 0, free = 0, committed = 0, pinned = 0, mapped = 0, retiring = 0;
  std::array<uint32_t, kOwnerCount> by_owner{};
};

class GranulePool {
 public:
  struct Options {
    Tier tier = Tier::kHbm;
    uint64_t granule_bytes = 0;  // a power of two, a multiple of the driver's granularity
    uint32_t count = 0;          // granules to create
  };
  // Creates all granules. kNoMemory (nothing left behind) when the tier cannot hold them;
  // kInvalidArgument names the accepted sizes.
  static Result<std::unique_ptr<GranulePool>> Create(Driver& driver, const Options& options);
  // Every granule must be free or retiring; waits for pending fences, then releases.
  ~GranulePool();
  GranulePool(const GranulePool&) = delete;
  GranulePool& operator=(const GranulePool&) = delete;

  Tier tier() const { return options_.tier; }
  uint64_t granule_bytes() const { return options_.granule_bytes; }
  const PoolCounts& counts() const { return counts_; }
  // Free granules nobody has committed: what Commit and Allocate can still give. Polls fences.
  uint32_t Available();

  Result<Commitment> Commit(uint32_t n);
  // A free granule for |owner|, state kPinned. kNoMemory when none is available.
  Result<GranuleId> Allocate(Owner owner);
  // Cannot fail while commitment.count() > 0 (checked).
  GranuleId AllocateCommitted(Commitment& commitment, Owner owner);
  // Returns a kPinned granule. With a pending |fence| it retires first. Ends its loan share.
  void Free(GranuleId id, Fence fence = {});
  // Hands a granule over without freeing it (the ring takes a weight's granule, say).
  void ChangeOwner(GranuleId id, Owner owner);

  // Lends |n| granules that |lender| gave up to |borrower|: the pool records who may call them
  // back. Takes available granules; kNoMemory when there are too few.
  Result<LoanId> BeginLoan(Owner lender, Owner borrower, std::vector<GranuleId>* granules,
                           uint32_t n);
  // Calls the loan: the borrower must Free the granules. kBadState unless kActive.
  Status CancelLoan(LoanId loan);
  // kShouldWait while the borrower still holds some, naming how many.
  Status EndLoan(LoanId loan);
  Result<LoanState> loan_state(LoanId loan) const;

  const Granule& granule(GranuleId id) const { return granules_[id.value]; }
  // kRetiring granules whose fence completed become free. A failed event is reported and its
  // granule stays retired for good (its bytes may still be written).
  Status PollFences();
  // Re-derives every count from the granules (O(n)).
  Status CheckIntegrity() const;
  std::string Dump() const;
  // Tells the trace what there is, as creation and allocation (trace_format.h, kSnapshotBegin).
  void TraceState() const;

 private:
  friend class Commitment;
  friend class AddressSpace;  // map_count and the kPinned <-> kMapped transitions
  // ... implementation members are below this line; see granule_pool.cc
  using List = boost::intrusive::list<
      Granule, boost::intrusive::member_hook<Granule, Granule::ListHook, &Granule::list_hook>>;
  struct Loan {
    Owner lender, borrower;
    LoanState state;
    uint32_t outstanding;
  };
  GranulePool(Driver& driver, const Options& options) : driver_(driver), options_(options) {}
  void Move(Granule& g, GranuleState to);
  void SetOwner(Granule& g, Owner owner);
  GranuleId Take(Owner owner);
  void RefundCommitted(uint32_t n);
  void OnMapped(GranuleId id);
  void OnUnmapped(GranuleId id);

  Driver& driver_;
  Options options_;
  std::vector<Granule> granules_;  // never resized after Create: hooks point into it
  std::array<List, 4> lists_;      // by GranuleState
  std::vector<LoanId> granule_loan_;
  std::vector<Loan> loans_;
  std::vector<bool> fence_failed_;  // by granule: retired for good
  Status unreported_;               // a failed fence seen by Available, for the next PollFences
  PoolCounts counts_;
};

}  // namespace weir
