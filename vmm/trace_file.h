// TraceFileWriter: a trace file being written (layout: trace_format.h).
//
// Represents an open file, readable by its owner only. The metadata at its head is kept up to date
// in place while it fits into the room left for it, so that also the file of a killed process says
// what its numbers mean. After an error nothing more is written. One thread at a time.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "vmm/status.h"
#include "vmm/trace_format.h"

namespace weir {

class TraceFileWriter {
 public:
  // Makes or replaces |path|. kIo names the path and the system's reason. |start_ns| is the
  // records' clock now, |mask| the types that will come.
  static Result<std::unique_ptr<TraceFileWriter>> Create(const std::string& path, uint64_t start_ns,
                                                         uint64_t mask, std::string_view metadata);
  ~TraceFileWriter();  // closes without the metadata at the end, if Close was not called
  TraceFileWriter(const TraceFileWriter&) = delete;
  TraceFileWriter& operator=(const TraceFileWriter&) = delete;

  // As many blocks as it takes, at least one. |lost|: records that the rings lost since the last.
  Status Append(std::span<const TraceRecord> records, uint64_t lost);
  Status SetMetadata(std::string_view json);
  // Writes |metadata| behind the last block and closes the file.
  Status Close(std::string_view metadata);

  uint64_t bytes() const { return at_; }
  const std::string& path() const { return path_; }

 private:
  TraceFileWriter(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  Status WriteAt(const void* data, size_t bytes, uint64_t at);
  Status WriteHead(std::string_view metadata);
  Status WriteBlock(std::span<const TraceRecord> records, uint64_t lost);

  int fd_;
  std::string path_;
  TraceFileHeader header_;
  uint64_t at_ = 0;  // where the next block goes
};

}  // namespace weir
