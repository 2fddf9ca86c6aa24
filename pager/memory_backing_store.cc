// The backing copy in memory the copy engine can reach: LPDDR5X behind NVLink-C2C on a Grace,
// ordinary host memory behind PCIe elsewhere, or a peer GPU's HBM behind NVLink.
//
// Taking host memory is slow (a GPU pins it, a CPU touches every page), so it is taken in pieces,
// ahead of the loader, by a thread that makes no other driver calls than Create, Map and SetAccess.
// Whoever needs a piece that is not there waits for it, and sends the thread there. Under virtual
// time there is no thread: whoever needs a piece takes it.
#include <algorithm>
#include <condition_variable>
#include <thread>
#include <vector>

#include <pthread.h>

#include "pager/backing_store.h"
#include "vmm/checked_math.h"
#include "vmm/mutex.h"
#include "vmm/persist.h"

namespace weir {
namespace {

// Where the system has pages of this size for a piece, they take a hundredth of the time.
constexpr uint64_t kHugePageBytes = 2 * kMiB;

class MemoryBackingStore final : public BackingStore {
 public:
  MemoryBackingStore(Driver& driver, Tier tier, uint64_t bytes, uint64_t piece_bytes)
      : driver_(driver), tier_(tier), bytes_(bytes), piece_bytes_(piece_bytes) {}

  // Gives back what was taken, also in the middle of taking it.
  ~MemoryBackingStore() override {
    {
      MutexLock lock(mutex_);
      ending_ = true;
    }
    if (thread_.joinable()) thread_.join();
    MutexLock lock(mutex_);
    for (size_t i = 0; i < pieces_.size(); ++i) {
      if (pieces_[i].valid()) GiveBack(i, pieces_[i]);
    }
    if (base_ != 0) (void)Persist([&] { return driver_.Free(base_); });
  }

  // Takes the first piece: what is wrong with the tier as such is said now.
  Status Open() {
    const uint64_t count = CeilDiv(bytes_, piece_bytes_);
    const Result<VirtAddr> base = driver_.Reserve(
        count * piece_bytes_, std::max(driver_.properties().granularity_bytes, kHugePageBytes));
    if (!base.ok()) return base.status().WithContext(Name());
    base_ = *base;
    {
      MutexLock lock(mutex_);
      pieces_.resize(count);
    }
    WEIR_TRY(TakeOne());
    if (count > 1 && !driver_.properties().virtual_time) {
      thread_ = std::thread([this] {
        pthread_setname_np(pthread_self(), "weir-backing");
        while (TakeOne().ok()) {
        }
      });
    }
    return OkStatus();
  }

  Tier tier() const override { return tier_; }
  uint64_t bytes() const override { return bytes_; }
  uint64_t piece_bytes() const override { return piece_bytes_; }
  Result<AllocId> PieceAt(uint64_t offset) override {
    WEIR_TRY(Need(offset, 1));
    MutexLock lock(mutex_);
    return pieces_[offset / piece_bytes_];
  }

  Status Store(uint64_t offset, std::span<const std::byte> data) override {
    if (sealed_) return BadState("the backing store is sealed: weights are clean for good");
    WEIR_TRY(Need(offset, data.size()));
    return driver_.Write(base_ + offset, data);
  }
  Status StoreFrom(StreamId stream, uint64_t offset, uint64_t bytes, VirtAddr src) override {
    if (sealed_) return BadState("the backing store is sealed: weights are clean for good");
    WEIR_TRY(Need(offset, bytes));
    return driver_.Copy(stream, base_ + offset, src, bytes);
  }
  Status Seal() override {
    WEIR_TRY(Need(0, bytes_));
    sealed_ = true;
    return OkStatus();
  }
  Status Fetch(StreamId stream, uint64_t offset, uint64_t bytes, VirtAddr dst) override {
    WEIR_TRY(Need(offset, bytes));
    return driver_.Copy(stream, dst, base_ + offset, bytes);
  }
  Status Load(uint64_t offset, std::span<std::byte> out) override {
    WEIR_TRY(Need(offset, out.size()));
    return driver_.Read(base_ + offset, out);
  }
  Status refusal() const override {
    MutexLock lock(mutex_);
    return IsMemoryRefusal(failure_, tier_) ? failure_ : OkStatus();
  }

 private:
  // [offset, offset + bytes) is inside, and its pieces are there.
  Status Need(uint64_t offset, uint64_t bytes) {
    if (offset > bytes_ || bytes > bytes_ - offset) {
      return InvalidArgument("range of " + std::to_string(bytes) + " bytes at " +
                             std::to_string(offset) + " is outside the backing store of " +
                             std::to_string(bytes_));
    }
    if (sealed_ || bytes == 0) return OkStatus();
    for (uint64_t i = offset / piece_bytes_; i <= (offset + bytes - 1) / piece_bytes_; ++i) {
      WEIR_TRY(NeedPiece(i));
    }
    return OkStatus();
  }

  Status NeedPiece(uint64_t i) {
    {
      MutexLock lock(mutex_);
      while (!pieces_[i].valid()) {
        WEIR_TRY(Status(failure_));
        next_ = i;
        if (!thread_.joinable()) break;
        lock.Wait(taken_);
      }
      if (pieces_[i].valid()) return OkStatus();
    }
    return TakeOne();
  }

  // Takes the next piece that is missing, from |next_| on. kBadState: none is, or the store ends.
  Status TakeOne() {
    uint64_t i = 0, wished = 0;
    {
      MutexLock lock(mutex_);
      WEIR_TRY(Status(failure_));
      const uint64_t count = pieces_.size();
      uint64_t looked = 0;
      wished = next_;
      for (i = next_; looked < count && pieces_[i].valid(); ++looked) i = (i + 1) % count;
      if (ending_ || looked == count) return BadState("there is nothing more to take");
    }
    const Result<AllocId> piece = Take(i);
    MutexLock lock(mutex_);
    if (piece.ok()) {
      pieces_[i] = *piece;
      if (next_ == wished) next_ = (i + 1) % pieces_.size();
    } else {
      failure_ = piece.status().WithContext(Name());
    }
    taken_.notify_all();
    return failure_;
  }

  std::string Name() const {
    return "backing store in " + std::string(TierName(tier_)) + " memory";
  }

  // All or nothing.
  Result<AllocId> Take(uint64_t i) {
    const VirtAddr at = base_ + i * piece_bytes_;
    const AllocId piece = WEIR_TRY(driver_.Create(tier_, piece_bytes_));
    Status usable = driver_.Map(at, piece);
    if (usable.ok()) {
      usable = driver_.SetAccess(at, piece_bytes_, Access::kReadWrite);
      if (usable.ok()) return piece;
      (void)Persist([&] { return driver_.Unmap(at); });
    }
    (void)Persist([&] { return driver_.Release(piece); });
    return usable;
  }

  void GiveBack(uint64_t i, AllocId piece) {
    (void)Persist([&] { return driver_.Unmap(base_ + i * piece_bytes_); });
    (void)Persist([&] { return driver_.Release(piece); });
  }

  Driver& driver_;
  const Tier tier_;
  const uint64_t bytes_;
  const uint64_t piece_bytes_;
  VirtAddr base_ = 0;
  bool sealed_ = false;
  std::thread thread_;

  mutable Mutex mutex_{LockRank::kBackingStore};
  std::condition_variable taken_;                        // a piece was, or nothing more will be
  std::vector<AllocId> pieces_ WEIR_GUARDED_BY(mutex_);  // invalid: not there yet
  uint64_t next_ WEIR_GUARDED_BY(mutex_) = 0;            // the piece wanted next
  Status failure_ WEIR_GUARDED_BY(mutex_);               // why no more pieces are taken
  bool ending_ WEIR_GUARDED_BY(mutex_) = false;
};

}  // namespace

bool IsMemoryRefusal(const Status& status, Tier tier) {
  switch (status.code()) {
    case StatusCode::kNoMemory:
    case StatusCode::kIo:
    case StatusCode::kDriver: return true;
    // A device that cannot reach host memory; a peer that is not there was asked for by mistake.
    case StatusCode::kUnsupported: return tier == Tier::kHost;
    default: return false;
  }
}

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
  WEIR_TRY(store->Open());
  return std::unique_ptr<BackingStore>(std::move(store));
}

}  // namespace weir
