#include "engine/text/unicode.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "engine/text/unicode_tables.h"
#include "engine/text/utf8.h"

namespace weir {
namespace {

// Hangul syllables are composed by arithmetic (Unicode Standard, section 3.12).
constexpr char32_t kSBase = 0xAC00, kLBase = 0x1100, kVBase = 0x1161, kTBase = 0x11A7;
constexpr char32_t kLCount = 19, kVCount = 21, kTCount = 28;
constexpr char32_t kSCount = kLCount * kVCount * kTCount;

const CanonicalDecomposition* FindDecomposition(char32_t c) {
  const auto* end = kCanonicalDecompositions + kCanonicalDecompositionCount;
  const auto* it = std::lower_bound(
      kCanonicalDecompositions, end, c,
      [](const CanonicalDecomposition& d, char32_t v) { return d.code_point < v; });
  return it != end && it->code_point == c ? it : nullptr;
}

void AppendDecomposed(char32_t c, std::u32string* out) {
  if (c >= kSBase && c < kSBase + kSCount) {
    const char32_t s = c - kSBase;
    out->push_back(kLBase + s / (kVCount * kTCount));
    out->push_back(kVBase + s % (kVCount * kTCount) / kTCount);
    if (s % kTCount != 0) out->push_back(kTBase + s % kTCount);
    return;
  }
  // The first part may decompose again, the second never does; the chain has at most four links.
  char32_t tail[8];
  size_t tails = 0;
  const CanonicalDecomposition* d = c < 0xC0 ? nullptr : FindDecomposition(c);
  while (d != nullptr && tails < 8) {
    if (d->second != 0) tail[tails++] = d->second;
    c = d->first;
    d = FindDecomposition(c);
  }
  out->push_back(c);
  while (tails > 0) {
    const char32_t t = tail[--tails];
    if (FindDecomposition(t) != nullptr) {
      AppendDecomposed(t, out);
    } else {
      out->push_back(t);
    }
  }
}

const std::unordered_map<uint64_t, char32_t>& Compositions() {
  static const auto* map = [] {
    auto* m = new std::unordered_map<uint64_t, char32_t>();
    for (size_t i = 0; i < kCanonicalDecompositionCount; ++i) {
      const CanonicalDecomposition& d = kCanonicalDecompositions[i];
      if (d.composes != 0) m->emplace((uint64_t{d.first} << 32) | d.second, d.code_point);
    }
    return m;
  }();
  return *map;
}

// The primary composite of |a| and |b|, or 0.
char32_t Compose(char32_t a, char32_t b) {
  if (a >= kLBase && a < kLBase + kLCount && b >= kVBase && b < kVBase + kVCount) {
    return kSBase + ((a - kLBase) * kVCount + (b - kVBase)) * kTCount;
  }
  if (a >= kSBase && a < kSBase + kSCount && (a - kSBase) % kTCount == 0 && b > kTBase &&
      b < kTBase + kTCount) {
    return a + (b - kTBase);
  }
  const auto it = Compositions().find((uint64_t{a} << 32) | b);
  return it == Compositions().end() ? 0 : it->second;
}

}  // namespace

bool IsUnicodeNumber(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  const auto* end = kNumberRanges + kNumberRangeCount;
  const auto* it = std::lower_bound(kNumberRanges, end, c,
                                    [](const CodePointRange& r, char32_t v) { return r.last < v; });
  return it != end && it->first <= c;
}

uint8_t CombiningClass(char32_t c) {
  if (c < 0x300) return 0;
  const auto* end = kCombiningRanges + kCombiningRangeCount;
  const auto* it = std::lower_bound(kCombiningRanges, end, c,
                                    [](const CombiningRange& r, char32_t v) { return r.last < v; });
  return it != end && it->first <= c ? it->combining_class : 0;
}

bool IsQuicklyNfc(std::string_view text) {
  // Below U+0300 everything is its own NFC and combines with nothing; lead bytes below 0xCC.
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0xCC; });
}

std::string NormalizeNfc(std::string_view text) {
  std::u32string chars;
  chars.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) AppendDecomposed(NextCodePoint(text, &pos), &chars);

  std::vector<uint8_t> classes(chars.size());
  for (size_t i = 0; i < chars.size(); ++i) classes[i] = CombiningClass(chars[i]);
  std::vector<std::pair<uint8_t, char32_t>> run;
  for (size_t i = 0; i < chars.size();) {
    if (classes[i] == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    run.clear();
    while (end < chars.size() && classes[end] != 0) {
      run.emplace_back(classes[end], chars[end]);
      ++end;
    }
    std::stable_sort(run.begin(), run.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (size_t k = i; k < end; ++k) {
      classes[k] = run[k - i].first;
      chars[k] = run[k - i].second;
    }
    i = end;
  }

  // Compose in place: a character joins the last starter unless something between blocks it.
  size_t out = 0;
  size_t starter = SIZE_MAX;
  uint8_t last_class = 0;
  for (size_t i = 0; i < chars.size(); ++i) {
    const bool adjacent = starter != SIZE_MAX && starter + 1 == out;
    if (starter != SIZE_MAX && (adjacent || (last_class < classes[i] && last_class != 0))) {
      const char32_t composed = Compose(chars[starter], chars[i]);
      if (composed != 0) {
        chars[starter] = composed;
        continue;
      }
    }
    if (classes[i] == 0) starter = out;
    last_class = classes[i];
    chars[out++] = chars[i];
  }
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < out; ++i) AppendCodePoint(chars[i], &result);
  return result;
}

}  // namespace weir
