// Sizes and numbers as people write and read them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "vmm/status.h"

namespace weir::cli {

// "300MiB", "2 GiB", "1.5GiB", "64k" is not accepted: a number with B, KiB, MiB, GiB, TiB, KB, MB,
// GB, TB, or plain bytes. kInvalidArgument says so.
Result<uint64_t> ParseSize(std::string_view text);
// The shortest exact form: "300MiB", "1536MiB", "1000". ParseSize reads it back to the same number.
std::string SizeText(uint64_t bytes);
// For people: "1.50 GiB", "300.0 MiB", "12.0 KiB", "17 B".
std::string HumanSize(uint64_t bytes);

Result<uint64_t> ParseCount(std::string_view text, uint64_t least, uint64_t most);
Result<double> ParseReal(std::string_view text, double least, double most);
// The shortest decimal that reads back the same.
std::string RealText(double value);
// With |digits| after the point.
std::string Fixed(double value, int digits);
// 1234567 -> "1,234,567".
std::string Grouped(uint64_t value);

// |text| with control characters (line ends, escapes) replaced by a space, for logs and one-line
// excerpts; cut after |most| bytes at a character boundary, with "..." where cut.
std::string OneLine(std::string_view text, size_t most);

}  // namespace weir::cli
