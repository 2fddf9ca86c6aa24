#include "bench/vmm/remap_scene.h"

#include <algorithm>

namespace weir::bench {
namespace {

// Well above a GPU's L2; a CPU's streams are slower, and its pages cost time to make.
constexpr uint64_t kReadOnGpu = 768 * kMiB;
constexpr uint64_t kReadOnHost = 64 * kMiB;
constexpr uint64_t kCopiedOnGpu = 256 * kMiB;
constexpr uint64_t kCopiedOnHost = 64 * kMiB;
constexpr uint64_t kPiece = 32 * kMiB;  // of memory that stays mapped: the largest granule

}  // namespace

Result<std::unique_ptr<RemapScene>> RemapScene::Create(Driver& driver, uint64_t granule_bytes) {
  const uint64_t granularity = driver.properties().granularity_bytes;
  if (!IsPowerOfTwo(granule_bytes) || granule_bytes % granularity != 0 || granule_bytes > kPiece) {
    return InvalidArgument("granules of " + std::to_string(granule_bytes) +
                           " bytes; accepted are powers of two from " +
                           std::to_string(std::max(granularity, kMiB)) + " to " +
                           std::to_string(kPiece));
  }
  auto scene = std::unique_ptr<RemapScene>(new RemapScene(driver, granule_bytes));
  WEIR_TRY(scene->Init());
  return scene;
}

// Errors have nobody to go to here, and the driver gives back what is left.
RemapScene::~RemapScene() {
  (void)Clear();
  for (const VirtAddr at : mappings_) (void)driver_.Unmap(at);
  for (const VirtAddr at : reservations_) (void)driver_.Free(at);
  for (const AllocId a : allocations_) (void)driver_.Release(a);
}

Status RemapScene::Init() {
  const bool host = driver_.properties().host_addressable;
  const uint64_t copied = host ? kCopiedOnHost : kCopiedOnGpu;
  memory_.read_bytes = host ? kReadOnHost : kReadOnGpu;
  memory_.write_bytes = copied;
  memory_.piece_bytes = granule_bytes_;

  const uint64_t slots = AlignUp(kSlots * granule_bytes_, kPiece);
  near_ = WEIR_TRY(Reserve(slots + memory_.read_bytes + copied));
  memory_.read_at = near_ + slots;
  memory_.write_at = memory_.read_at + memory_.read_bytes;
  WEIR_TRY(MapMemory(Tier::kHbm, memory_.read_at, memory_.read_bytes + copied));
  far_ = WEIR_TRY(Reserve(kSlots * granule_bytes_));
  elsewhere_ = WEIR_TRY(Reserve(
      std::max((kSlots + 1) * granule_bytes_, kCrowd * driver_.properties().granularity_bytes)));
  for (uint32_t i = 0; i <= kSlots; ++i) {
    granules_.push_back(WEIR_TRY(driver_.Create(Tier::kHbm, granule_bytes_)));
    allocations_.push_back(granules_.back());
  }
  for (const Tier tier : {Tier::kPeer, Tier::kHost}) {
    const Status added = AddSource(tier, copied);
    if (added.ok()) continue;
    if (added.code() != StatusCode::kUnsupported && added.code() != StatusCode::kNoMemory) {
      return added;
    }
    lacks_.push_back("no copies from tier " + std::string(TierName(tier)) + ": " +
                     added.ToString());
  }
  return OkStatus();
}

Result<VirtAddr> RemapScene::Reserve(uint64_t bytes) {
  const VirtAddr at = WEIR_TRY(driver_.Reserve(bytes, kGiB));
  reservations_.push_back(at);
  return at;
}

Status RemapScene::MapMemory(Tier tier, VirtAddr at, uint64_t bytes) {
  for (uint64_t done = 0; done < bytes; done += kPiece) {
    const AllocId alloc = WEIR_TRY(driver_.Create(tier, kPiece));
    allocations_.push_back(alloc);
    WEIR_TRY(driver_.Map(at + done, alloc));
    mappings_.push_back(at + done);
  }
  return driver_.SetAccess(at, bytes, Access::kReadWrite);
}

Status RemapScene::AddSource(Tier tier, uint64_t bytes) {
  const VirtAddr at = WEIR_TRY(Reserve(bytes));
  WEIR_TRY(MapMemory(tier, at, bytes));
  memory_.sources.push_back({tier, at, bytes});
  return OkStatus();
}

Status RemapScene::Settle(RemapPlace place, RemapCrowd crowd) {
  slots_at_ = place == RemapPlace::kNear ? near_ : far_;
  const auto map = [&](VirtAddr at, AllocId alloc, uint64_t bytes) -> Status {
    WEIR_TRY(driver_.Map(at, alloc));
    settled_.push_back(at);
    return driver_.SetAccess(at, bytes, Access::kReadWrite);
  };
  for (uint32_t i = 0; i < kSlots; ++i) WEIR_TRY(map(slot(i), granules_[i], granule_bytes_));
  if (crowd == RemapCrowd::kAliases) {
    for (uint32_t i = 0; i <= kSlots; ++i) {
      WEIR_TRY(map(elsewhere_ + i * granule_bytes_, granules_[i], granule_bytes_));
    }
  }
  if (crowd == RemapCrowd::kMany) {
    const uint64_t bytes = driver_.properties().granularity_bytes;
    for (uint32_t i = 0; i < kCrowd; ++i) {
      crowd_.push_back(WEIR_TRY(driver_.Create(Tier::kHbm, bytes)));
      WEIR_TRY(map(elsewhere_ + i * bytes, crowd_.back(), bytes));
    }
  }
  return OkStatus();
}

Status RemapScene::Clear() {
  for (; !settled_.empty(); settled_.pop_back()) WEIR_TRY(driver_.Unmap(settled_.back()));
  for (; !crowd_.empty(); crowd_.pop_back()) WEIR_TRY(driver_.Release(crowd_.back()));
  return OkStatus();
}

}  // namespace weir::bench
