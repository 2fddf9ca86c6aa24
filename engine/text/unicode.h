// Unicode properties and the normalisation form C that tokenizers need.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace weir {

// General category N: what a "Digits" pre-tokenizer isolates.
bool IsUnicodeNumber(char32_t code_point);

// Canonical combining class, 0 for starters.
uint8_t CombiningClass(char32_t code_point);

// True if |text| (valid UTF-8) is certainly in NFC already; false means "normalise to find out".
bool IsQuicklyNfc(std::string_view text);

// Normalisation form C of |text| (valid UTF-8): full canonical decomposition, canonical ordering,
// canonical composition (Unicode Standard Annex 15). Marks added after Unicode 9 are left alone, as
// Hugging Face's normalizer does: the models were trained on its output. O(n log n) at worst in the
// longest run of combining marks.
std::string NormalizeNfc(std::string_view text);

}  // namespace weir
