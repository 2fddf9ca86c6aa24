// Three levels of assertion.
//   WEIR_CHECK     always on: a broken invariant is a bug in weir, the process stops with a
//   message. WEIR_DCHECK    debug and sanitizer builds only. CheckIntegrity() methods (O(n)) are
//   called under WEIR_VALIDATE builds, in tests and when idle.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace weir {

// The one place every failed check passes through; put a breakpoint here.
[[noreturn]] inline void OnCheckFailed(const char* condition, const char* file, int line,
                                       const char* what) {
  std::fprintf(stderr, "weir: check failed: %s at %s:%d: %s\n", condition, file, line, what);
  std::fflush(stderr);
  std::abort();
}

}  // namespace weir

#define WEIR_CHECK(condition, what)                                  \
  do {                                                               \
    if (!(condition)) [[unlikely]]                                   \
      ::weir::OnCheckFailed(#condition, __FILE__, __LINE__, (what)); \
  } while (0)

#ifdef NDEBUG
#define WEIR_DCHECK(condition, what) \
  do {                               \
    (void)sizeof(!(condition));      \
  } while (0)
#else
#define WEIR_DCHECK(condition, what) WEIR_CHECK(condition, what)
#endif
