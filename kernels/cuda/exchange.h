// What a step and the host tell each other, inside the step's own launches: the first fetches the
// inputs out of pinned host memory, the last writes the results there. So a captured step is one
// launch: copies queued before and behind it cost the host as much again, or more.
//
// Two steps may be under way: they use two pairs of host blocks in turn, and |turn| says whose turn
// it is. It is read by a step's first launch and advanced by its last; whoever gives a step up in
// between (an error) sets it before the next.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/cuda/exchange_header.h"
#include "kernels/cuda/launch.h"

namespace weir::cuda {

// Every pointer is 16-byte aligned. Host memory is pinned: the device sees it at the host's
// address.
struct Exchange {
  std::array<const void*, 2> host_inputs{};
  std::array<void*, 2> host_results{};
  void* inputs = nullptr;   // an ExchangeHeader, and the ranges at the offsets that they have there
  void* results = nullptr;  // its first 16 bytes are ExchangeHeader::step and nothing
  uint32_t* turn = nullptr;
};

LaunchStatus FetchInputs(const Exchange& exchange, const Launch& launch);
LaunchStatus ReturnResults(const Exchange& exchange, const Launch& launch);

}  // namespace weir::cuda
