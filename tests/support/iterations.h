// How long a randomised test runs: a default for CI, more from the environment for a long night.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace weir::testing {

inline uint64_t Iterations(const char* variable, uint64_t by_default) {
  const char* text = std::getenv(variable);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : by_default;
}

}  // namespace weir::testing
