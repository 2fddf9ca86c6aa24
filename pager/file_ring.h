// FileRing: asynchronous file reads and writes through io_uring; completions owned by the caller
// (no allocation per request; TigerBeetle's io/linux.zig has the idea).
//
// Where the kernel refuses io_uring (containers often do), Create says so in mode(): requests are
// then executed with pread/pwrite inside Wait(). Same results, slower; the caller reports mode().
// One thread per ring.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "vmm/status.h"

namespace weir {

// One request. The caller keeps it and its buffer alive until done().
struct FileRequest {
  enum class Op : uint8_t { kRead, kWrite };
  Op op = Op::kRead;
  int fd = -1;
  uint64_t offset = 0;
  std::span<std::byte> buffer;  // short reads and writes are resumed until it is full
  // Results.
  Status status;  // kDataLoss when the file ends before the buffer is full
  bool done = false;
  uint64_t transferred = 0;
};

class FileRing {
 public:
  enum class Mode : uint8_t { kIoUring, kPread };
  struct Options {
    uint32_t depth = 32;         // requests in flight
    std::span<std::byte> fixed;  // optional: memory to register; buffers inside it avoid pinning
    Mode mode = Mode::kIoUring;  // kPread asks for the plain calls
  };
  static Result<std::unique_ptr<FileRing>> Create(const Options& options);
  virtual ~FileRing() = default;
  virtual Mode mode() const = 0;
  virtual std::string_view mode_reason() const = 0;  // why kPread was taken, "" otherwise
  // Queues |request|; waits for room when |depth| are in flight.
  virtual Status Submit(FileRequest* request) = 0;
  // Returns when |request| (or, for nullptr, everything) is done.
  virtual Status Wait(FileRequest* request) = 0;
};

}  // namespace weir
