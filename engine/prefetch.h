// Prefetch: what is about to be read, fetched while the CPU does something else.
//
// By the time a step has run, other work has pushed what the host keeps of its sequences out of the
// CPU's caches, and it lies anywhere in memory: fetched one after the other it takes longer than
// all that is done with it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weir {

inline constexpr size_t kPrefetchAhead = 8;  // sequences: about what a CPU keeps under way

// |bytes| at |from|; of many only the first: where reading goes on in order the CPU sees itself.
inline void Prefetch(const void* from, size_t bytes) {
  constexpr size_t kLine = 64, kMost = 1024;
  const auto* const begin = static_cast<const std::byte*>(from);
  const auto* const end = begin + (bytes < kMost ? bytes : kMost);
  // From the beginning of a line: where it ends in another one that is fetched as well.
  for (const auto* at = begin - reinterpret_cast<uintptr_t>(begin) % kLine; at < end; at += kLine) {
    __builtin_prefetch(at);
    // GCC leaves out calls of a function that does nothing but prefetch.
    asm volatile("" : : "r"(at));
  }
}

}  // namespace weir
