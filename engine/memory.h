// Memory: the engine's share of the device, and the border between weights and KV in it.
//
// Represents one hbm budget cut into granules: step buffers, weights (with the ring that stands in
// for what is evicted) and KV. Puts together the pool, the address space, the weight pager and the
// KV arena, and moves the border between the last two. Engine thread only.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/block_manager.h"
#include "pager/backing_store.h"
#include "pager/block_copier.h"
#include "pager/kv_arena.h"
#include "pager/weight_pager.h"
#include "vmm/address_space.h"

namespace weir {

enum class BackingTier : uint8_t { kNone, kHost, kNvme, kPeer };

struct MemoryOptions {
  uint64_t hbm_budget_bytes = 0;  // everything weir takes of the device tier; 0: no limit given
  uint64_t granule_bytes = 0;     // 0: chosen from the driver and the model
  uint64_t scratch_bytes = 0;     // step buffers of the compute back-end
  uint64_t kv_block_bytes = 0;    // one block of 16 tokens
  uint64_t kv_wanted_bytes = 0;   // an unlimited budget is weights + scratch + this much KV
  uint64_t kv_least_blocks = 1;   // a budget that cannot hold so many is refused
  WeightLayout weights;
  // The layout's lookup table is read in place of the backing copy, where that is memory and lies
  // in pieces of a granule (kHost, kPeer); else it is at home.
  bool lookup_in_place = false;
  BackingTier backing = BackingTier::kHost;
  FileBackingStoreOptions file;  // for BackingTier::kNvme
  WeightPagerOptions pager;
  bool prefix_caching = true;
  // Create maps KV up to kv_wanted_bytes, of what it has with all weights at home and never has to
  // give up: no step waits for that. For drivers whose granules take their memory when they are
  // created.
  bool map_kv_at_start = false;
  bool scrub_kv = true;  // between tenants
  bool poison_freed = false;
  uint32_t ring_slots = 2;
};

struct MemoryView {
  uint64_t granule_bytes = 0;
  PoolCounts pool;
  uint32_t granules_per_layer = 0;  // evicted now; 0 when whole layers are
  uint32_t evicted_granules = 0;
  uint32_t ring_granules = 0;
  uint32_t kv_extents = 0;
  uint64_t kv_capacity_blocks = 0;
};

// KV for a request of so many tokens (or of max_model_len) is the least that an engine runs with.
inline constexpr uint32_t kLeastRequestTokens = 256;

class Memory {
 public:
  // Evicts at once what a budget smaller than everything requires; kNoMemory with the least budget
  // that would do when even full eviction is not enough. Where the device or the system refuses
  // memory for a backing copy (nothing more can be pinned, say), here or while weights are loaded,
  // and all weights fit, they stay for good; with a lookup table in place that is an error (see
  // LoadWithLookup).
  static Result<std::unique_ptr<Memory>> Create(Driver& driver, const MemoryOptions& options);
  // The least budget, in bytes, with which all weights stay at home.
  static Result<uint64_t> LeastAtHome(const Driver& driver, const MemoryOptions& options);
  ~Memory();

  WeightPager& weights() { return *weights_; }
  KvArena& kv() { return *kv_; }
  BlockManager& blocks() { return *blocks_; }
  AddressSpace& space() { return *space_; }
  GranulePool& pool() { return *pool_; }
  VirtAddr scratch() const;
  MemoryView view() const;
  // Why there is no backing copy although one was asked for; ok if there is, or none was. Once the
  // weights are sealed it does not change.
  Status backing_refusal() const;
  // Of the weights: what is never at home, the lookup table in place. 0: nothing.
  uint64_t lookup_bytes() const;
  uint32_t ring_slots() const { return options_.ring_slots; }
  // The most stripe granules a border may take from each layer; 0 without a backing copy, or when
  // the model has no more layers than the ring has slots.
  uint32_t max_granules_per_layer() const { return max_granules_per_layer_; }
  // The most whole layers that may be away (EvictionPlan::MaxLayers), 0 in the same cases, and what
  // the layer that can give least gives.
  uint32_t max_layers() const { return max_layers_; }
  uint32_t least_layer_granules() const { return least_layer_granules_; }
  // The most granules of each layer that can be read in place; 0 where the backing copy is in no
  // memory that can be mapped at the weights' addresses.
  uint32_t max_in_place_per_layer() const { return max_in_place_per_layer_; }
  // Times fetches from the sealed backing copy into the step buffers, whose contents are lost: to
  // be called after loading, before a step is recorded. Does nothing where nothing can be evicted.
  Status MeasureLink();
  double link_bytes_per_ns() const { return link_bytes_per_ns_; }  // 0: not measured
  // Times fetches of other bytes each time, into a KV block that nobody uses, while steps run or do
  // not: bytes/ns. kShouldWait: every block is used. Other errors: the backing copy cannot be read.
  Result<double> ProbeLink();
  Tier backing_tier() const { return backing_ ? backing_->tier() : Tier::kHbm; }
  // The largest number of KV blocks that any border gives whose weights are copied; known once the
  // weights are sealed. Reading in place gives a ring's more, but only policies that say so
  // beforehand ask for it.
  uint64_t most_kv_blocks() const { return most_kv_blocks_; }
  // How many |target| gives; nothing when there is no room for the weights it keeps.
  std::optional<uint64_t> KvBlocksAt(const EvictionTarget& target) const;

  // Maps KV extents for at least |blocks| more free blocks, as far as the pool goes.
  Status GrowKv(uint32_t blocks);

  // What a moving border does to whoever holds KV blocks.
  struct KvHolder {
    // No step may be under way: used blocks are about to be moved.
    std::function<void()> rest;
    // Blocks have new places: block tables must follow.
    std::function<void(const std::vector<BlockMoveRequest>&)> patch;
    // The bytes of moved blocks were lost on the way: what is in KV cannot be trusted.
    std::function<void()> lost;
  };
  // Moves the border so that |target| is away, in whichever placement; no step is under way.
  // Evicting frees granules for KV; restoring first vacates KV extents and carries out the moves.
  // kNoMemory, nothing changed, when used KV blocks are in the way; other errors: weights and
  // border are as before.
  Status MoveBorder(const EvictionTarget& target, const KvHolder& holder);
  // The same while steps run, for what can move behind their gates: the next step begun moves
  // (WeightPager::BeginTransition). A part of the way to |goal|: where used KV blocks are in the
  // way of all of it nothing changes (kNoMemory). kShouldWait: KV has given up what coming home
  // needs; to be called again once the steps under way now have ended.
  Status BeginMove(const EvictionTarget& target, const EvictionTarget& goal,
                   const KvHolder& holder);
  // For the part after one that has begun: KV gives up what moving to |following| will need, so
  // that this takes no step of its own. Not where used blocks are in the way: that part's turn sees
  // to it.
  void VacateAhead(const EvictionTarget& following);
  // Makes granules that KV gave up free. kShouldWait while a step is under way that may use them.
  Status ReleaseVacated();
  // What that took the host the last time, for one granule; none: there was no such time.
  std::optional<double> release_ns_per_granule() const { return release_ns_per_granule_; }
  // Granules that KV has to give up before weights can move to |target|.
  Result<uint32_t> KvGranulesFor(const EvictionTarget& target) const;

  uint64_t blocks_moved() const { return copier_->blocks_moved(); }
  Status CheckIntegrity();
  // Tells the trace granules, mappings, placement and KV blocks as they are.
  void TraceState() const;

 private:
  Memory(Driver& driver, const MemoryOptions& options) : driver_(driver), options_(options) {}
  // Granules, but for the first two.
  struct Needs {
    uint64_t granule_bytes = 0;
    KvGeometry kv;
    uint64_t weights = 0, scratch = 0, least_kv = 0, wanted_kv = 0;
  };
  static Result<Needs> NeedsOf(const Driver& driver, const MemoryOptions& options);
  Status Build();
  Status MapScratch();
  // The weights fit, and stay: there is no memory for their backing copy.
  void DoWithoutBacking(Tier tier, const Status& refusal);
  Result<double> TimeFetch(uint64_t offset, uint64_t bytes, VirtAddr to);
  // Extents that KV must give up for |target|, beyond what the pool has.
  Result<uint32_t> ExtentsFor(const EvictionTarget& target) const;
  // KV gives them up.
  Status VacateKvFor(const EvictionTarget& target, const KvHolder& holder);
  Status CopyBlocks(const std::vector<BlockMoveRequest>& requests);

  Driver& driver_;
  MemoryOptions options_;
  std::unique_ptr<BackingStore> backing_;  // what it shows may be mapped until the space goes
  std::unique_ptr<GranulePool> pool_;
  std::unique_ptr<AddressSpace> space_;
  RegionId scratch_;
  Status backing_refusal_;
  std::unique_ptr<WeightPager> weights_;
  std::unique_ptr<KvArena> kv_;
  std::unique_ptr<BlockManager> blocks_;
  std::unique_ptr<BlockCopier> copier_;
  std::vector<uint32_t> vacated_;  // extents that hold nothing and are still mapped
  std::optional<double> release_ns_per_granule_;
  uint64_t vacated_until_ = 0;  // once so many steps have ended nobody can reach them
  uint64_t most_kv_blocks_ = 0;
  uint32_t max_granules_per_layer_ = 0;
  uint32_t max_layers_ = 0;
  uint32_t least_layer_granules_ = 0;
  uint32_t max_in_place_per_layer_ = 0;
  double link_bytes_per_ns_ = 0;
  uint64_t probe_offset_ = 0;
};

// |load| makes |memory| and brings the weights into it, with the lookup table in place or at home.
// In place needs memory for the backing copy: where that was refused, and only there, |load| is
// called again without.
Status LoadWithLookup(bool lookup_in_place, BackingTier backing, std::unique_ptr<Memory>* memory,
                      const std::function<Status(bool lookup_in_place)>& load);

}  // namespace weir
