// HostMemory: one memfd and which extents of it are in use.
//
// Represents the physical memory of one tier on the CPU. An extent is what CUDA calls an
// allocation: it can be mapped anywhere, any number of times. A released extent's pages go back to
// the system at once (hole punching) and its offsets are used again. Not synchronised: HostDriver's
// lock covers it.
#pragma once

#include <map>
#include <string>

#include "vmm/status.h"

namespace weir {

// When an extent's pages are taken from the system.
enum class HostReserve : uint8_t {
  kLazy,      // at first touch: creating costs nothing, running out is the OOM killer's business
  kAtCreate,  // when created: kNoMemory instead, and the zeroing is paid then
};

class HostMemory {
 public:
  // Extents that have room for such a page begin with one.
  static constexpr uint64_t kHugePageBytes = 2 << 20;

  // |cap_bytes| 0: no cap. |numa_node| -1: wherever the first toucher runs.
  HostMemory(std::string name, uint64_t cap_bytes, int numa_node, HostReserve reserve)
      : name_(std::move(name)), cap_bytes_(cap_bytes), numa_node_(numa_node), reserve_(reserve) {}
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  // Makes the memfd. kIo where the system has none, kUnsupported when the NUMA node does not exist.
  Status Open();
  // The offset of a new extent. kNoMemory beyond the cap or when the system has no pages.
  Result<uint64_t> Allocate(uint64_t bytes);
  void Release(uint64_t offset, uint64_t bytes);
  int fd() const { return fd_; }
  uint64_t used_bytes() const { return used_bytes_; }

 private:
  Status Place(uint64_t offset, uint64_t bytes);
  void AddHole(uint64_t offset, uint64_t bytes);

  std::string name_;
  uint64_t cap_bytes_;
  int numa_node_;
  HostReserve reserve_;
  int fd_ = -1;
  uint64_t end_ = 0;  // size of the file
  uint64_t used_bytes_ = 0;
  std::map<uint64_t, uint64_t> holes_;  // offset -> bytes, neighbours merged
};

// "mmap: Cannot allocate memory" as kNoMemory or kIo by |error|.
Status SystemError(const std::string& what, int error);

}  // namespace weir
