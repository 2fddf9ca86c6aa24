// Drivers by name, for benchmarks.
#pragma once

#include <memory>
#include <string>

#include "vmm/driver.h"

namespace weir::bench {

enum class WithPeer : uint8_t { kNo, kYes };

// "host", "host-populate", "sim", "cuda" (GPU 0; with a peer: GPU 1's memory is tier peer).
// kUnsupported: no such driver in this build, or none with a peer; otherwise the driver's error.
Result<std::unique_ptr<Driver>> MakeDriver(const std::string& name, WithPeer peer);

}  // namespace weir::bench
