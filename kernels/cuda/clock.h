// The clock that gates and step logs are read from.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.h"

namespace weir::cuda {

// Stores %globaltimer (nanoseconds) to |out|, which may be pinned host memory, for the host to see
// at once (release, system scope).
LaunchStatus ReadClock(uint64_t* out, const Launch& launch);

}  // namespace weir::cuda
