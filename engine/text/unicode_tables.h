// Tables of the Unicode character database, generated (see unicode_tables.cc). Sorted by code
// point.
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

// Case mappings: code points first, first + stride, ... last map to themselves plus |delta|.
struct CaseRange {
  uint32_t first;
  uint32_t last;
  uint32_t stride;
  int32_t delta;
};
extern const CaseRange kUpperRanges[];
extern const size_t kUpperRangeCount;
extern const CaseRange kLowerRanges[];
extern const size_t kLowerRangeCount;
// Upper case mappings to more than one character, padded with zeros.
struct CaseSpecial {
  uint32_t code_point;
  uint32_t to[3];
};
extern const CaseSpecial kUpperSpecials[];
extern const size_t kUpperSpecialCount;

// What Python's str.isprintable calls not printable.
extern const CodePointRange kUnprintableRanges[];
extern const size_t kUnprintableRangeCount;

}  // namespace weir
