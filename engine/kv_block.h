// What a KV block and the prefix that ends in it are called.
#pragma once

#include <cstdint>
#include <span>

namespace weir {

inline constexpr uint32_t kBlockTokens = 16;

using BlockId = uint32_t;
inline constexpr BlockId kNoBlock = static_cast<BlockId>(-1);

// Identity of a prefix that ends at a block boundary: a 128-bit hash chained over (parent, tokens).
struct PrefixHash {
  uint64_t low = 0;
  uint64_t high = 0;
  bool operator==(const PrefixHash&) const = default;
};
// The hash before the first block: separates tenants (|salt|) and models.
PrefixHash PrefixRoot(uint64_t salt);
// The hash of the prefix |parent| extended by one block's tokens.
PrefixHash ChainPrefix(const PrefixHash& parent, std::span<const int32_t, kBlockTokens> tokens);

// A block's tokens behind their prefix. |tokens| stays the caller's.
struct BlockContent {
  PrefixHash parent;
  std::span<const int32_t, kBlockTokens> tokens;
  PrefixHash hash = ChainPrefix(parent, tokens);
};

}  // namespace weir
