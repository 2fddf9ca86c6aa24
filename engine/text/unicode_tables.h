// Tables of the Unicode character database, generated (see unicode_tables.cc). Sorted by code point.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weir {

// One level of canonical decomposition: |code_point| -> |first| [|second|]. |second| is 0 for a
// singleton. |composes|: first + second compose back to it (it is no composition exclusion).
struct CanonicalDecomposition {
  uint32_t code_point;
  uint32_t first;
  uint32_t second;
  uint8_t composes;
};
extern const CanonicalDecomposition kCanonicalDecompositions[];
extern const size_t kCanonicalDecompositionCount;

// Code points [first, last] with a non-zero canonical combining class.
struct CombiningRange {
  uint32_t first;
  uint32_t last;
  uint8_t combining_class;
};
extern const CombiningRange kCombiningRanges[];
extern const size_t kCombiningRangeCount;

struct CodePointRange {
  uint32_t first;
  uint32_t last;
};
// General category N (Nd, Nl, No).
extern const CodePointRange kNumberRanges[];
extern const size_t kNumberRangeCount;

}  // namespace weir
