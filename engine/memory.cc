#include "engine/memory.h"

#include <algorithm>
#include <bit>

#include "vmm/trace.h"

namespace weir {
namespace {

// Weight granules should be small against a segment, or few lie wholly inside one; KV extents want
// granules of about a block. An eighth of the smallest segment satisfies both, within what the
// driver can do and the design's upper bound.
uint64_t ChooseGranule(const WeightLayout& weights, uint64_t granularity) {
  uint64_t smallest = 256 * kMiB;
  for (const auto& layer : weights.layers) {
    for (const WeightSegment& s : layer) smallest = std::min(smallest, s.bytes);
  }
  const uint64_t wanted = std::bit_floor(std::max<uint64_t>(smallest / 8, 1));
  return std::clamp<uint64_t>(wanted, granularity, std::max(granularity, 32 * kMiB));
}

bool LookupInPlace(const MemoryOptions& options) {
  return options.lookup_in_place &&
         (options.backing == BackingTier::kHost || options.backing == BackingTier::kPeer);
}

std::string Mebibytes(uint64_t bytes) {
  const uint64_t tenths = CeilDiv(bytes * 10, kMiB);
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " MiB";
}

}  // namespace

Status LoadWithLookup(bool lookup_in_place, BackingTier backing, std::unique_ptr<Memory>* memory,
                      const std::function<Status(bool lookup_in_place)>& load) {
  memory->reset();
  Status loaded = load(lookup_in_place);
  if (loaded.ok() || !lookup_in_place) return loaded;
  // Of what failed while loading only the store knows whether it was that: files fail as well.
  const Tier tier = backing == BackingTier::kPeer ? Tier::kPeer : Tier::kHost;
  const bool refused =
      *memory != nullptr ? !(*memory)->backing_refusal().ok() : IsMemoryRefusal(loaded, tier);
  if (!refused) return loaded;
  memory->reset();
  return load(false).ok() ? OkStatus() : loaded;
}

Result<std::unique_ptr<Memory>> Memory::Create(Driver& driver, const MemoryOptions& options) {
  std::unique_ptr<Memory> memory(new Memory(driver, options));
#ifdef WEIR_VALIDATE
  memory->options_.pager.verify_stripes = true;
  memory->options_.poison_freed = true;
#endif
  if (!LookupInPlace(options)) memory->options_.weights.lookup = {};
  WEIR_TRY(memory->Build());
  return memory;
}

Memory::~Memory() {
  if (!blocks_) return;
  // K3 to the end: the index forgets what is in KV before the granules go.
  std::vector<uint32_t> extents;
  std::vector<BlockMoveRequest> moves;
  (void)blocks_->VacateExtents(blocks_->VacatableExtents(), &extents, &moves);
}

Result<uint64_t> Memory::LeastAtHome(const Driver& driver, const MemoryOptions& options) {
  MemoryOptions all_home = options;
  all_home.weights.lookup = {};
  const Needs needs = WEIR_TRY(NeedsOf(driver, all_home));
  return (needs.weights + needs.scratch + needs.least_kv) * needs.granule_bytes;
}

Result<Memory::Needs> Memory::NeedsOf(const Driver& driver, const MemoryOptions& options) {
  const uint64_t granularity = driver.properties().granularity_bytes;
  const uint64_t granule = options.granule_bytes != 0 ? options.granule_bytes
                                                      : ChooseGranule(options.weights, granularity);
  if (!IsPowerOfTwo(granule) || granule % granularity != 0) {
    return InvalidArgument("granule size " + std::to_string(granule) +
                           " is not a power of two and a multiple of " +
                           std::to_string(granularity) + " bytes, this device's granularity");
  }
  const KvGeometry kv = WEIR_TRY(KvGeometry::Choose(options.kv_block_bytes, granule));
  const auto granules_for = [&](uint64_t blocks) {
    return CeilDiv(blocks, kv.blocks_per_extent) * kv.granules_per_extent;
  };
  const uint64_t least_kv = granules_for(options.kv_least_blocks);
  const uint64_t wanted_blocks = CeilDiv(options.kv_wanted_bytes, options.kv_block_bytes);
  return Needs{.granule_bytes = granule,
               .kv = kv,
               .weights = EvictionPlan::GranulesAtHome(options.weights, granule),
               .scratch = CeilDiv(options.scratch_bytes, granule),
               .least_kv = least_kv,
               .wanted_kv = std::max(granules_for(wanted_blocks), least_kv)};
}

Status Memory::Build() {
  const Needs needs = WEIR_TRY(NeedsOf(driver_, options_));
  const uint64_t granule = needs.granule_bytes;
  // A table without a whole granule is like any small tensor.
  if (needs.weights == CeilDiv(options_.weights.region_bytes, granule))
    options_.weights.lookup = {};
  const KvGeometry& geometry = needs.kv;
  const uint64_t weight_granules = needs.weights;
  const uint64_t scratch_granules = needs.scratch;
  const uint64_t least_kv = needs.least_kv;
  const uint64_t wanted_kv = needs.wanted_kv;
  const uint64_t total = options_.hbm_budget_bytes != 0
                             ? options_.hbm_budget_bytes / granule
                             : weight_granules + scratch_granules + wanted_kv;

  const bool can_evict = options_.backing != BackingTier::kNone &&
                         options_.weights.layers.size() > options_.ring_slots;
  max_granules_per_layer_ =
      can_evict ? EvictionPlan::MaxGranulesPerLayer(options_.weights, granule) : 0;
  if (can_evict) {
    max_layers_ = EvictionPlan::MaxLayers(options_.weights, granule, options_.ring_slots);
    least_layer_granules_ = EvictionPlan::LeastLayerGranules(options_.weights, granule);
  }
  const auto freed = [&](const EvictionTarget& target) -> uint64_t {
    const auto plan = EvictionPlan::Make(options_.weights, granule, target);
    return plan.ok() ? plan->freed_granules() : 0;
  };
  const auto freed_by = [&](uint32_t per_layer) {
    return freed({.granules_per_layer = per_layer, .ring_slots = options_.ring_slots});
  };
  uint64_t most_freed = max_granules_per_layer_ > 0 ? freed_by(max_granules_per_layer_) : 0;
  const uint64_t fixed = weight_granules + scratch_granules;
  if (total + most_freed < fixed + least_kv) {
    const uint64_t least = (fixed + least_kv - most_freed) * granule;
    return NoMemory("hbm_budget " + Mebibytes(total * granule) + " is too small: weights " +
                    Mebibytes(weight_granules * granule) + " (of which at most " +
                    Mebibytes(most_freed * granule) + " can be lent), step buffers " +
                    Mebibytes(scratch_granules * granule) + ", KV of one request " +
                    Mebibytes(least_kv * granule) + "; the least that runs is " + Mebibytes(least));
  }
  if (total > UINT32_MAX) return InvalidArgument("hbm_budget holds more than 2^32 granules");
  uint32_t initial = 0;
  while (total + (initial > 0 ? freed_by(initial) : 0) < fixed + least_kv) ++initial;

  pool_ = WEIR_TRY(GranulePool::Create(
      driver_,
      {.tier = Tier::kHbm, .granule_bytes = granule, .count = static_cast<uint32_t>(total)}));
  space_ = WEIR_TRY(AddressSpace::Create(driver_, *pool_, {.poison_freed = options_.poison_freed}));
  WEIR_TRY(MapScratch());
  if (options_.backing == BackingTier::kHost || options_.backing == BackingTier::kPeer) {
    const Tier tier = options_.backing == BackingTier::kHost ? Tier::kHost : Tier::kPeer;
    auto made = CreateMemoryBackingStore(driver_, tier, options_.weights.region_bytes, granule);
    if (made.ok()) {
      backing_ = std::move(*made);
      options_.pager.on_backing_refused = [this, tier](const Status& refusal) {
        DoWithoutBacking(tier, refusal);
      };
    } else if (initial == 0 && lookup_bytes() == 0 && IsMemoryRefusal(made.status(), tier)) {
      DoWithoutBacking(tier, made.status());
      most_freed = 0;
    } else {
      return made.status();
    }
  } else if (options_.backing == BackingTier::kNvme) {
    backing_ =
        WEIR_TRY(CreateFileBackingStore(driver_, options_.weights.region_bytes, options_.file));
  }
  weights_ = WEIR_TRY(WeightPager::Create(
      *space_, backing_.get(), options_.weights,
      {.granules_per_layer = initial, .ring_slots = options_.ring_slots}, options_.pager));

  // Whole layers give the granules at the edges of segments too, and a ring of one slot takes less.
  uint64_t most_lent = most_freed;
  for (const uint32_t slots : {1U, options_.ring_slots}) {
    most_lent = std::max(
        most_lent,
        freed({.placement = Placement::kLayer, .layers = max_layers_, .ring_slots = slots}));
  }
  most_kv_blocks_ =
      (total + most_lent - fixed) / geometry.granules_per_extent * geometry.blocks_per_extent;
  if (weights_->CanReadInPlace().ok()) {
    max_in_place_per_layer_ = weights_->max_granules_per_layer();
    most_lent = std::max(most_lent, freed({.placement = Placement::kInPlace,
                                           .granules_per_layer = max_in_place_per_layer_}));
  }
  const auto max_extents =
      static_cast<uint32_t>((total + most_lent - fixed) / geometry.granules_per_extent);
  kv_ = WEIR_TRY(KvArena::Create(*space_, geometry, max_extents));
  blocks_ = std::make_unique<BlockManager>(
      BlockManager::Options{.blocks_per_extent = geometry.blocks_per_extent,
                            .max_extents = max_extents,
                            .prefix_caching = options_.prefix_caching,
                            .scrub = options_.scrub_kv});
  copier_ = WEIR_TRY(BlockCopier::Create(driver_, *kv_));
  if (!options_.map_kv_at_start) return OkStatus();
  const uint64_t wanted_blocks = CeilDiv(options_.kv_wanted_bytes, options_.kv_block_bytes);
  return GrowKv(static_cast<uint32_t>(std::min(wanted_blocks, KvBlocksAt({}).value_or(0))));
}

void Memory::DoWithoutBacking(Tier tier, const Status& refusal) {
  backing_refusal_ = refusal;
  backing_.reset();
  TraceEmit(TraceType::kLink, static_cast<uint8_t>(LinkTrouble::kRefused), tier, 0, 0, 0);
  max_granules_per_layer_ = max_layers_ = least_layer_granules_ = max_in_place_per_layer_ = 0;
  if (kv_) most_kv_blocks_ = KvBlocksAt({}).value_or(0);
}

Status Memory::MapScratch() {
  scratch_ = WEIR_TRY(space_->Reserve("scratch", options_.scratch_bytes));
  RemapPlan plan;
  plan.cause = RemapCause::kLoad;
  const auto slots = static_cast<uint32_t>(space_->region(scratch_).slots.size());
  for (uint32_t i = 0; i < slots; ++i) plan.MapFresh(scratch_, SlotIndex(i), Owner::kScratch);
  return space_->Commit(plan);
}

Status Memory::backing_refusal() const {
  return backing_refusal_.ok() && backing_ ? backing_->refusal() : backing_refusal_;
}

uint64_t Memory::lookup_bytes() const {
  const uint64_t granule = pool_->granule_bytes();
  const WeightLayout& layout = options_.weights;
  return (CeilDiv(layout.region_bytes, granule) - EvictionPlan::GranulesAtHome(layout, granule)) *
         granule;
}

VirtAddr Memory::scratch() const {
  return space_->region(scratch_).base;
}

MemoryView Memory::view() const {
  const EvictionPlan& plan = weights_->planned();
  return {.granule_bytes = pool_->granule_bytes(),
          .pool = pool_->counts(),
          .granules_per_layer = plan.target().granules_per_layer,
          .evicted_granules = plan.evicted_granules(),
          .ring_granules = plan.ring_granules(),
          .kv_extents = kv_->mapped_extents(),
          .kv_capacity_blocks = blocks_->counts().capacity};
}

std::optional<uint64_t> Memory::KvBlocksAt(const EvictionTarget& target) const {
  const uint64_t granule = pool_->granule_bytes();
  const auto plan = EvictionPlan::Make(options_.weights, granule, target);
  const uint64_t have = pool_->counts().total;
  const uint64_t fixed =
      uint64_t{plan.ok() ? plan->held_granules()
                         : EvictionPlan::GranulesAtHome(options_.weights, granule)} +
      space_->region(scratch_).slots.size();
  if (have < fixed) return std::nullopt;
  const KvGeometry& g = kv_->geometry();
  return (have - fixed) / g.granules_per_extent * g.blocks_per_extent;
}

Status Memory::GrowKv(uint32_t blocks) {
  const auto n = static_cast<uint32_t>(CeilDiv(blocks, kv_->geometry().blocks_per_extent));
  std::vector<uint32_t> extents;
  Status status = kv_->Grow(n, &extents);
  for (const uint32_t e : extents) blocks_->AddExtent(e);
  return status;
}

Status Memory::MoveBorder(const EvictionTarget& target, const KvHolder& holder) {
  WEIR_TRY(ReleaseVacated());
  WEIR_TRY(VacateKvFor(target, holder));
  WEIR_TRY(ReleaseVacated());
  return weights_->Apply(target);
}

Status Memory::BeginMove(const EvictionTarget& target, const EvictionTarget& goal,
                         const KvHolder& holder) {
  WEIR_TRY(ReleaseVacated());
  // KV would give up a part, and get it back when the rest is refused, for ever.
  const uint32_t all = WEIR_TRY(ExtentsFor(goal));
  if (all > blocks_->VacatableExtents()) {
    return NoMemory("the way to the border takes " + std::to_string(all) +
                    " KV extents, used blocks leave " +
                    std::to_string(blocks_->VacatableExtents()));
  }
  WEIR_TRY(VacateKvFor(target, holder));
  WEIR_TRY(ReleaseVacated());
  return weights_->BeginTransition(target);
}

void Memory::VacateAhead(const EvictionTarget& following) {
  const Result<uint32_t> n = ExtentsFor(following);
  if (!n.ok() || *n == 0 || !vacated_.empty() || blocks_->UnusedExtents() < *n) return;
  std::vector<BlockMoveRequest> none;
  if (!blocks_->VacateExtents(*n, &vacated_, &none).ok()) return;
  WEIR_CHECK(none.empty(), "unused extents leave no block to move");
  vacated_until_ = weights_->stats().steps + weights_->steps_under_way();
}

Result<uint32_t> Memory::ExtentsFor(const EvictionTarget& target) const {
  const EvictionPlan next =
      WEIR_TRY(EvictionPlan::Make(weights_->layout(), pool_->granule_bytes(), target));
  const uint64_t weights = next.held_granules();
  (void)pool_->Available();  // looks which granules have become free
  // What a move that did not begin has committed is free for this one.
  const PoolCounts& counts = pool_->counts();
  const uint64_t available = uint64_t{counts.by_owner[static_cast<size_t>(Owner::kWeights)]} +
                             counts.by_owner[static_cast<size_t>(Owner::kRing)] + counts.free;
  if (weights <= available) return 0;
  return static_cast<uint32_t>(
      CeilDiv(weights - available, uint64_t{kv_->geometry().granules_per_extent}));
}

Result<uint32_t> Memory::KvGranulesFor(const EvictionTarget& target) const {
  return WEIR_TRY(ExtentsFor(target)) * kv_->geometry().granules_per_extent;
}

Status Memory::VacateKvFor(const EvictionTarget& target, const KvHolder& holder) {
  const uint32_t n = WEIR_TRY(ExtentsFor(target));
  if (n == 0) return OkStatus();
  if (blocks_->UnusedExtents() < n) holder.rest();
  std::vector<BlockMoveRequest> requests;
  WEIR_TRY(blocks_->VacateExtents(n, &vacated_, &requests));
  vacated_until_ = weights_->stats().steps + weights_->steps_under_way();
  holder.patch(requests);
  const Status copied = CopyBlocks(requests);
  if (copied.ok()) return copied;
  for (const BlockMoveRequest& m : requests) blocks_->Distrust(m.to);
  holder.lost();
  for (const uint32_t e : vacated_) blocks_->AddExtent(e);
  vacated_.clear();
  return copied;
}

Status Memory::ReleaseVacated() {
  if (vacated_.empty()) return OkStatus();
  if (weights_->stats().steps < vacated_until_) {
    return ShouldWait("steps are under way that may still use what KV has given up");
  }
  const TimeNs begin = driver_.Now();
  const Status released = kv_->Shrink(vacated_, Fence());
  if (released.ok()) {
    release_ns_per_granule_ =
        static_cast<double>(driver_.Now() - begin) /
        static_cast<double>(vacated_.size() * kv_->geometry().granules_per_extent);
  } else {
    // The extents are still mapped, empty, and ours to use.
    for (const uint32_t e : vacated_) blocks_->AddExtent(e);
  }
  vacated_.clear();
  return released;
}

Status Memory::CopyBlocks(const std::vector<BlockMoveRequest>& requests) {
  if (requests.empty()) return OkStatus();
  std::vector<BlockMove> moves;
  moves.reserve(requests.size());
  for (const BlockMoveRequest& m : requests) moves.push_back({m.from, m.to});
  WEIR_TRY(copier_->Move(moves));
  if (!options_.pager.verify_stripes) return OkStatus();
  std::vector<std::byte> from(options_.kv_block_bytes);
  std::vector<std::byte> to(options_.kv_block_bytes);
  for (const BlockMove& m : moves) {
    WEIR_TRY(driver_.Read(kv_->base() + m.from * kv_->block_stride(), from));
    WEIR_TRY(driver_.Read(kv_->base() + m.to * kv_->block_stride(), to));
    if (from != to) return DataLoss("KV block " + std::to_string(m.from) + " was lost in its move");
  }
  return OkStatus();
}

void Memory::TraceState() const {
  space_->TraceState();
  weights_->TraceState();
  blocks_->TraceState();
}

Status Memory::CheckIntegrity() {
  WEIR_TRY(pool_->CheckIntegrity());
  WEIR_TRY(space_->CheckIntegrity());
  WEIR_TRY(blocks_->CheckIntegrity());
  return weights_->CheckIntegrity();
}

}  // namespace weir
