// Python's string functions on UTF-8, for chat templates.
#include <algorithm>

#include "engine/text/jinja_value.h"
#include "engine/text/unicode_tables.h"
#include "engine/text/utf8.h"

namespace weir::jinja {
namespace {

char32_t MapCase(const CaseRange* ranges, size_t count, char32_t c) {
  const auto* it = std::lower_bound(ranges, ranges + count, c,
                                    [](const CaseRange& r, char32_t v) { return r.last < v; });
  // Ranges of stride 2 interleave: look at those that start before |c|.
  for (; it != ranges + count && it->first <= c; ++it) {
    if ((c - it->first) % it->stride == 0) {
      return static_cast<char32_t>(static_cast<int32_t>(c) + it->delta);
    }
  }
  return c;
}

char32_t LowerOf(char32_t c) {
  return MapCase(kLowerRanges, kLowerRangeCount, c);
}
char32_t UpperOf(char32_t c) {
  return MapCase(kUpperRanges, kUpperRangeCount, c);
}

void AppendUpper(char32_t c, std::string* out) {
  if (c >= 0x80) {
    for (size_t i = 0; i < kUpperSpecialCount; ++i) {
      if (kUpperSpecials[i].code_point != c) continue;
      for (const uint32_t to : kUpperSpecials[i].to) {
        if (to != 0) AppendCodePoint(to, out);
      }
      return;
    }
  }
  AppendCodePoint(UpperOf(c), out);
}

void AppendLower(char32_t c, std::string* out) {
  AppendCodePoint(LowerOf(c), out);
  if (c == 0x130) AppendCodePoint(0x307, out);  // the one lower case of two characters
}

}  // namespace

bool IsPythonSpace(char32_t c) {
  return IsUnicodeSpace(c) || (c >= 0x1C && c <= 0x1F);
}

bool IsCased(char32_t c) {
  return LowerOf(c) != c || UpperOf(c) != c || c == 0xDF;
}

std::string Strip(std::string_view text, const std::string* chars, StripSide side) {
  std::u32string set;
  for (size_t pos = 0; chars != nullptr && pos < chars->size();) {
    set.push_back(NextCodePoint(*chars, &pos));
  }
  const auto strips = [&](char32_t c) {
    return chars == nullptr ? IsPythonSpace(c) : set.find(c) != std::u32string::npos;
  };
  if (side != StripSide::kRight) {
    while (!text.empty()) {
      size_t pos = 0;
      if (!strips(NextCodePoint(text, &pos))) break;
      text.remove_prefix(pos);
    }
  }
  if (side != StripSide::kLeft) {
    while (!text.empty()) {
      size_t at = text.size() - 1;
      while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
      size_t pos = at;
      if (!strips(NextCodePoint(text, &pos))) break;
      text = text.substr(0, at);
    }
  }
  return std::string(text);
}

std::string ToUpper(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) AppendUpper(NextCodePoint(text, &pos), &out);
  return out;
}

std::string ToLower(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) AppendLower(NextCodePoint(text, &pos), &out);
  return out;
}

std::string Capitalize(std::string_view text) {
  std::string out;
  size_t pos = 0;
  if (!text.empty()) {
    const char32_t first = NextCodePoint(text, &pos);
    // Title case differs from upper case for ligatures and the like: U+00DF gives "Ss".
    std::string upper;
    AppendUpper(first, &upper);
    size_t at = 0;
    AppendCodePoint(NextCodePoint(upper, &at), &out);
    out += ToLower(std::string_view(upper).substr(at));
  }
  return out + ToLower(text.substr(pos));
}

std::vector<std::string> SplitCharacters(std::string_view text) {
  std::vector<std::string> characters;
  for (size_t pos = 0; pos < text.size();) {
    const size_t length = Utf8Length(text[pos]);
    characters.emplace_back(text.substr(pos, length));
    pos += length;
  }
  return characters;
}

}  // namespace weir::jinja
