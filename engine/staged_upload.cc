#include "engine/staged_upload.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/types.h"

namespace weir {
namespace {

constexpr uint64_t kDirectAlignment = 4096;  // enough for every block device in use

}  // namespace

Result<UploadFile> UploadFile::Open(const std::string& path) {
  UploadFile file;
  file.buffered_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat about = {};
  if (file.buffered_ < 0 || ::fstat(file.buffered_, &about) != 0) {
    return IoError("cannot open " + path + ": " + std::strerror(errno));
  }
  file.bytes_ = static_cast<uint64_t>(about.st_size);
  file.direct_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  return file;
}

UploadFile::~UploadFile() {
  for (const int fd : {buffered_, direct_}) {
    if (fd >= 0) ::close(fd);
  }
}

UploadFile::UploadFile(UploadFile&& other) noexcept
    : buffered_(std::exchange(other.buffered_, -1)),
      direct_(std::exchange(other.direct_, -1)),
      bytes_(other.bytes_) {}

Result<std::unique_ptr<StagedUpload>> StagedUpload::Create(Driver& driver, WeightPager& pager,
                                                           const StagedUploadOptions& options) {
  WEIR_CHECK(IsPowerOfTwo(options.buffer_bytes) && options.buffer_bytes >= 2 * kDirectAlignment &&
                 options.buffers >= 2,
             "two buffers or more, of 8 KiB or more");
  std::unique_ptr<StagedUpload> upload(new StagedUpload(driver, pager, options));
  WEIR_TRY(upload->staging_.Make(driver, options.buffer_bytes * options.buffers));
  FileRing::Options ring;
  ring.depth = options.buffers;
  ring.fixed = upload->staging_.span();
  upload->ring_ = WEIR_TRY(FileRing::Create(ring));
  upload->stream_ = WEIR_TRY(driver.CreateStream("weir-load"));
  return upload;
}

StagedUpload::~StagedUpload() {
  if (ring_) (void)ring_->Wait(nullptr);
  // Waits for the copies. Their errors were reported by Finish, or an earlier one was.
  if (stream_.valid()) (void)driver_.DestroyStream(stream_);
}

// The next buffer, free. Before it is handed out, the read that has been in flight longest goes on
// to its copy, so that the copy has the time of the reads behind it.
Result<size_t> StagedUpload::Take() {
  const uint64_t n = taken_++;
  if (n >= reads_ahead()) WEIR_TRY(AwaitRead((n - reads_ahead()) % buffers_.size()));
  const size_t index = n % buffers_.size();
  Buffer& buffer = buffers_[index];
  WEIR_CHECK(!buffer.reading, "a buffer is read into once a round");
  if (std::exchange(buffer.copying, false)) WEIR_TRY(driver_.Wait(buffer.copied));
  return index;
}

Status StagedUpload::AwaitRead(size_t index) {
  Buffer& buffer = buffers_[index];
  if (!std::exchange(buffer.reading, false)) return OkStatus();
  WEIR_TRY(ring_->Wait(&buffer.read));
  return Copy(index);
}

Status StagedUpload::Copy(size_t index) {
  Buffer& buffer = buffers_[index];
  const VirtAddr from = staging_.base() + index * options_.buffer_bytes + buffer.skip;
  WEIR_TRY(pager_.WriteFrom(stream_, buffer.region_offset, buffer.bytes, from));
  buffer.copied = WEIR_TRY(driver_.Record(stream_));
  buffer.copying = true;
  return OkStatus();
}

Status StagedUpload::PutFile(const UploadFile& file, uint64_t offset, uint64_t bytes,
                             uint64_t region_offset) {
  const uint64_t end = offset + bytes;
  const uint64_t whole_blocks = AlignDown(file.bytes(), kDirectAlignment);
  for (uint64_t at = offset; at < end;) {
    const uint64_t first = AlignDown(at, kDirectAlignment);
    const uint64_t stop = std::min(end, first + options_.buffer_bytes);
    const uint64_t blocks_end = AlignUp(stop, kDirectAlignment);
    const bool direct = file.direct() >= 0 && blocks_end <= whole_blocks;
    const size_t index = WEIR_TRY(Take());
    Buffer& buffer = buffers_[index];
    buffer.skip = at - first;
    buffer.bytes = stop - at;
    buffer.region_offset = region_offset + (at - offset);
    buffer.read = FileRequest{};
    buffer.read.fd = direct ? file.direct() : file.buffered();
    buffer.read.offset = direct ? first : at;
    buffer.read.buffer = direct ? Bytes(index).first(blocks_end - first)
                                : Bytes(index).subspan(buffer.skip, buffer.bytes);
    WEIR_TRY(ring_->Submit(&buffer.read));
    buffer.reading = true;
    at = stop;
  }
  return OkStatus();
}

Status StagedUpload::PutBytes(std::span<const std::byte> data, uint64_t region_offset) {
  while (!data.empty()) {
    const size_t index = WEIR_TRY(Take());
    Buffer& buffer = buffers_[index];
    const auto piece = data.first(std::min<size_t>(data.size(), options_.buffer_bytes));
    std::memcpy(Bytes(index).data(), piece.data(), piece.size());
    buffer.skip = 0;
    buffer.bytes = piece.size();
    buffer.region_offset = region_offset;
    WEIR_TRY(Copy(index));
    data = data.subspan(piece.size());
    region_offset += piece.size();
  }
  return OkStatus();
}

Status StagedUpload::Finish() {
  for (uint64_t n = taken_ - std::min<uint64_t>(taken_, reads_ahead()); n < taken_; ++n) {
    WEIR_TRY(AwaitRead(n % buffers_.size()));
  }
  return driver_.Wait(WEIR_TRY(driver_.Record(stream_)));
}

}  // namespace weir
