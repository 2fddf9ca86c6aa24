#include "vmm/host_memory.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(WEIR_HAVE_NUMA)
#include <numa.h>
#include <numaif.h>
#endif

#include "vmm/types.h"

namespace weir {

Status SystemError(const std::string& what, int error) {
  char text[128];
  const char* message = strerror_r(error, text, sizeof text);
  const bool memory = error == ENOMEM || error == ENOSPC || error == EAGAIN;
  return {memory ? StatusCode::kNoMemory : StatusCode::kIo, what + ": " + message};
}

HostMemory::~HostMemory() {
  if (fd_ >= 0) ::close(fd_);
}

Status HostMemory::Open() {
  if (numa_node_ >= 0) {
#if defined(WEIR_HAVE_NUMA)
    const bool exists =
        numa_available() >= 0 && numa_node_ <= numa_max_node() &&
        numa_bitmask_isbitset(numa_all_nodes_ptr, static_cast<unsigned>(numa_node_)) != 0;
    if (!exists) {
      return Unsupported("memory on NUMA node " + std::to_string(numa_node_) +
                         ", which this machine does not have");
    }
#else
    return Unsupported("memory on a chosen NUMA node; this build has no libnuma");
#endif
  }
  fd_ = ::memfd_create(("weir-" + name_).c_str(), MFD_CLOEXEC);
  if (fd_ < 0) return SystemError("memfd_create for tier " + name_, errno);
  return OkStatus();
}

Result<uint64_t> HostMemory::Allocate(uint64_t bytes) {
  if (cap_bytes_ != 0 && (bytes > cap_bytes_ || used_bytes_ > cap_bytes_ - bytes)) {
    return NoMemory("tier " + name_ + " has " + std::to_string(cap_bytes_ - used_bytes_) + " of " +
                    std::to_string(cap_bytes_) + " bytes left, " + std::to_string(bytes) +
                    " asked");
  }
  const uint64_t alignment = bytes >= kHugePageBytes ? kHugePageBytes : 1;
  const auto fits = [&](const auto& hole) {
    return AlignUp(hole.first, alignment) + bytes <= hole.first + hole.second;
  };
  const auto hole = std::find_if(holes_.begin(), holes_.end(), fits);
  const uint64_t offset = AlignUp(hole != holes_.end() ? hole->first : end_, alignment);
  if (hole == holes_.end() && ::ftruncate(fd_, static_cast<off_t>(offset + bytes)) != 0) {
    return SystemError("growing tier " + name_, errno);
  }
  const auto undo = [&] {
    if (hole == holes_.end()) {
      (void)!::ftruncate(fd_, static_cast<off_t>(end_));
    } else {
      (void)::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                        static_cast<off_t>(bytes));
    }
  };
  if (Status placed = Place(offset, bytes); !placed.ok()) {
    undo();
    return placed;
  }
  if (reserve_ == HostReserve::kAtCreate &&
      ::fallocate(fd_, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                  static_cast<off_t>(bytes)) != 0) {
    const int error = errno;
    undo();
    return SystemError("taking " + std::to_string(bytes) + " bytes for tier " + name_, error);
  }
  // What lies before and behind the extent: of the hole, or skipped at the end of the file.
  const bool at_end = hole == holes_.end();
  const uint64_t begin = at_end ? end_ : hole->first;
  const uint64_t end = at_end ? offset + bytes : hole->first + hole->second;
  if (at_end) {
    end_ = end;
  } else {
    holes_.erase(hole);
  }
  AddHole(begin, offset - begin);
  AddHole(offset + bytes, end - offset - bytes);
  used_bytes_ += bytes;
  return offset;
}

// The policy set through any mapping of a shared object holds for the object's range, whoever maps
// or touches it later.
Status HostMemory::Place(uint64_t offset, uint64_t bytes) {
  if (numa_node_ < 0) return OkStatus();
#if defined(WEIR_HAVE_NUMA)
  void* view = ::mmap(nullptr, bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, fd_,
                      static_cast<off_t>(offset));
  if (view == MAP_FAILED) return SystemError("mapping for placement", errno);
  bitmask* nodes = numa_allocate_nodemask();
  numa_bitmask_setbit(nodes, static_cast<unsigned>(numa_node_));
  const long bound = ::mbind(view, bytes, MPOL_BIND, nodes->maskp, nodes->size + 1, 0);
  const int error = errno;
  numa_free_nodemask(nodes);
  ::munmap(view, bytes);
  if (bound != 0) return SystemError("mbind to node " + std::to_string(numa_node_), error);
#else
  (void)offset;
  (void)bytes;
#endif
  return OkStatus();
}

void HostMemory::Release(uint64_t offset, uint64_t bytes) {
  // A failure leaves pages behind that the next user of the extent gets with old bytes: contents
  // are unspecified anyway.
  (void)::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                    static_cast<off_t>(bytes));
  used_bytes_ -= bytes;
  AddHole(offset, bytes);
}

void HostMemory::AddHole(uint64_t offset, uint64_t bytes) {
  if (bytes == 0) return;
  auto next = holes_.lower_bound(offset);
  if (next != holes_.end() && next->first == offset + bytes) {
    bytes += next->second;
    next = holes_.erase(next);
  }
  if (next != holes_.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += bytes;
      return;
    }
  }
  holes_.emplace(offset, bytes);
}

}  // namespace weir
