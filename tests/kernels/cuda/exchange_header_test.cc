#include "kernels/cuda/exchange_header.h"

#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace weir::cuda {
namespace {

// Every piece of every range once, in order, and nothing behind the last.
TEST(ExchangeHeader, NumbersThePiecesOfItsRanges) {
  std::mt19937 engine(3);
  const auto below = [&engine](uint32_t n) { return static_cast<uint32_t>(engine()) % n; };
  for (int round = 0; round < 500; ++round) {
    ExchangeHeader header;
    header.ranges = below(kExchangeRanges + 1);
    std::vector<uint32_t> want;
    uint32_t at = sizeof(header) / kExchangePiece;
    for (uint32_t r = 0; r < kExchangeRanges; ++r) {
      at += below(3);
      const uint32_t count = below(4) == 0 ? 0 : below(below(2) == 0 ? 3 : 200);
      // Beyond |ranges| stands what an earlier step left there.
      header.range[r] = {at * kExchangePiece, (at + count) * kExchangePiece};
      for (uint32_t i = 0; i < count && r < header.ranges; ++i) want.push_back(at + i);
      at += count;
    }
    for (uint32_t n = 0; n < want.size(); ++n) ASSERT_EQ(header.PieceAt(n), want[n]) << n;
    for (const uint32_t beyond : {0U, 1U, 1000U, 1U << 20, 1U << 31}) {
      ASSERT_EQ(header.PieceAt(static_cast<uint32_t>(want.size()) + beyond),
                ExchangeHeader::kNowhere);
    }
  }
}

}  // namespace
}  // namespace weir::cuda
