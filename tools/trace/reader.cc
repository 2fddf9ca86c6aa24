#include "tools/trace/reader.h"

#define XXH_INLINE_ALL
#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "tools/trace/ordering.h"
#include "tools/trace/schema.h"

namespace weir::trace_tool {
namespace {

static_assert(std::endian::native == std::endian::little,
              "records are used as they lie in the file; a big-endian machine must swap them");

constexpr uint64_t kAlignment = 64;

class FileSource final : public ByteSource {
 public:
  explicit FileSource(const std::string& path) {
    fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ < 0) throw TraceError(path + ": " + std::strerror(errno));
    struct stat info {};
    if (::fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) {
      ::close(fd_);
      throw TraceError(path + ": not a file; a trace is read more than once, so no pipe will do");
    }
    size_ = static_cast<uint64_t>(info.st_size);
  }
  ~FileSource() override { ::close(fd_); }
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;

  uint64_t size() const override { return size_; }
  bool ReadAt(uint64_t offset, std::span<std::byte> out) const override {
    size_t done = 0;
    while (done < out.size()) {
      const ssize_t n =
          ::pread(fd_, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      done += static_cast<size_t>(n);
    }
    return true;
  }

 private:
  int fd_ = -1;
  uint64_t size_ = 0;
};

class SpanSource final : public ByteSource {
 public:
  explicit SpanSource(std::span<const std::byte> bytes) : bytes_(bytes) {}
  uint64_t size() const override { return bytes_.size(); }
  bool ReadAt(uint64_t offset, std::span<std::byte> out) const override {
    if (offset > bytes_.size() || out.size() > bytes_.size() - offset) return false;
    std::copy_n(bytes_.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
    return true;
  }

 private:
  std::span<const std::byte> bytes_;
};

template <typename T>
bool ReadObject(const ByteSource& source, uint64_t offset, T* out) {
  return source.ReadAt(offset, std::as_writable_bytes(std::span(out, 1)));
}

std::string Count(uint64_t n, const char* what) {
  return std::to_string(n) + " " + what + (n == 1 ? "" : "s");
}

}  // namespace

std::unique_ptr<ByteSource> OpenFile(const std::string& path) {
  return std::make_unique<FileSource>(path);
}

std::unique_ptr<ByteSource> MemorySource(std::span<const std::byte> bytes) {
  return std::make_unique<SpanSource>(bytes);
}

std::vector<std::string> TraceLosses::Lines() const {
  std::vector<std::string> lines;
  if (ring_lost != 0) {
    lines.push_back(Count(ring_lost, "record") + " lost while recording: the rings were full");
  }
  if (dropped != 0) {
    lines.push_back(Count(drop_records, "gap") + " in the threads' records, " +
                    Count(dropped, "record") + " missing there");
  }
  if (damaged_blocks != 0) {
    lines.push_back(Count(damaged_blocks, "damaged block") + " left out (" +
                    Count(damaged_records, "record") + ")");
  }
  if (skipped_bytes != 0) lines.push_back(Count(skipped_bytes, "byte") + " that are no block");
  if (truncated) {
    lines.push_back("the file ends inside a block; " + Count(unverified_records, "record") +
                    " of it read without a checksum");
  }
  if (unknown_records != 0) {
    lines.push_back(Count(unknown_records, "record") + " of a type this version does not know");
  }
  if (disordered != 0) {
    lines.push_back(Count(disordered, "record") + " came too late to be put in order");
  }
  return lines;
}

TraceReader::TraceReader(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {
  ReadHeader();
  ReadMeta();
  Scan();
}

double TraceReader::SecondsOf(uint64_t time_ns) const {
  const auto delta = static_cast<int64_t>(time_ns - std::min(header_.start_ns, first_ns_));
  return static_cast<double>(delta) * 1e-9;
}

void TraceReader::ReadHeader() {
  const uint64_t size = source_->size();
  if (size == 0) throw TraceError("the file is empty: no trace");
  char magic[sizeof(kTraceFileMagic)] = {};
  (void)source_->ReadAt(0, std::as_writable_bytes(std::span(magic).first(
                               static_cast<size_t>(std::min<uint64_t>(size, sizeof magic)))));
  if (std::memcmp(magic, kTraceFileMagic, sizeof magic) != 0) {
    throw TraceError("not a weir trace: it does not begin with \"weirtrc\"");
  }
  if (!ReadObject(*source_, 0, &header_)) {
    throw TraceError("the file ends inside its header (" + std::to_string(size) +
                     " bytes of 64): nothing was recorded");
  }
  if (header_.version != kTraceVersion || header_.record_bytes != sizeof(TraceRecord)) {
    throw TraceError("a trace of version " + std::to_string(header_.version) + " with records of " +
                     std::to_string(header_.record_bytes) +
                     " bytes; this weir-trace reads version " + std::to_string(kTraceVersion) +
                     " with records of 64");
  }
}

void TraceReader::ReadMeta() {
  const uint64_t size = source_->size();
  const auto read = [&](uint64_t offset, uint64_t bytes, std::string* text) {
    if (bytes > kMostMetaBytes || offset > size || bytes > size - offset) return false;
    text->resize(static_cast<size_t>(bytes));
    return source_->ReadAt(offset, std::as_writable_bytes(std::span(text->data(), text->size())));
  };
  const bool has_head = read(sizeof(TraceFileHeader), header_.meta_bytes, &meta_json_);
  if (!has_head) {
    meta_json_.clear();
    meta_problem_ = "the metadata is cut off; numbers are shown without names";
  }
  end_ = size;
  std::string tail;
  if (header_.tail_meta_offset != 0) {
    if (read(header_.tail_meta_offset, header_.tail_meta_bytes, &tail)) {
      end_ = header_.tail_meta_offset;
      std::string problem;
      (void)TraceMeta::Parse(tail, &problem);
      if (problem.empty()) meta_json_ = tail;  // the grown one
    } else {
      meta_problem_ =
          "the metadata at the file's end is cut off; what was known at the start is used";
    }
  }
  std::string problem;
  meta_ = TraceMeta::Parse(meta_json_, &problem);
  if (meta_problem_.empty()) meta_problem_ = problem;
}

void TraceReader::Scan() {
  first_ns_ = UINT64_MAX;
  uint64_t offset = sizeof(TraceFileHeader) + uint64_t{header_.meta_bytes};
  offset = (offset + kAlignment - 1) / kAlignment * kAlignment;
  while (offset < end_) offset = ScanBlock(offset);
  if (records_ == 0) first_ns_ = last_ns_ = header_.start_ns;
  buffer_.clear();
  buffer_.shrink_to_fit();
}

// Finds the next block header at a multiple of 64 from |offset| on.
uint64_t TraceReader::SkipTo(uint64_t offset) {
  const uint64_t begin = offset;
  uint32_t magic = 0;
  for (; offset < end_; offset += kAlignment) {
    if (ReadObject(*source_, offset, &magic) && magic == kTraceBlockMagic) break;
  }
  offset = std::min(offset, end_);
  losses_.skipped_bytes += offset - begin;
  return offset;
}

// Looks at the block at |offset|; returns where the next one should be.
uint64_t TraceReader::ScanBlock(uint64_t offset) {
  TraceBlockHeader header;
  if (end_ - offset < sizeof header || !ReadObject(*source_, offset, &header)) {
    losses_.truncated = true;
    return end_;
  }
  if (header.magic != kTraceBlockMagic || header.records > kMostTraceBlockRecords) {
    return SkipTo(offset + kAlignment);
  }
  const uint64_t first = offset + sizeof header;
  const uint64_t room = (end_ - first) / sizeof(TraceRecord);
  const bool whole = header.records <= room;
  Block block{first, UINT64_MAX, static_cast<uint32_t>(std::min<uint64_t>(header.records, room))};
  const uint64_t next = whole ? first + uint64_t{header.records} * sizeof(TraceRecord) : end_;
  if (!Load(block, &buffer_)) throw TraceError("reading the file failed");
  if (whole &&
      XXH3_64bits(buffer_.data(), buffer_.size() * sizeof(TraceRecord)) != header.checksum) {
    ++losses_.damaged_blocks;
    losses_.damaged_records += header.records;
    // Its length may be wrong as well: look for the next header inside it.
    const uint64_t skipped = losses_.skipped_bytes;
    const uint64_t found = SkipTo(offset + kAlignment);
    losses_.skipped_bytes = skipped;
    return found;
  }
  if (!whole) {
    losses_.truncated = true;
    losses_.unverified_records += block.records;
  }
  losses_.ring_lost += header.lost;
  for (const TraceRecord& r : buffer_) {
    block.least_ns = std::min(block.least_ns, r.time_ns);
    last_ns_ = std::max(last_ns_, r.time_ns);
    if (FindType(r.type) == nullptr) ++losses_.unknown_records;
    if (r.type == static_cast<uint16_t>(TraceType::kDrop)) {
      ++losses_.drop_records;
      losses_.dropped += std::min<uint64_t>(r.args[0], UINT32_MAX);
    }
  }
  if (block.records != 0) {
    first_ns_ = std::min(first_ns_, block.least_ns);
    records_ += block.records;
    blocks_.push_back(block);
  }
  return next;
}

bool TraceReader::Load(const Block& block, std::vector<TraceRecord>* records) const {
  records->resize(block.records);
  return source_->ReadAt(block.offset, std::as_writable_bytes(std::span(*records)));
}

void TraceReader::ForEach(const Sink& sink) {
  // Before this time every record of blocks i.. has been seen once block i has been loaded.
  std::vector<uint64_t> horizon(blocks_.size() + 1, UINT64_MAX);
  for (size_t i = blocks_.size(); i-- > 0;) {
    horizon[i] = std::min(horizon[i + 1], blocks_[i].least_ns);
  }
  OrderingWindow window(sink);
  std::vector<TraceRecord> records;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    if (!Load(blocks_[i], &records)) throw TraceError("the file became shorter while it was read");
    for (size_t k = 0; k < records.size(); ++k) {
      window.Add({records[k], blocks_[i].offset + k * sizeof(TraceRecord)});
    }
    window.ReleaseBefore(horizon[i + 1]);
  }
  window.ReleaseAll();
  losses_.disordered = window.disordered();
}

}  // namespace weir::trace_tool
