#include "engine/model/byte_source.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace weir {

static_assert(std::endian::native == std::endian::little, "model files are read as little-endian");

namespace {

constexpr uint64_t kCursorBufferBytes = 256 * 1024;

Status PastEnd(uint64_t offset, uint64_t bytes, uint64_t size) {
  return DataLoss("truncated: " + std::to_string(bytes) + " bytes at offset " +
                  std::to_string(offset) + " asked, the data ends at " + std::to_string(size));
}

}  // namespace

Status SpanSource::ReadAt(uint64_t offset, std::span<std::byte> out) const {
  if (offset > bytes_.size() || out.size() > bytes_.size() - offset) {
    return PastEnd(offset, out.size(), bytes_.size());
  }
  if (!out.empty()) std::memcpy(out.data(), bytes_.data() + offset, out.size());
  return {};
}

Result<std::shared_ptr<FileSource>> FileSource::Open(const std::string& path) {
  // O_NONBLOCK: opening a named pipe by mistake must not hang; it is refused below.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const std::string what = "cannot open " + path + ": " + std::strerror(errno);
    return errno == ENOENT || errno == ENOTDIR ? NotFound(what) : IoError(what);
  }
  struct stat info {};
  if (::fstat(fd, &info) != 0) {
    const int error = errno;
    ::close(fd);
    return IoError("cannot stat " + path + ": " + std::strerror(error));
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(fd);
    return InvalidArgument(path + " is not a regular file");
  }
  return std::shared_ptr<FileSource>(new FileSource(fd, IdentityOf(info), path));
}

FileSource::Identity FileSource::IdentityOf(const struct stat& info) {
  return {.device = static_cast<uint64_t>(info.st_dev),
          .inode = static_cast<uint64_t>(info.st_ino),
          .size = static_cast<uint64_t>(info.st_size),
          .changed_s = static_cast<int64_t>(info.st_mtim.tv_sec),
          .changed_ns = static_cast<int64_t>(info.st_mtim.tv_nsec)};
}

Status FileSource::CheckUnchanged() const {
  struct stat info {};
  if (::stat(path_.c_str(), &info) != 0) {
    return NotFound(path_ + " cannot be found any more: " + std::strerror(errno));
  }
  if (IdentityOf(info) == identity_) return {};
  return DataLoss(path_ + " is not the file that was opened, or has changed since");
}

FileSource::~FileSource() {
  ::close(fd_);
}

Status FileSource::ReadAt(uint64_t offset, std::span<std::byte> out) const {
  if (offset > size() || out.size() > size() - offset) return PastEnd(offset, out.size(), size());
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t n =
        ::pread(fd_, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return IoError("cannot read " + path_ + ": " + std::strerror(errno));
    if (n == 0) return PastEnd(offset, out.size(), offset + done).WithContext(path_);
    done += static_cast<size_t>(n);
  }
  return {};
}

ByteCursor::ByteCursor(const ByteSource& source, uint64_t limit)
    : source_(source), limit_(std::min(limit, source.size())) {}

Status ByteCursor::Read(std::span<std::byte> out) {
  if (out.size() > remaining()) return PastEnd(position_, out.size(), limit_);
  size_t done = 0;
  while (done < out.size()) {
    const uint64_t in_buffer = position_ - buffer_begin_;
    if (in_buffer < buffer_.size()) {
      const size_t n = std::min(out.size() - done, buffer_.size() - static_cast<size_t>(in_buffer));
      std::memcpy(out.data() + done, buffer_.data() + in_buffer, n);
      done += n;
      position_ += n;
      continue;
    }
    buffer_begin_ = position_;
    buffer_.resize(static_cast<size_t>(std::min(kCursorBufferBytes, limit_ - position_)));
    const Status read = source_.ReadAt(
        buffer_begin_, std::as_writable_bytes(std::span<char>(buffer_.data(), buffer_.size())));
    if (!read.ok()) return read;
  }
  return {};
}

Result<std::string> ReadTextFile(const std::string& path, uint64_t max_bytes) {
  const auto file = WEIR_TRY(FileSource::Open(path));
  if (file->size() > max_bytes) {
    return InvalidArgument(path + " has " + std::to_string(file->size()) + " bytes, at most " +
                           std::to_string(max_bytes) + " are accepted");
  }
  std::string text(static_cast<size_t>(file->size()), '\0');
  WEIR_TRY(file->ReadAt(0, std::as_writable_bytes(std::span<char>(text.data(), text.size()))));
  return text;
}

}  // namespace weir
