// BackingStore: where evicted weights live. Byte-addressed, same offsets as the weight region.
//
// Weights are always clean: bytes are stored once at load and only fetched afterwards (O1).
// B1 a fetch after a completed Store returns its bytes. B2 every request completes exactly once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "vmm/driver.h"
#include "vmm/status.h"

namespace weir {

class BackingStore {
 public:
  virtual ~BackingStore() = default;
  virtual Tier tier() const = 0;
  virtual uint64_t bytes() const = 0;
  // Synchronous, at load time. Ranges may come in any order and pieces.
  virtual Status Store(uint64_t offset, std::span<const std::byte> data) = 0;
  // The same from device memory, in stream order: for weights that are made on the device.
  virtual Status StoreFrom(StreamId stream, uint64_t offset, uint64_t bytes, VirtAddr src) = 0;
  // All Stores are done: flush, close for writing. Store is kBadState afterwards.
  virtual Status Seal() = 0;
  // Puts the copy of [offset, offset + bytes) to device address |dst| on |stream|.
  virtual Status Fetch(StreamId stream, uint64_t offset, uint64_t bytes, VirtAddr dst) = 0;
  // Synchronous read, for repair and verification.
  virtual Status Load(uint64_t offset, std::span<std::byte> out) = 0;
  // The store lies in allocations of so many bytes each, back to back from offset 0 on, the last
  // one whole too: pieces that can be mapped elsewhere as well. 0: not in memory that can be
  // mapped.
  virtual uint64_t piece_bytes() const { return 0; }
  // The piece that holds |offset|. It must be unmapped elsewhere before the store goes.
  // kUnsupported where there are none.
  virtual Result<AllocId> PieceAt(uint64_t offset) {
    (void)offset;
    return Unsupported("a backing store in tier " + std::string(TierName(tier())) +
                       " has no memory that could be mapped");
  }
  // Why memory for it was refused (IsMemoryRefusal), once a call has failed for that; ok until
  // then.
  virtual Status refusal() const { return OkStatus(); }
  // |stream| was destroyed: what was kept for it (staging buffers) may go.
  virtual void StreamGone(StreamId stream) { (void)stream; }
};

// Whether |status| is what the system or the device answers when it will not give, or pin, memory
// of |tier|: that varies with the release and with what is short. Anything else is a mistake of
// whoever asked.
bool IsMemoryRefusal(const Status& status, Tier tier);

// Memory of another tier that the device's copy engine reaches: host memory (kHost, NUMA-placed) or
// a peer GPU's (kPeer), mapped in a region of its own in pieces of |piece_bytes|: with the granule
// size of the weights these can be read in place. A little is taken now (kUnsupported: the driver
// has no such tier), the rest by a thread of the store's; calls wait for what they need of it, and
// fail with its error, as Seal does.
Result<std::unique_ptr<BackingStore>> CreateMemoryBackingStore(Driver& driver, Tier tier,
                                                               uint64_t bytes,
                                                               uint64_t piece_bytes);

struct FileBackingStoreOptions {
  std::string directory = "/tmp";  // an unlinked file (O_TMPFILE) is made here, mode 0600
  uint32_t queue_depth = 32;
  uint64_t io_bytes = 1 << 20;  // size of one read; a power of two >= the block size
};
// A file read with O_DIRECT through io_uring into registered host buffers, then copied on.
// kUnsupported names the reason when the file system refuses O_DIRECT.
Result<std::unique_ptr<BackingStore>> CreateFileBackingStore(
    Driver& driver, uint64_t bytes, const FileBackingStoreOptions& options);

}  // namespace weir
