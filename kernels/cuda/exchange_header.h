// What a block of inputs begins with (exchange.h), and which of its bytes are fetched. Arithmetic
// alone: on the device, and on the host for tests.
#pragma once

#include <cstdint>

#include "kernels/cuda/host_device.h"

namespace weir::cuda {

inline constexpr uint32_t kExchangePiece = 16;  // bytes that a thread fetches at once
inline constexpr uint32_t kExchangeRanges = 6;

// Bytes [begin, end) of the block, both multiples of kExchangePiece.
struct ExchangeRange {
  uint32_t begin = 0, end = 0;
};

struct alignas(kExchangePiece) ExchangeHeader {
  uint64_t step = 0;  // the host's number: results of another one are not those it waits for
  uint32_t result_bytes = 0;
  uint32_t ranges = 0;
  ExchangeRange range[kExchangeRanges] = {};  // that the step needs, besides the header

  static constexpr uint32_t kNowhere = ~0U;
  // Where the |n|th piece of all ranges is, one range behind the other, in pieces; kNowhere: there
  // are fewer. No memory is read for it but the header's: a warp whose pieces are of several ranges
  // asks for all of them at once.
  WEIR_BOTH uint32_t PieceAt(uint32_t n) const {
    uint32_t at = kNowhere;
    for (uint32_t r = 0; r < kExchangeRanges; ++r) {
      const uint32_t first = range[r].begin / kExchangePiece;
      const uint32_t count = r < ranges ? range[r].end / kExchangePiece - first : 0;
      if (n < count) at = first + n;
      n -= count;  // wraps once it is found, to more than any count
    }
    return at;
  }
};

}  // namespace weir::cuda
