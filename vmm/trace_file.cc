#define XXH_INLINE_ALL
#include "vmm/trace_file.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "vmm/types.h"

namespace weir {
namespace {

// Room for the metadata at the head: enough for a model of a hundred layers.
constexpr uint64_t kMetaRoom = 64 * kKiB;
constexpr uint64_t kUnit = 64;

}  // namespace

Result<std::unique_ptr<TraceFileWriter>> TraceFileWriter::Create(const std::string& path,
                                                                 uint64_t start_ns, uint64_t mask,
                                                                 std::string_view metadata) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return IoError("cannot write trace " + path + ": " + std::strerror(errno));
  std::unique_ptr<TraceFileWriter> file(new TraceFileWriter(fd, path));
  struct stat info {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    return InvalidArgument("trace " + path + " is not a regular file");
  }
  // An older file may have been readable by others.
  if (fchmod(fd, 0600) != 0) {
    return IoError("trace " + path + " cannot be made private: " + std::strerror(errno));
  }
  TraceFileHeader& h = file->header_;
  std::memcpy(h.magic, kTraceFileMagic, sizeof(h.magic));
  h.start_ns = start_ns;
  h.start_unix_ns = static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                              std::chrono::system_clock::now().time_since_epoch())
                                              .count());
  h.mask = mask;
  const uint64_t room = AlignUp(std::max<uint64_t>(metadata.size(), kMetaRoom), kUnit);
  if (room > UINT32_MAX) return InvalidArgument("trace metadata of more than 4 GiB");
  h.meta_bytes = static_cast<uint32_t>(room);
  file->at_ = sizeof(h) + room;
  WEIR_TRY(file->WriteHead(metadata));
  return file;
}

TraceFileWriter::~TraceFileWriter() {
  if (fd_ >= 0) close(fd_);
}

Status TraceFileWriter::WriteAt(const void* data, size_t bytes, uint64_t at) {
  if (fd_ < 0) return BadState("trace " + path_ + " is closed");
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = pwrite(fd_, from, bytes, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      Status status =
          IoError("writing trace " + path_ + ": " + std::strerror(n == 0 ? ENOSPC : errno));
      close(std::exchange(fd_, -1));
      return status;
    }
    from += n;
    bytes -= static_cast<size_t>(n);
    at += static_cast<uint64_t>(n);
  }
  return OkStatus();
}

Status TraceFileWriter::WriteHead(std::string_view metadata) {
  std::string head(sizeof(header_) + header_.meta_bytes, ' ');
  std::memcpy(head.data(), &header_, sizeof(header_));
  std::memcpy(head.data() + sizeof(header_), metadata.data(), metadata.size());
  return WriteAt(head.data(), head.size(), 0);
}

Status TraceFileWriter::SetMetadata(std::string_view json) {
  if (json.size() > header_.meta_bytes) return OkStatus();  // the end has room for it
  return WriteHead(json);
}

Status TraceFileWriter::Append(std::span<const TraceRecord> records, uint64_t lost) {
  do {
    const auto block = records.first(std::min<size_t>(records.size(), kMostTraceBlockRecords));
    WEIR_TRY(WriteBlock(block, std::exchange(lost, 0)));
    records = records.subspan(block.size());
  } while (!records.empty());
  return OkStatus();
}

Status TraceFileWriter::WriteBlock(std::span<const TraceRecord> records, uint64_t lost) {
  TraceBlockHeader block;
  block.records = static_cast<uint32_t>(records.size());
  block.lost = lost;
  block.checksum = XXH3_64bits(records.data(), records.size_bytes());
  // In this order a file that is cut off ends in a block that is not complete.
  WEIR_TRY(WriteAt(&block, sizeof(block), at_));
  WEIR_TRY(WriteAt(records.data(), records.size_bytes(), at_ + sizeof(block)));
  at_ += sizeof(block) + records.size_bytes();
  return OkStatus();
}

Status TraceFileWriter::Close(std::string_view metadata) {
  if (metadata.size() <= UINT32_MAX) {
    WEIR_TRY(WriteAt(metadata.data(), metadata.size(), at_));
    header_.tail_meta_offset = at_;
    header_.tail_meta_bytes = static_cast<uint32_t>(metadata.size());
  }
  WEIR_TRY(WriteAt(&header_, sizeof(header_), 0));
  if (close(std::exchange(fd_, -1)) != 0) {
    return IoError("closing trace " + path_ + ": " + std::strerror(errno));
  }
  return OkStatus();
}

}  // namespace weir
