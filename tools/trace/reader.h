// TraceReader: a trace file, read without trust and without holding it in memory.
//
// Represents one file of vmm/trace_format.h. Opening scans it once: every block's checksum is
// compared, and what cannot be read is left out and counted. After that the records can be had as
// often as wanted, ordered by time over all threads. Memory: 32 bytes a block, and the records
// whose order is still open (a few blocks in a file that a recorder wrote). One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tools/trace/error.h"
#include "tools/trace/meta.h"
#include "vmm/trace_format.h"

namespace weir::trace_tool {

inline constexpr uint32_t kMostMetaBytes = 64U << 20;

// Where the bytes come from.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual uint64_t size() const = 0;
  // Fills |out|; false when that is not possible.
  virtual bool ReadAt(uint64_t offset, std::span<std::byte> out) const = 0;
};
// Throws TraceError.
std::unique_ptr<ByteSource> OpenFile(const std::string& path);
// |bytes| must outlive the source.
std::unique_ptr<ByteSource> MemorySource(std::span<const std::byte> bytes);

// What is missing from a trace, and why.
struct TraceLosses {
  uint64_t ring_lost = 0;     // counted by the recorder: the rings were full
  uint64_t drop_records = 0;  // places in the trace where a thread lost records
  uint64_t dropped = 0;       // records lost there; at most |ring_lost| unless blocks are missing
  uint64_t damaged_blocks = 0;
  uint64_t damaged_records = 0;     // that those blocks claimed to have
  uint64_t skipped_bytes = 0;       // that are no block at all
  uint64_t unverified_records = 0;  // of a block cut short: its checksum cannot be compared
  uint64_t unknown_records = 0;     // of types this version does not know
  uint64_t disordered = 0;          // records too late for the window in which they were sorted
  bool truncated = false;
  bool any() const {
    return ring_lost + dropped + damaged_blocks + skipped_bytes + disordered != 0 || truncated;
  }
  // One line each: "2 damaged blocks left out (8192 records)".
  std::vector<std::string> Lines() const;
};

struct TraceEvent {
  TraceRecord record;
  uint64_t offset = 0;  // of the record in the file
};

class TraceReader {
 public:
  using Sink = std::function<void(const TraceEvent&)>;

  // Throws TraceError when this is no trace this version can read.
  explicit TraceReader(std::unique_ptr<ByteSource> source);

  const TraceFileHeader& header() const { return header_; }
  const TraceMeta& meta() const { return meta_; }
  const std::string& meta_json() const { return meta_json_; }
  const std::string& meta_problem() const { return meta_problem_; }
  const TraceLosses& losses() const { return losses_; }
  uint64_t records() const { return records_; }
  uint64_t blocks() const { return blocks_.size(); }
  uint64_t bytes() const { return source_->size(); }
  // Of the records; both are header().start_ns in a trace without any.
  uint64_t first_ns() const { return first_ns_; }
  uint64_t last_ns() const { return last_ns_; }
  // The records' clock is that of no particular event; this is since the trace began.
  double SecondsOf(uint64_t time_ns) const;

  // Every readable record, ordered by time; one thread's records stay in their order. May be
  // called again.
  void ForEach(const Sink& sink);

 private:
  struct Block {
    uint64_t offset = 0;  // of its first record
    uint64_t least_ns = 0;
    uint32_t records = 0;
  };
  void ReadHeader();
  void ReadMeta();
  void Scan();
  uint64_t ScanBlock(uint64_t offset);
  uint64_t SkipTo(uint64_t offset);
  bool Load(const Block& block, std::vector<TraceRecord>* records) const;

  std::unique_ptr<ByteSource> source_;
  TraceFileHeader header_;
  TraceMeta meta_;
  std::string meta_json_;
  std::string meta_problem_;
  TraceLosses losses_;
  std::vector<Block> blocks_;
  std::vector<TraceRecord> buffer_;
  uint64_t end_ = 0;  // of the blocks
  uint64_t records_ = 0;
  uint64_t first_ns_ = 0;
  uint64_t last_ns_ = 0;
};

}  // namespace weir::trace_tool
