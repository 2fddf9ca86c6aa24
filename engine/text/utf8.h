// UTF-8: validation with the offset of the first bad byte, decoding and encoding of code points.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace weir {

inline constexpr char32_t kReplacementCharacter = 0xFFFD;

// Offset of the first byte that does not belong to a well-formed sequence (no surrogates, no
// overlong forms, nothing above U+10FFFF; Unicode 15, table 3-7), or text.size() if there is none.
size_t FindInvalidUtf8(std::string_view text);

// What a well-formed-prefix test of the bytes at the start of |text| found.
enum class Utf8Prefix : uint8_t {
  kComplete,    // a whole character
  kIncomplete,  // more bytes may complete it
  kInvalid,     // no continuation makes it well-formed
};

// Classifies the character at the start of |text| (not empty). |*length| is the length of the
// character, of the incomplete tail, or of the maximal ill-formed subpart (>= 1).
Utf8Prefix ClassifyUtf8(std::string_view text, size_t* length);

// Bytes of the character that starts with |lead|, in text known to be valid.
inline size_t Utf8Length(char lead) {
  const auto c = static_cast<unsigned char>(lead);
  if (c < 0x80) return 1;
  if (c < 0xE0) return 2;
  return c < 0xF0 ? 3 : 4;
}

// The character at text[*pos], in text known to be valid; advances *pos past it.
char32_t NextCodePoint(std::string_view text, size_t* pos);

void AppendCodePoint(char32_t code_point, std::string* out);

// Appends |bytes| to |out| with each maximal ill-formed subpart replaced by U+FFFD.
void AppendLossyUtf8(std::string_view bytes, std::string* out);

// White_Space of the Unicode character database (what Rust, Python's str.strip and \s mean).
bool IsUnicodeSpace(char32_t code_point);

}  // namespace weir
