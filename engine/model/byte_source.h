// Where header bytes come from: a file read with pread, or bytes in memory (tests, fuzzers).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "vmm/status.h"

struct stat;

namespace weir {

// Represents a read-only array of bytes of fixed, known size. Immutable; reading is thread-safe.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual uint64_t size() const = 0;
  // Fills |out| from |offset|. Reading past size() is kDataLoss and leaves |out| unspecified.
  virtual Status ReadAt(uint64_t offset, std::span<std::byte> out) const = 0;
};

// Represents bytes owned by the caller, which outlive this object. |size| may be larger than the
// bytes given: then only the front is readable, as when a fuzzer supplies a header alone.
class SpanSource : public ByteSource {
 public:
  explicit SpanSource(std::span<const std::byte> bytes) : bytes_(bytes), size_(bytes.size()) {}
  SpanSource(std::span<const std::byte> bytes, uint64_t size) : bytes_(bytes), size_(size) {}
  uint64_t size() const override { return size_; }
  Status ReadAt(uint64_t offset, std::span<std::byte> out) const override;

 private:
  std::span<const std::byte> bytes_;
  uint64_t size_;
};

// Represents one open regular file. Owns the descriptor; the size is the one seen at Open, so a
// file that shrinks later gives kDataLoss, never a signal (which is why nothing here is memory
// mapped).
class FileSource : public ByteSource {
 public:
  static Result<std::shared_ptr<FileSource>> Open(const std::string& path);
  ~FileSource() override;
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;

  uint64_t size() const override { return identity_.size; }
  const std::string& path() const { return path_; }
  Status ReadAt(uint64_t offset, std::span<std::byte> out) const override;
  // Whether path() still names this file, with the size and time of change seen at Open; kDataLoss
  // or kNotFound says what has become of it.
  Status CheckUnchanged() const;

 private:
  // What tells one state of one file from another.
  struct Identity {
    uint64_t device = 0, inode = 0, size = 0;
    int64_t changed_s = 0, changed_ns = 0;
    bool operator==(const Identity&) const = default;
  };
  FileSource(int fd, const Identity& identity, std::string path)
      : fd_(fd), identity_(identity), path_(std::move(path)) {}
  static Identity IdentityOf(const struct stat& info);
  int fd_;
  Identity identity_;
  std::string path_;
};

// Represents a position moving forward through a ByteSource, buffered. After an error the position
// is unspecified and the caller stops.
class ByteCursor {
 public:
  // |limit|: no byte at or after this offset is read; kDataLoss says so.
  ByteCursor(const ByteSource& source, uint64_t limit);
  uint64_t position() const { return position_; }
  uint64_t remaining() const { return limit_ - position_; }
  Status Read(std::span<std::byte> out);
  // Little-endian fixed-size value, as both formats store them.
  template <typename T>
  Result<T> Value() {
    T value{};
    WEIR_TRY(Read(std::as_writable_bytes(std::span<T, 1>(&value, 1))));
    return value;
  }

 private:
  const ByteSource& source_;
  uint64_t limit_;
  uint64_t position_ = 0;
  uint64_t buffer_begin_ = 0;  // offset of buffer_[0]
  std::string buffer_;
};

// The whole file as a string, for small text files; kInvalidArgument above |max_bytes|.
Result<std::string> ReadTextFile(const std::string& path, uint64_t max_bytes);

}  // namespace weir
