#include "engine/text/utf8.h"

#include <cstring>

namespace weir {

Utf8Prefix ClassifyUtf8(std::string_view text, size_t* length) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  *length = 1;
  if (lead < 0x80) return Utf8Prefix::kComplete;
  if (lead < 0xC2 || lead > 0xF4) return Utf8Prefix::kInvalid;
  const size_t need = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  unsigned char low = 0x80;
  unsigned char high = 0xBF;
  if (lead == 0xE0) low = 0xA0;   // overlong
  if (lead == 0xED) high = 0x9F;  // surrogates
  if (lead == 0xF0) low = 0x90;   // overlong
  if (lead == 0xF4) high = 0x8F;  // above U+10FFFF
  for (size_t i = 1; i < need; ++i) {
    if (i >= text.size()) {
      *length = i;
      return Utf8Prefix::kIncomplete;
    }
    if (byte(i) < low || byte(i) > high) {
      *length = i;
      return Utf8Prefix::kInvalid;
    }
    low = 0x80;
    high = 0xBF;
  }
  *length = need;
  return Utf8Prefix::kComplete;
}

size_t FindInvalidUtf8(std::string_view text) {
  size_t pos = 0;
  while (pos < text.size()) {
    if (pos + 8 <= text.size()) {
      uint64_t word = 0;
      std::memcpy(&word, text.data() + pos, 8);
      if ((word & 0x8080808080808080u) == 0) {
        pos += 8;
        continue;
      }
    }
    size_t length = 0;
    if (ClassifyUtf8(text.substr(pos), &length) != Utf8Prefix::kComplete) return pos;
    pos += length;
  }
  return text.size();
}

char32_t NextCodePoint(std::string_view text, size_t* pos) {
  const auto byte = [&](size_t i) {
    return static_cast<char32_t>(static_cast<unsigned char>(text[*pos + i]));
  };
  const size_t length = Utf8Length(text[*pos]);
  char32_t c = byte(0);
  if (length == 2) {
    c = ((c & 0x1F) << 6) | (byte(1) & 0x3F);
  } else if (length == 3) {
    c = ((c & 0x0F) << 12) | ((byte(1) & 0x3F) << 6) | (byte(2) & 0x3F);
  } else if (length == 4) {
    c = ((c & 0x07) << 18) | ((byte(1) & 0x3F) << 12) | ((byte(2) & 0x3F) << 6) | (byte(3) & 0x3F);
  }
  *pos += length;
  return c;
}

void AppendCodePoint(char32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (c >> 6)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (c >> 12)));
    out->push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | (c >> 18)));
    out->push_back(static_cast<char>(0x80 | ((c >> 12) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

void AppendLossyUtf8(std::string_view bytes, std::string* out) {
  while (!bytes.empty()) {
    const size_t valid = FindInvalidUtf8(bytes);
    out->append(bytes.substr(0, valid));
    bytes.remove_prefix(valid);
    if (bytes.empty()) return;
    size_t length = 0;
    ClassifyUtf8(bytes, &length);
    AppendCodePoint(kReplacementCharacter, out);
    bytes.remove_prefix(length);
  }
}

bool IsUnicodeSpace(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

}  // namespace weir
