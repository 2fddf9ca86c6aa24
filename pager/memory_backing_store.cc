// The backing copy in memory the copy engine can reach: LPDDR5X behind NVLink-C2C on a Grace,
// ordinary host memory behind PCIe elsewhere, or a peer GPU's HBM behind NVLink.
#include <vector>

#include "pager/backing_store.h"
#include "vmm/checked_math.h"
#include "vmm/persist.h"

namespace weir {
namespace {

class MemoryBackingStore final : public BackingStore {
 public:
  MemoryBackingStore(Driver& driver, Tier tier, uint64_t bytes, uint64_t piece_bytes)
      : driver_(driver), tier_(tier), bytes_(bytes), piece_bytes_(piece_bytes) {}

  // Undoes what Map did, also after a partial failure.
  ~MemoryBackingStore() override {
    for (size_t i = 0; i < pieces_.size(); ++i) {
      if (i < mapped_) {
        (void)Persist([&] { return driver_.Unmap(base_ + i * piece_bytes_); });
      }
      (void)Persist([&] { return driver_.Release(pieces_[i]); });
    }
    if (base_ != 0) (void)Persist([&] { return driver_.Free(base_); });
  }

  Status Map() {
    const uint64_t count = CeilDiv(bytes_, piece_bytes_);
    base_ = WEIR_TRY(driver_.Reserve(count * piece_bytes_, driver_.properties().granularity_bytes));
    for (uint64_t i = 0; i < count; ++i) {
      pieces_.push_back(WEIR_TRY(driver_.Create(tier_, piece_bytes_)));
      WEIR_TRY(driver_.Map(base_ + i * piece_bytes_, pieces_.back()));
      ++mapped_;
    }
    return driver_.SetAccess(base_, count * piece_bytes_, Access::kReadWrite);
  }

  Tier tier() const override { return tier_; }
  uint64_t bytes() const override { return bytes_; }
  uint64_t piece_bytes() const override { return piece_bytes_; }
  Result<AllocId> PieceAt(uint64_t offset) override {
    WEIR_TRY(CheckRange(offset, 1));
    return pieces_[offset / piece_bytes_];
  }

  Status Store(uint64_t offset, std::span<const std::byte> data) override {
    if (sealed_) return BadState("the backing store is sealed: weights are clean for good");
    WEIR_TRY(CheckRange(offset, data.size()));
    return driver_.Write(base_ + offset, data);
  }
  Status StoreFrom(StreamId stream, uint64_t offset, uint64_t bytes, VirtAddr src) override {
    if (sealed_) return BadState("the backing store is sealed: weights are clean for good");
    WEIR_TRY(CheckRange(offset, bytes));
    return driver_.Copy(stream, base_ + offset, src, bytes);
  }
  Status Seal() override {
    sealed_ = true;
    return OkStatus();
  }
  Status Fetch(StreamId stream, uint64_t offset, uint64_t bytes, VirtAddr dst) override {
    WEIR_TRY(CheckRange(offset, bytes));
    return driver_.Copy(stream, dst, base_ + offset, bytes);
  }
  Status Load(uint64_t offset, std::span<std::byte> out) override {
    WEIR_TRY(CheckRange(offset, out.size()));
    return driver_.Read(base_ + offset, out);
  }

 private:
  Status CheckRange(uint64_t offset, uint64_t bytes) const {
    if (offset <= bytes_ && bytes <= bytes_ - offset) return OkStatus();
    return InvalidArgument("range of " + std::to_string(bytes) + " bytes at " +
                           std::to_string(offset) + " is outside the backing store of " +
                           std::to_string(bytes_));
  }

  Driver& driver_;
  Tier tier_;
  uint64_t bytes_;
  uint64_t piece_bytes_;
  VirtAddr base_ = 0;
  std::vector<AllocId> pieces_;
  size_t mapped_ = 0;
  bool sealed_ = false;
};

}  // namespace

Result<std::unique_ptr<BackingStore>> CreateMemoryBackingStore(Driver& driver, Tier tier,
                                                               uint64_t bytes,
                                                               uint64_t piece_bytes) {
  const uint64_t granularity = driver.properties().granularity_bytes;
  if (piece_bytes == 0 || piece_bytes % granularity != 0) {
    return InvalidArgument("a backing store in pieces of " + std::to_string(piece_bytes) +
                           " bytes; accepted are multiples of " + std::to_string(granularity) +
                           ", this device's granularity");
  }
  if (bytes == 0 || !CheckedAlignUp(bytes, piece_bytes)) {
    return InvalidArgument("a backing store of " + std::to_string(bytes) + " bytes");
  }
  auto store = std::make_unique<MemoryBackingStore>(driver, tier, bytes, piece_bytes);
  const Status mapped = store->Map();
  if (!mapped.ok())
    return mapped.WithContext("backing store in " + std::string(TierName(tier)) + " memory");
  return std::unique_ptr<BackingStore>(std::move(store));
}

}  // namespace weir
