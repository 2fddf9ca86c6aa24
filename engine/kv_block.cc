#define XXH_INLINE_ALL
#include "engine/kv_block.h"

#include <cstring>

#include <xxhash.h>

namespace weir {

PrefixHash PrefixRoot(uint64_t salt) {
  const XXH128_hash_t h = XXH3_128bits_withSeed("weir-prefix-root", 16, salt);
  return {h.low64, h.high64};
}

PrefixHash ChainPrefix(const PrefixHash& parent, std::span<const int32_t, kBlockTokens> tokens) {
  struct {
    uint64_t low, high;
    int32_t tokens[kBlockTokens];
  } input;
  input.low = parent.low;
  input.high = parent.high;
  std::memcpy(input.tokens, tokens.data(), sizeof(input.tokens));
  const XXH128_hash_t h = XXH3_128bits(&input, sizeof(input));
  return {h.low64, h.high64};
}

}  // namespace weir
