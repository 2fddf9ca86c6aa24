#include "engine/cli/size_text.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <utility>

namespace weir::cli {
namespace {

struct Unit {
  std::string_view name;
  uint64_t bytes;
};
constexpr std::array<Unit, 9> kUnits = {{{"B", 1},
                                         {"KiB", 1ULL << 10},
                                         {"MiB", 1ULL << 20},
                                         {"GiB", 1ULL << 30},
                                         {"TiB", 1ULL << 40},
                                         {"KB", 1000},
                                         {"MB", 1000 * 1000},
                                         {"GB", 1000ULL * 1000 * 1000},
                                         {"TB", 1000ULL * 1000 * 1000 * 1000}}};
// The most a number with a unit may mean.
constexpr uint64_t kMostBytes = 9'000'000'000'000'000'000;

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

Status NotASize(std::string_view text) {
  return InvalidArgument("\"" + OneLine(text, 40) +
                         "\" is not a size; accepted: bytes, or a number with KiB, MiB, GiB, TiB "
                         "(or KB, MB, GB, TB), such as \"300MiB\"");
}

bool EqualIgnoringCase(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
    if (lower(a[i]) != lower(b[i])) return false;
  }
  return true;
}

}  // namespace

Result<uint64_t> ParseSize(std::string_view text) {
  const std::string_view trimmed = Trim(text);
  double number = 0;
  const char* end = trimmed.data() + trimmed.size();
  const auto [rest, error] = std::from_chars(trimmed.data(), end, number, std::chars_format::fixed);
  if (error != std::errc{} || !(number >= 0)) return NotASize(text);
  const std::string_view unit_name = Trim(std::string_view(rest, static_cast<size_t>(end - rest)));
  if (unit_name.empty()) {
    // Plain bytes exactly, beyond what a double holds.
    uint64_t bytes = 0;
    const auto [stop, bad] = std::from_chars(trimmed.data(), end, bytes);
    if (bad != std::errc{} || stop != end) return NotASize(text);
    return bytes;
  }
  for (const Unit& unit : kUnits) {
    if (!EqualIgnoringCase(unit.name, unit_name)) continue;
    const double bytes = number * static_cast<double>(unit.bytes);
    if (bytes > static_cast<double>(kMostBytes)) return NotASize(text);
    return static_cast<uint64_t>(std::llround(bytes));
  }
  return NotASize(text);
}

std::string SizeText(uint64_t bytes) {
  for (const size_t i : {4U, 3U, 2U, 1U}) {
    if (bytes != 0 && bytes <= kMostBytes && bytes % kUnits[i].bytes == 0) {
      return std::to_string(bytes / kUnits[i].bytes) + std::string(kUnits[i].name);
    }
  }
  return std::to_string(bytes);
}

std::string HumanSize(uint64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes >= 1ULL << 30) return Fixed(value / (1ULL << 30), 2) + " GiB";
  if (bytes >= 1ULL << 20) return Fixed(value / (1ULL << 20), 1) + " MiB";
  if (bytes >= 1ULL << 10) return Fixed(value / (1ULL << 10), 1) + " KiB";
  return std::to_string(bytes) + " B";
}

Result<uint64_t> ParseCount(std::string_view text, uint64_t least, uint64_t most) {
  const std::string_view trimmed = Trim(text);
  uint64_t value = 0;
  const char* end = trimmed.data() + trimmed.size();
  const auto [stop, error] = std::from_chars(trimmed.data(), end, value);
  if (error != std::errc{} || stop != end || value < least || value > most) {
    return InvalidArgument("\"" + OneLine(text, 40) +
                           "\" is not accepted; give a whole number from " + std::to_string(least) +
                           " to " + std::to_string(most));
  }
  return value;
}

Result<double> ParseReal(std::string_view text, double least, double most) {
  const std::string_view trimmed = Trim(text);
  double value = 0;
  const char* end = trimmed.data() + trimmed.size();
  const auto [stop, error] = std::from_chars(trimmed.data(), end, value);
  if (error != std::errc{} || stop != end || !(value >= least && value <= most)) {
    return InvalidArgument("\"" + OneLine(text, 40) + "\" is not accepted; give a number from " +
                           RealText(least) + " to " + RealText(most));
  }
  return value;
}

std::string RealText(double value) {
  std::array<char, 32> buffer{};
  const auto [end, error] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  return error == std::errc{} ? std::string(buffer.data(), end) : "?";
}

std::string Fixed(double value, int digits) {
  std::array<char, 64> buffer{};
  const int n = std::snprintf(buffer.data(), buffer.size(), "%.*f", digits, value);
  return n > 0 ? std::string(buffer.data(), std::min<size_t>(static_cast<size_t>(n), 63)) : "?";
}

std::string Grouped(uint64_t value) {
  std::string digits = std::to_string(value);
  for (size_t at = digits.size(); at > 3; at -= 3) digits.insert(at - 3, ",");
  return digits;
}

std::string OneLine(std::string_view text, size_t most) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (out.size() >= most) {
      // Not in the middle of a UTF-8 character.
      while (!out.empty() && (static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) {
        --i;
        out.pop_back();
      }
      return out + "...";
    }
    const auto c = static_cast<unsigned char>(text[i]);
    // C1 controls are U+0080..U+009F: 0xC2 0x80..0x9F.
    const bool c1 =
        c == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if (c1) ++i;
    const bool control = c < 0x20 || c == 0x7F || c1;
    if (!control) {
      out.push_back(text[i]);
    } else if (out.empty() || out.back() != ' ') {
      out.push_back(' ');
    }
  }
  return out;
}

}  // namespace weir::cli
