#pragma once

#include "kernels/cuda/launch.h"

namespace weir::bench {

// A kernel of |blocks| blocks of 256 threads that does nothing: what a launch costs.
cuda::LaunchStatus Empty(int blocks, const cuda::Launch& launch);

}  // namespace weir::bench
