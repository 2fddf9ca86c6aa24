// Persist: for driver calls whose failure would lose something for good (an undo, a release).
#pragma once

#include "vmm/status.h"

namespace weir {

// Calls |call| until it succeeds, at most a few times; the last status.
template <typename Call>
Status Persist(const Call& call) {
  constexpr int kTries = 5;
  Status status = call();
  for (int i = 1; i < kTries && !status.ok(); ++i) status = call();
  return status;
}

}  // namespace weir
