// Checked unsigned arithmetic for sizes that come from files and users. Loaders use nothing else.
#pragma once

#include <cstdint>
#include <optional>

namespace weir {

inline std::optional<uint64_t> CheckedAdd(uint64_t a, uint64_t b) {
  uint64_t r = 0;
  if (__builtin_add_overflow(a, b, &r)) return std::nullopt;
  return r;
}
inline std::optional<uint64_t> CheckedMul(uint64_t a, uint64_t b) {
  uint64_t r = 0;
  if (__builtin_mul_overflow(a, b, &r)) return std::nullopt;
  return r;
}
// The smallest multiple of |alignment| (a power of two) not below |v|.
inline std::optional<uint64_t> CheckedAlignUp(uint64_t v, uint64_t alignment) {
  const auto r = CheckedAdd(v, alignment - 1);
  if (!r) return std::nullopt;
  return *r & ~(alignment - 1);
}

}  // namespace weir
