// StagedUpload: bytes of files on their way into the weight region, through pinned memory.
//
// A ring of equal buffers in Tier::kHost. Reads of the next pieces are in flight while copies of
// the pieces before them run on a stream of their own, so that disk and link work at the same time.
// The backing copy is written from the same buffers: nothing is read twice.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pager/file_ring.h"
#include "pager/staging.h"
#include "pager/weight_pager.h"
#include "vmm/driver.h"
#include "vmm/status.h"

namespace weir {

// A file to read from. Pieces that lie in whole blocks are read past the page cache where the file
// system can; the others, and all where it cannot, through it.
class UploadFile {
 public:
  static Result<UploadFile> Open(const std::string& path);
  ~UploadFile();
  UploadFile(UploadFile&& other) noexcept;
  UploadFile& operator=(UploadFile&&) = delete;

  int buffered() const { return buffered_; }
  int direct() const { return direct_; }  // -1: the file system refuses O_DIRECT
  uint64_t bytes() const { return bytes_; }

 private:
  UploadFile() = default;
  int buffered_ = -1;
  int direct_ = -1;
  uint64_t bytes_ = 0;
};

struct StagedUploadOptions {
  uint64_t buffer_bytes = 8 << 20;  // a power of two, at least 8 KiB
  uint32_t buffers = 8;             // half of them are read into while the others are copied from
};

// Represents the ring, its stream and its reads. Engine thread; |driver| and |pager| outlive it.
// Every error ends the upload: nothing more is to be put, and what was is undefined.
class StagedUpload {
 public:
  // Errors as Staging::Make: no host memory that the device reaches.
  static Result<std::unique_ptr<StagedUpload>> Create(Driver& driver, WeightPager& pager,
                                                      const StagedUploadOptions& options);
  // Waits for what is under way.
  ~StagedUpload();

  // Puts [offset, offset + bytes) of |file|, which outlives the upload, at |region_offset|. Returns
  // with reads and copies under way.
  Status PutFile(const UploadFile& file, uint64_t offset, uint64_t bytes, uint64_t region_offset);
  // The same with bytes from memory, which may go when this returns.
  Status PutBytes(std::span<const std::byte> data, uint64_t region_offset);
  // All that was put has arrived.
  Status Finish();

 private:
  struct Buffer {
    FileRequest read;
    bool reading = false;
    bool copying = false;
    EventId copied;
    uint64_t skip = 0;  // bytes before the piece, which blocks begin with
    uint64_t bytes = 0;
    uint64_t region_offset = 0;
  };

  StagedUpload(Driver& driver, WeightPager& pager, const StagedUploadOptions& options)
      : driver_(driver), pager_(pager), options_(options), buffers_(options.buffers) {}
  uint32_t reads_ahead() const { return options_.buffers / 2; }
  std::span<std::byte> Bytes(size_t index) const {
    return staging_.span().subspan(index * options_.buffer_bytes, options_.buffer_bytes);
  }
  Result<size_t> Take();
  Status AwaitRead(size_t index);
  Status Copy(size_t index);

  Driver& driver_;
  WeightPager& pager_;
  const StagedUploadOptions options_;
  Staging staging_;
  std::unique_ptr<FileRing> ring_;  // after staging_: goes first, and waits for what is in flight
  StreamId stream_;
  std::vector<Buffer> buffers_;
  uint64_t taken_ = 0;
};

}  // namespace weir
