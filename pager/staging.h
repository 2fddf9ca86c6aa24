// Staging: host memory that the device's copy engine and this process both reach.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vmm/driver.h"
#include "vmm/status.h"

namespace weir {

// Owns one allocation of Tier::kHost (pinned, where there is a GPU) and its mapping. No copy may be
// under way when it goes. Engine thread.
class Staging {
 public:
  Staging() = default;
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Once; |bytes| is rounded up to the driver's granularity. kNoMemory, kUnsupported: as
  // Driver::Create. Drivers of simulated memory, which nobody can read into, are kUnsupported.
  Status Make(Driver& driver, uint64_t bytes);
  VirtAddr base() const { return base_; }
  std::span<std::byte> span() const {
    return {reinterpret_cast<std::byte*>(base_), static_cast<size_t>(bytes_)};
  }

 private:
  Driver* driver_ = nullptr;
  VirtAddr base_ = 0;
  uint64_t bytes_ = 0;
  AllocId alloc_;
  bool mapped_ = false;
};

}  // namespace weir
