// The backing copy on NVMe: an unlinked file read with O_DIRECT.
//
// Life of a fetch of n pieces of io_bytes on one stream:
//   1. Fetch puts n pairs (host function i, copy i) on the stream. Piece i uses staging buffer
//      i mod kBuffers of the stream's lane.
//   2. Host function i submits reads until piece i + kBuffers - 1 is in flight, then waits for
//   piece
//      i. Buffer reuse is safe: copy i - 1 has ended, since the stream runs in order.
//   3. Copy i moves piece i from staging to its place while the next pieces are being read.
//   4. The last host function to be destroyed drops the job, which waits for reads still in flight
//      (there are some only if the stream failed in the middle), so none lands in a reused buffer.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pager/backing_store.h"
#include "pager/file_ring.h"
#include "pager/staging.h"
#include "vmm/checked_math.h"

namespace weir {
namespace {

constexpr uint64_t kDirectAlignment = 4096;  // enough for every block device in use

std::string ErrnoText() {
  return std::strerror(errno);
}

// What one stream needs to read on its own: buffers and a ring that only its thread touches.
struct Lane {
  Staging staging;
  std::unique_ptr<FileRing> ring;  // after staging: goes first, and waits for what is in flight
};

// One Fetch under way. Touched by the stream's thread only.
struct FetchJob {
  std::shared_ptr<Lane> lane;
  std::vector<FileRequest> requests;
  uint64_t submitted = 0;
  uint64_t buffers = 0;

  ~FetchJob() {
    for (uint64_t i = 0; i < submitted; ++i) {
      if (!requests[i].done) (void)lane->ring->Wait(&requests[i]);
    }
  }
  Status RunPiece(uint64_t i) {
    while (submitted < requests.size() && submitted < i + buffers) {
      WEIR_TRY(lane->ring->Submit(&requests[submitted]));
      ++submitted;
    }
    return lane->ring->Wait(&requests[i]);
  }
};

class FileBackingStore final : public BackingStore {
 public:
  FileBackingStore(Driver& driver, uint64_t bytes, const FileBackingStoreOptions& options)
      : driver_(driver), bytes_(bytes), options_(options) {}

  ~FileBackingStore() override {
    lanes_.clear();
    own_.reset();
    if (fd_ >= 0) ::close(fd_);
  }

  Status Open() {
    const uint64_t capacity = AlignUp(bytes_, options_.io_bytes);
    fd_ = ::open(options_.directory.c_str(), O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
    if (fd_ < 0 && errno == EINVAL) {
      return Unsupported("the file system of " + options_.directory +
                         " refuses O_DIRECT; choose a directory on a local disk");
    }
    if (fd_ < 0 && errno == EOPNOTSUPP) {
      return Unsupported("the file system of " + options_.directory +
                         " has no unnamed temporary files (O_TMPFILE)");
    }
    if (fd_ < 0) return IoError("backing file in " + options_.directory + ": " + ErrnoText());
    // Space is taken now, so that loading cannot run out of it half way.
    const int r = ::posix_fallocate(fd_, 0, static_cast<off_t>(capacity));
    if (r != 0) {
      return NoMemory("backing file of " + std::to_string(capacity) + " bytes in " +
                      options_.directory + ": " + std::strerror(r));
    }
    own_ = WEIR_TRY(MakeLane(1));
    return OkStatus();
  }

  Tier tier() const override { return Tier::kNvme; }
  uint64_t bytes() const override { return bytes_; }

  Status Store(uint64_t offset, std::span<const std::byte> data) override {
    if (sealed_) return BadState("the file backing store is sealed: weights are clean for good");
    WEIR_TRY(CheckRange(offset, data.size()));
    // Pieces may come in any size: partly covered blocks are read, changed and written back.
    return ForPieces(offset, data.size(),
                     [&](uint64_t piece, uint64_t skip, uint64_t n, uint64_t done) -> Status {
                       const bool whole = skip == 0 && n == options_.io_bytes;
                       if (!whole) WEIR_TRY(Transfer(FileRequest::Op::kRead, piece));
                       std::memcpy(own_->staging.span().data() + skip, data.data() + done, n);
                       return Transfer(FileRequest::Op::kWrite, piece);
                     });
  }

  Status StoreFrom(StreamId stream, uint64_t offset, uint64_t bytes, VirtAddr src) override {
    // At load time only: through a host buffer, waiting for the stream.
    const EventId made = WEIR_TRY(driver_.Record(stream));
    WEIR_TRY(driver_.Wait(made));
    std::vector<std::byte> copy(bytes);
    WEIR_TRY(driver_.Read(src, copy));
    return Store(offset, copy);
  }

  Status Seal() override {
    if (!sealed_ && ::fdatasync(fd_) != 0)
      return IoError("flushing the backing file: " + ErrnoText());
    sealed_ = true;
    return OkStatus();
  }

  Status Fetch(StreamId stream, uint64_t offset, uint64_t bytes, VirtAddr dst) override {
    WEIR_TRY(CheckRange(offset, bytes));
    if (bytes == 0) return OkStatus();
    std::shared_ptr<Lane>& lane = lanes_[stream];
    if (!lane) lane = WEIR_TRY(MakeLane(Buffers()));
    auto job = std::make_shared<FetchJob>();
    job->lane = lane;
    job->buffers = Buffers();
    const uint64_t io = options_.io_bytes;
    const uint64_t first = AlignDown(offset, kDirectAlignment);
    const uint64_t pieces = CeilDiv(offset + bytes - first, io);
    job->requests.resize(pieces);
    // All requests are ready before the first host function can run: it submits ahead.
    for (uint64_t i = 0; i < pieces; ++i) {
      const uint64_t at = first + i * io;
      const uint64_t want = std::min(io, AlignUp(offset + bytes - at, kDirectAlignment));
      FileRequest& r = job->requests[i];
      r.fd = fd_;
      r.offset = at;
      r.buffer = lane->staging.span().subspan(i % job->buffers * io, want);
    }
    for (uint64_t i = 0; i < pieces; ++i) {
      const uint64_t at = first + i * io;
      const uint64_t skip = i == 0 ? offset - first : 0;
      const uint64_t end = std::min(offset + bytes, at + io);
      WEIR_TRY(driver_.HostFunction(stream, [job, i] { return job->RunPiece(i); }));
      WEIR_TRY(driver_.Copy(stream, dst + (at + skip - offset),
                            lane->staging.base() + i % job->buffers * io + skip, end - at - skip));
    }
    return OkStatus();
  }

  Status Load(uint64_t offset, std::span<std::byte> out) override {
    WEIR_TRY(CheckRange(offset, out.size()));
    return ForPieces(offset, out.size(),
                     [&](uint64_t piece, uint64_t skip, uint64_t n, uint64_t done) -> Status {
                       WEIR_TRY(Transfer(FileRequest::Op::kRead, piece));
                       std::memcpy(out.data() + done, own_->staging.span().data() + skip, n);
                       return OkStatus();
                     });
  }

  void StreamGone(StreamId stream) override { lanes_.erase(stream); }

 private:
  // Reads in flight per stream: two cover copy and read; more give the disk a queue.
  uint64_t Buffers() const { return std::clamp<uint64_t>(options_.queue_depth, 2, 8); }

  Result<std::shared_ptr<Lane>> MakeLane(uint64_t buffers) {
    auto lane = std::make_shared<Lane>();
    WEIR_TRY(lane->staging.Make(driver_, buffers * options_.io_bytes).WithContext("staging"));
    FileRing::Options ring;
    ring.depth = std::max<uint32_t>(options_.queue_depth, 8);
    ring.fixed = lane->staging.span();
    lane->ring = WEIR_TRY(FileRing::Create(ring));
    return lane;
  }

  // Calls |fn|(index of the io_bytes piece, bytes to skip in it, bytes to use, bytes done before).
  template <typename Fn>
  Status ForPieces(uint64_t offset, uint64_t bytes, Fn fn) {
    uint64_t done = 0;
    while (done < bytes) {
      const uint64_t at = offset + done;
      const uint64_t skip = at % options_.io_bytes;
      const uint64_t n = std::min(bytes - done, options_.io_bytes - skip);
      WEIR_TRY(fn(at / options_.io_bytes, skip, n, done));
      done += n;
    }
    return OkStatus();
  }
  Status Transfer(FileRequest::Op op, uint64_t piece) {
    FileRequest request;
    request.op = op;
    request.fd = fd_;
    request.offset = piece * options_.io_bytes;
    request.buffer = own_->staging.span().first(options_.io_bytes);
    WEIR_TRY(own_->ring->Submit(&request));
    return own_->ring->Wait(&request);
  }
  Status CheckRange(uint64_t offset, uint64_t bytes) const {
    if (offset <= bytes_ && bytes <= bytes_ - offset) return OkStatus();
    return InvalidArgument("range of " + std::to_string(bytes) + " bytes at " +
                           std::to_string(offset) + " is outside the backing store of " +
                           std::to_string(bytes_));
  }

  Driver& driver_;
  uint64_t bytes_;
  FileBackingStoreOptions options_;
  int fd_ = -1;
  bool sealed_ = false;
  std::shared_ptr<Lane> own_;  // for Store and Load
  std::map<StreamId, std::shared_ptr<Lane>> lanes_;
};

}  // namespace

Result<std::unique_ptr<BackingStore>> CreateFileBackingStore(
    Driver& driver, uint64_t bytes, const FileBackingStoreOptions& options) {
  if (!IsPowerOfTwo(options.io_bytes) || options.io_bytes < kDirectAlignment ||
      options.io_bytes > 64 * kMiB) {
    return InvalidArgument("io_bytes is " + std::to_string(options.io_bytes) +
                           "; powers of two from 4 KiB to 64 MiB are accepted");
  }
  if (options.queue_depth == 0 || options.queue_depth > 4096) {
    return InvalidArgument("queue_depth is " + std::to_string(options.queue_depth) +
                           "; 1 to 4096 are accepted");
  }
  if (bytes == 0 || bytes > (uint64_t{1} << 62)) {
    return InvalidArgument("a file backing store of " + std::to_string(bytes) + " bytes");
  }
  auto store = std::make_unique<FileBackingStore>(driver, bytes, options);
  WEIR_TRY(store->Open());
  return std::unique_ptr<BackingStore>(std::move(store));
}

}  // namespace weir
