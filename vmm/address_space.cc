#include "vmm/address_space.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <unordered_map>

#include "vmm/checked_math.h"
#include "vmm/persist.h"
#include "vmm/trace.h"

namespace weir {
namespace {

using Place = std::pair<RegionId, SlotIndex>;

// Granules that MapFresh will take are known only when the plan is applied; until then they are
// numbered from here.
constexpr uint32_t kFreshBase = 0x80000000U;

// Where an operation that is no unmap maps.
Place MappedPlace(const RemapOp& op) {
  if (const auto* map = std::get_if<MapFreshOp>(&op)) return {map->region, map->slot};
  if (const auto* alias = std::get_if<MapAliasOp>(&op)) return {alias->region, alias->slot};
  const auto& foreign = std::get<MapForeignOp>(op);
  return {foreign.region, foreign.slot};
}

}  // namespace

// A driver call that was made, and what takes it back.
struct AddressSpace::Undo {
  enum class Kind : uint8_t { kMapped, kUnmapped } kind;
  Place place;
  GranuleId granule;
};

// The slots a plan touched, over the regions' own tables. While a plan is applied this follows the
// driver call by call, so that it is the truth at every moment, also after a failed undo.
struct AddressSpace::Scratch {
  const AddressSpace& space;
  std::map<Place, GranuleId> slots;

  GranuleId At(Place p) const {
    const auto it = slots.find(p);
    return it != slots.end() ? it->second : space.regions_[p.first.value].slots[p.second.value];
  }
  void Set(Place p, GranuleId g) { slots[p] = g; }
};

// --- Construction
// ----------------------------------------------------------------------------------

Result<std::unique_ptr<AddressSpace>> AddressSpace::Create(Driver& driver, GranulePool& pool,
                                                           const Options& options) {
  std::unique_ptr<AddressSpace> space(new AddressSpace(driver, pool, options));
  if (options.poison_freed || options.scrub_on_owner_change) {
    space->service_stream_ = WEIR_TRY(driver.CreateStream("weir-scrub"));
  }
  if (options.poison_freed) {
    space->window_ = WEIR_TRY(driver.Reserve(pool.granule_bytes(), pool.granule_bytes()));
  }
  return space;
}

AddressSpace::~AddressSpace() {
  const auto complain = [](const std::string& what, const Status& s) {
    if (!s.ok()) std::fprintf(stderr, "weir: %s: %s\n", what.c_str(), s.ToString().c_str());
  };
  // What is still mapped goes as one plan, so that a trace shows no unmap without a cause (T1).
  const auto cause = static_cast<uint8_t>(RemapCause::kShutdown);
  const uint64_t plan = commits_ + rollbacks_ + 1;
  uint64_t left = 0;
  for (const Region& region : regions_) left += region.mapped;
  uint64_t freed = 0;
  if (left > 0) TraceEmit(TraceType::kPlanBegin, cause, plan, left);
  for (Region& region : regions_) {
    for (uint32_t i = 0; i < region.slots.size(); ++i) {
      const GranuleId g = region.slots[i];
      if (!g.valid()) continue;
      complain("unmapping " + SlotName(region.id, SlotIndex(i)),
               Persist([&] { return DriverUnmap(region.id, SlotIndex(i), g); }));
      if (IsForeign(g)) continue;
      pool_.OnUnmapped(g);
      if (pool_.granule(g).map_count != 0) continue;
      pool_.Free(g);
      ++freed;
    }
    complain("freeing region " + region.name, Persist([&] { return driver_.Free(region.base); }));
  }
  if (left > 0) TraceEmit(TraceType::kPlanCommit, cause, plan, 0, freed, 0);
  if (window_used_) {
    complain("emptying the poison window", Persist([&] { return driver_.Unmap(window_); }));
  }
  if (window_ != 0) complain("freeing the poison window", driver_.Free(window_));
  if (service_stream_.valid()) {
    complain("ending the scrub stream", driver_.DestroyStream(service_stream_));
  }
}

Result<RegionId> AddressSpace::Reserve(std::string name, uint64_t bytes) {
  const uint64_t slot = pool_.granule_bytes();
  const auto rounded = CheckedAlignUp(bytes, slot);
  if (bytes == 0 || !rounded || *rounded / slot >= SlotIndex::kInvalidValue) {
    return InvalidArgument("region " + name + " of " + std::to_string(bytes) +
                           " bytes; accepted are 1 to 2^32 - 2 granules of " +
                           std::to_string(slot));
  }
  Region region;
  region.base = WEIR_TRY(driver_.Reserve(*rounded, slot));
  region.id = RegionId(static_cast<uint32_t>(regions_.size()));
  region.name = std::move(name);
  region.slot_bytes = slot;
  region.slots.resize(*rounded / slot);
  regions_.push_back(std::move(region));
  broken_.push_back(false);
  return regions_.back().id;
}

std::string AddressSpace::SlotName(RegionId region, SlotIndex slot) const {
  if (region.value >= regions_.size()) return "region " + std::to_string(region.value);
  return regions_[region.value].name + "[" + std::to_string(slot.value) + "]";
}

// A number names one allocation, as long as it is mapped anywhere.
Status AddressSpace::CheckForeign(const ForeignGranule& granule) const {
  if (!granule.alloc.valid() || granule.number >= kForeignBit || granule.owner == Owner::kNone) {
    return InvalidArgument("a foreign granule needs an allocation, an owner and a number below " +
                           std::to_string(kForeignBit));
  }
  const auto it = foreign_.find(ForeignId(granule.number));
  if (it == foreign_.end() || it->second.granule == granule) return OkStatus();
  return InvalidArgument("foreign granule " + std::to_string(granule.number) +
                         " is another allocation already");
}

// --- Planning
// --------------------------------------------------------------------------------------

Status AddressSpace::CheckOps(const RemapPlan& plan, Scratch* scratch) const {
  uint32_t fresh = 0;
  std::map<uint32_t, ForeignGranule> foreign_seen;  // by number, of this plan
  for (size_t i = 0; i < plan.ops.size(); ++i) {
    const auto refuse = [&](StatusCode code, const char* verb, RegionId r, SlotIndex s,
                            const std::string& why) {
      return Status(code, "operation " + std::to_string(i) + " (" + verb + " " + SlotName(r, s) +
                              "): " + why);
    };
    const auto check_place = [&](const char* verb, RegionId r, SlotIndex s) -> Status {
      if (r.value >= regions_.size()) {
        return refuse(StatusCode::kInvalidArgument, verb, r, s,
                      "there are " + std::to_string(regions_.size()) + " regions");
      }
      const Region& region = regions_[r.value];
      if (s.value >= region.slots.size()) {
        return refuse(StatusCode::kInvalidArgument, verb, r, s,
                      "the region has " + std::to_string(region.slots.size()) + " slots");
      }
      if (broken_[r.value]) {
        return refuse(StatusCode::kBadState, verb, r, s,
                      "an earlier plan could not be undone here");
      }
      return OkStatus();
    };
    const RemapOp& op = plan.ops[i];
    if (const auto* unmap = std::get_if<UnmapOp>(&op)) {
      WEIR_TRY(check_place("unmap", unmap->region, unmap->slot));
      const Place place{unmap->region, unmap->slot};
      if (!scratch->At(place).valid()) {
        return refuse(StatusCode::kInvalidArgument, "unmap", unmap->region, unmap->slot,
                      "the slot is not mapped");
      }
      scratch->Set(place, GranuleId());
      continue;
    }
    const auto* map = std::get_if<MapFreshOp>(&op);
    const auto* alias = std::get_if<MapAliasOp>(&op);
    const auto* foreign = std::get_if<MapForeignOp>(&op);
    const char* verb = alias != nullptr ? "alias" : "map";
    const Place place = MappedPlace(op);
    WEIR_TRY(check_place(verb, place.first, place.second));
    if (scratch->At(place).valid()) {
      return refuse(StatusCode::kInvalidArgument, verb, place.first, place.second,
                    "the slot is mapped already");
    }
    if (foreign != nullptr) {
      const ForeignGranule& granule = foreign->granule;
      Status usable = CheckForeign(granule);
      if (foreign_seen.try_emplace(granule.number, granule).first->second != granule) {
        usable = InvalidArgument("its number names another allocation of this plan");
      }
      if (!usable.ok()) {
        return refuse(usable.code(), verb, place.first, place.second, usable.message());
      }
      scratch->Set(place, ForeignId(foreign->granule.number));
      continue;
    }
    if (map != nullptr) {
      if (map->owner == Owner::kNone || static_cast<size_t>(map->owner) >= kOwnerCount) {
        return refuse(StatusCode::kInvalidArgument, verb, place.first, place.second,
                      "a new granule needs an owner");
      }
      scratch->Set(place, GranuleId(kFreshBase + fresh++));
      continue;
    }
    WEIR_TRY(check_place(verb, alias->source_region, alias->source_slot));
    const GranuleId source = scratch->At({alias->source_region, alias->source_slot});
    if (!source.valid()) {
      return refuse(
          StatusCode::kInvalidArgument, verb, place.first, place.second,
          "its source " + SlotName(alias->source_region, alias->source_slot) + " is not mapped");
    }
    scratch->Set(place, source);
  }
  const uint32_t available = pool_.Available();
  if (fresh > available) {
    return NoMemory("the plan takes " + std::to_string(fresh) + " granules, " +
                    std::to_string(available) + " are available, " +
                    std::to_string(fresh - available) + " are missing");
  }
  return OkStatus();
}

Status AddressSpace::Validate(RemapPlan& plan) {
  Scratch scratch{*this, {}};
  WEIR_TRY(CheckOps(plan, &scratch));
  if (!WEIR_TRY(plan.fence.IsComplete(driver_))) {
    return ShouldWait("work that can reach the plan's slots is still running");
  }
  return OkStatus();
}

// --- Committing
// ------------------------------------------------------------------------------------

Tier AddressSpace::TierOf(GranuleId granule) const {
  return IsForeign(granule) ? foreign(granule).tier : pool_.tier();
}

void AddressSpace::TraceMap(RegionId region, SlotIndex slot, GranuleId granule, bool alias) const {
  const auto tier = static_cast<uint8_t>(TierOf(granule));
  if (IsForeign(granule)) {
    TraceEmit(TraceType::kMap, tier, region.value, slot.value, foreign(granule).number,
              MapKind::kForeign, foreign(granule).owner);
  } else {
    TraceEmit(TraceType::kMap, tier, region.value, slot.value, granule.value,
              alias ? MapKind::kAlias : MapKind::kOnly, pool_.granule(granule).owner);
  }
}

Status AddressSpace::DriverMap(RegionId region, SlotIndex slot, GranuleId granule, bool alias) {
  const AllocId alloc = IsForeign(granule) ? foreign(granule).alloc : pool_.granule(granule).alloc;
  WEIR_TRY(driver_.Map(regions_[region.value].SlotAddress(slot), alloc));
  TraceMap(region, slot, granule, alias);
  return OkStatus();
}

Status AddressSpace::DriverUnmap(RegionId region, SlotIndex slot, GranuleId granule) {
  WEIR_TRY(driver_.Unmap(regions_[region.value].SlotAddress(slot)));
  TraceEmit(TraceType::kUnmap, static_cast<uint8_t>(TierOf(granule)), region.value, slot.value,
            IsForeign(granule) ? foreign(granule).number : granule.value);
  return OkStatus();
}

Status AddressSpace::Apply(const RemapPlan& plan, const std::vector<GranuleId>& fresh, Scratch* now,
                           std::vector<Undo>* undo) {
  size_t next_fresh = 0;
  for (const RemapOp& op : plan.ops) {
    if (const auto* unmap = std::get_if<UnmapOp>(&op)) {
      const Place place{unmap->region, unmap->slot};
      const GranuleId granule = now->At(place);
      WEIR_TRY(DriverUnmap(place.first, place.second, granule));
      undo->push_back({Undo::Kind::kUnmapped, place, granule});
      now->Set(place, GranuleId());
      continue;
    }
    const Place place = MappedPlace(op);
    const auto* alias = std::get_if<MapAliasOp>(&op);
    GranuleId granule;
    if (alias != nullptr) {
      granule = now->At({alias->source_region, alias->source_slot});
    } else if (const auto* foreign = std::get_if<MapForeignOp>(&op)) {
      granule = ForeignId(foreign->granule.number);
      foreign_.try_emplace(granule, Foreign{foreign->granule, 0});
    } else {
      granule = fresh[next_fresh++];
    }
    WEIR_TRY(DriverMap(place.first, place.second, granule, alias != nullptr));
    undo->push_back({Undo::Kind::kMapped, place, granule});
    now->Set(place, granule);
  }
  WEIR_TRY(GrantAccess(plan, *now));
  return Scrub(fresh, *now);
}

// One SetAccess for each run of neighbouring slots that the plan left mapped. (On today's CUDA
// driver a run costs as much as its granules one by one; on the CPU it saves system calls.)
Status AddressSpace::GrantAccess(const RemapPlan& plan, const Scratch& now) {
  std::vector<Place> mapped;
  mapped.reserve(plan.ops.size());
  for (const RemapOp& op : plan.ops) {
    if (std::holds_alternative<UnmapOp>(op)) continue;
    const Place place = MappedPlace(op);
    if (now.At(place).valid()) mapped.push_back(place);
  }
  std::sort(mapped.begin(), mapped.end());
  mapped.erase(std::unique(mapped.begin(), mapped.end()), mapped.end());
  for (size_t i = 0; i < mapped.size();) {
    size_t end = i + 1;
    const bool foreign = IsForeign(now.At(mapped[i]));
    while (end < mapped.size() && mapped[end].first == mapped[i].first &&
           mapped[end].second.value == mapped[end - 1].second.value + 1 &&
           IsForeign(now.At(mapped[end])) == foreign) {
      ++end;
    }
    WEIR_TRY(SetSlotAccess(mapped[i].first, mapped[i].second, end - i, foreign));
    i = end;
  }
  return OkStatus();
}

// What is not ours is not written to.
Status AddressSpace::SetSlotAccess(RegionId region, SlotIndex first, uint64_t slots, bool foreign) {
  const Region& r = regions_[region.value];
  return driver_.SetAccess(r.SlotAddress(first), slots * r.slot_bytes,
                           foreign ? Access::kRead : Access::kReadWrite);
}

// Zeroes new granules that still hold another owner's bytes, through any slot that shows them. A
// granule that the plan unmapped again is not reachable and keeps its mark.
Status AddressSpace::Scrub(const std::vector<GranuleId>& fresh, const Scratch& now) {
  if (!options_.scrub_on_owner_change) return OkStatus();
  std::vector<GranuleId> waiting;
  for (const GranuleId id : fresh) {
    const Granule& g = pool_.granule(id);
    if (g.dirty && g.last_owner != g.owner) waiting.push_back(id);
  }
  std::sort(waiting.begin(), waiting.end());
  bool any = false;
  Status outcome;
  for (const auto& [place, granule] : now.slots) {
    const auto it = std::lower_bound(waiting.begin(), waiting.end(), granule);
    if (it == waiting.end() || *it != granule) continue;
    waiting.erase(it);  // once, however many aliases there are
    outcome = driver_.Fill(service_stream_, regions_[place.first.value].SlotAddress(place.second),
                           std::byte{0}, pool_.granule_bytes());
    if (!outcome.ok()) break;
    any = true;
  }
  if (!any) return outcome;
  // Also after a failure: the plan is then undone, and nothing may still be writing (M2).
  Status written = driver_.Wait(WEIR_TRY(driver_.Record(service_stream_)));
  return outcome.ok() ? written : outcome;
}

// Undoes in reverse order. Goes on after a failure: what cannot be restored stays as it is, |now|
// says how, and its region is broken.
Status AddressSpace::RollBack(std::vector<Undo>& undo, Scratch* now) {
  Status first;
  for (auto it = undo.rbegin(); it != undo.rend(); ++it) {
    const RegionId region = it->place.first;  // not a structured binding: clang cannot capture it
    const SlotIndex slot = it->place.second;
    Status s;
    if (it->kind == Undo::Kind::kMapped) {
      if (now->At(it->place) != it->granule) continue;  // a later undo of this slot failed
      s = Persist([&] { return DriverUnmap(region, slot, it->granule); });
      if (s.ok()) now->Set(it->place, GranuleId());
    } else if (now->At(it->place).valid()) {
      s = BadState("the slot could not be emptied");
    } else {
      // Was declared an alias, or is one for a moment.
      s = Persist([&] { return DriverMap(region, slot, it->granule, /*alias=*/true); });
      if (s.ok()) {
        now->Set(it->place, it->granule);
        s = Persist([&] { return SetSlotAccess(region, slot, 1, IsForeign(it->granule)); });
      }
    }
    if (s.ok()) continue;
    broken_[region.value] = true;
    if (first.ok()) first = s.WithContext("undoing " + SlotName(region, slot));
  }
  return first;
}

// Makes |now| the regions' tables; granules that no slot holds any more go back to the pool.
// Cannot fail. Returns how many were freed.
uint32_t AddressSpace::Publish(const Scratch& now) {
  std::vector<GranuleId> touched;
  // Maps first: a granule that only moves never looks unmapped.
  for (const auto& [place, granule] : now.slots) {
    Region& region = regions_[place.first.value];
    if (!granule.valid() || granule == region.slots[place.second.value]) continue;
    if (IsForeign(granule)) {
      ++foreign_.at(granule).mappings;
    } else {
      pool_.OnMapped(granule);
    }
  }
  for (const auto& [place, granule] : now.slots) {
    Region& region = regions_[place.first.value];
    GranuleId& slot = region.slots[place.second.value];
    if (slot == granule) continue;
    if (slot.valid()) {
      if (IsForeign(slot)) {
        --foreign_.at(slot).mappings;
      } else {
        pool_.OnUnmapped(slot);
        touched.push_back(slot);
      }
      --region.mapped;
    }
    if (granule.valid()) ++region.mapped;
    slot = granule;
  }
  // Also those that a plan mapped which was undone.
  std::erase_if(foreign_, [](const auto& entry) { return entry.second.mappings == 0; });
  std::sort(touched.begin(), touched.end());
  touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
  std::vector<GranuleId> freed;
  for (const GranuleId g : touched) {
    if (pool_.granule(g).state == GranuleState::kPinned) freed.push_back(g);
  }
  if (options_.poison_freed) Poison(freed);
  for (const GranuleId g : freed) pool_.Free(g);
  return static_cast<uint32_t>(freed.size());
}

// Fills freed granules with 0xFF through a window of their own. Debugging aid: what fails here is
// skipped, the plan has been committed.
void AddressSpace::Poison(const std::vector<GranuleId>& freed) {
  for (const GranuleId g : freed) {
    if (window_used_) window_used_ = !driver_.Unmap(window_).ok();
    if (window_used_ || !driver_.Map(window_, pool_.granule(g).alloc).ok()) continue;
    if (driver_.SetAccess(window_, pool_.granule_bytes(), Access::kReadWrite).ok() &&
        driver_.Fill(service_stream_, window_, std::byte{0xFF}, pool_.granule_bytes()).ok()) {
      if (Result<EventId> filled = driver_.Record(service_stream_); filled.ok()) {
        (void)driver_.Wait(*filled);
      }
    }
    window_used_ = !driver_.Unmap(window_).ok();
  }
}

Status AddressSpace::Commit(RemapPlan& plan) {
  WEIR_TRY(Validate(plan));
  const uint64_t id = commits_ + rollbacks_ + 1;
  const auto cause = static_cast<uint8_t>(plan.cause);
  const TimeNs begin = TraceEnabled(TraceType::kPlanCommit) ? driver_.Now() : 0;
  TraceEmit(TraceType::kPlanBegin, cause, id, plan.ops.size());

  std::vector<GranuleId> fresh;
  for (const RemapOp& op : plan.ops) {
    const auto* map = std::get_if<MapFreshOp>(&op);
    if (map == nullptr) continue;
    Result<GranuleId> granule = pool_.Allocate(map->owner);
    WEIR_CHECK(granule.ok(), "a validated plan finds its granules");
    fresh.push_back(*granule);
  }
  Scratch now{*this, {}};
  std::vector<Undo> undo;
  Status applied = Apply(plan, fresh, &now, &undo);
  Status undone;
  if (!applied.ok()) undone = RollBack(undo, &now);
  const uint32_t freed = Publish(now);
  // In reverse, so that the free list is as it was. After a commit: granules that the plan itself
  // unmapped again.
  uint32_t unused = 0;
  for (auto it = fresh.rbegin(); it != fresh.rend(); ++it) {
    if (pool_.granule(*it).state != GranuleState::kPinned) continue;
    pool_.Free(*it);
    ++unused;
  }
  const TimeNs took = begin != 0 ? driver_.Now() - begin : 0;
#ifdef WEIR_VALIDATE
  const Status integrity = CheckIntegrity();
  WEIR_CHECK(integrity.ok(), integrity.ToString().c_str());
#endif
  if (applied.ok()) {
    ++commits_;
    plan.granules_taken = static_cast<uint32_t>(fresh.size()) - unused;
    plan.granules_freed = freed;
    TraceEmit(TraceType::kPlanCommit, cause, id, plan.granules_taken, freed, took);
    return OkStatus();
  }
  ++rollbacks_;
  TraceEmit(TraceType::kPlanRollback, cause, id, applied.code(), undone.ok() ? 0 : 1, took);
  if (undone.ok()) return applied;
  return BadState("plan failed (" + applied.ToString() + ") and could not be undone (" +
                  undone.ToString() + "); the region is out of use");
}

// --- Inspection
// ------------------------------------------------------------------------------------

Status AddressSpace::CheckIntegrity() const {
  std::unordered_map<GranuleId, uint32_t> mappings;
  for (const Region& region : regions_) {
    uint32_t mapped = 0;
    for (const GranuleId g : region.slots) {
      if (!g.valid()) continue;
      ++mapped;
      ++mappings[g];
    }
    if (mapped != region.mapped) {
      return BadState("region " + region.name + " counts " + std::to_string(region.mapped) +
                      " mapped slots and has " + std::to_string(mapped));
    }
  }
  size_t foreign = 0;
  for (const auto& [g, n] : mappings) {
    if (IsForeign(g)) {
      ++foreign;
      const auto it = foreign_.find(g);
      if (it == foreign_.end() || it->second.mappings != n) {
        return BadState("foreign granule " + std::to_string(g.value & ~kForeignBit) + " is in " +
                        std::to_string(n) + " slots and counts another number");
      }
      continue;
    }
    if (pool_.granule(g).map_count != n) {
      return BadState("granule " + std::to_string(g.value) + " is in " + std::to_string(n) +
                      " slots and counts " + std::to_string(pool_.granule(g).map_count));
    }
  }
  if (foreign != foreign_.size()) {
    return BadState(std::to_string(foreign_.size()) +
                    " foreign granules are kept, the slots hold " + std::to_string(foreign));
  }
  if (mappings.size() - foreign != pool_.counts().mapped) {
    return BadState("the pool counts " + std::to_string(pool_.counts().mapped) +
                    " mapped granules, the slots hold " +
                    std::to_string(mappings.size() - foreign));
  }
  return pool_.CheckIntegrity();
}

void AddressSpace::TraceState() const {
  pool_.TraceState();
  const auto tier = static_cast<uint8_t>(pool_.tier());
  const auto cause = static_cast<uint8_t>(RemapCause::kLoad);
  std::vector<GranuleId> seen;
  std::vector<bool> mapped(pool_.counts().total, false);
  TraceEmit(TraceType::kPlanBegin, cause, 0);
  for (const Region& region : regions_) {
    for (uint32_t i = 0; i < region.slots.size(); ++i) {
      const GranuleId g = region.slots[i];
      if (!g.valid()) continue;
      TraceMap(region.id, SlotIndex(i), g, !IsForeign(g) && mapped[g.value]);
      if (IsForeign(g)) continue;
      if (!mapped[g.value]) seen.push_back(g);
      mapped[g.value] = true;
    }
  }
  for (const GranuleId g : seen) {
    TraceEmit(TraceType::kGranuleState, tier, g.value, GranuleState::kPinned, GranuleState::kMapped,
              pool_.granule(g).owner);
  }
  TraceEmit(TraceType::kPlanCommit, cause, 0, seen.size());
}

std::string AddressSpace::Dump() const {
  std::string out;
  for (const Region& region : regions_) {
    char line[160];
    std::snprintf(line, sizeof line, "region %u %s: base %#llx, %u of %zu slots mapped%s\n",
                  region.id.value, region.name.c_str(),
                  static_cast<unsigned long long>(region.base), region.mapped, region.slots.size(),
                  broken_[region.id.value] ? ", broken" : "");
    out += line;
  }
  return out + pool_.Dump();
}

}  // namespace weir
