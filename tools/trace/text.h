// Numbers as people read them, and tables in plain text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weir::trace_tool {

// "1.50 GiB", "300.0 MiB", "17 B".
std::string HumanBytes(double bytes);
// "80.2 ms", "1.30 us", "12.4 s", "0".
std::string HumanNs(double ns);
// "1.2 GB/s"; decimal, as links are sold.
std::string HumanRate(double bytes_per_s);
// 1234567 -> "1,234,567".
std::string Grouped(uint64_t value);
// "12.3 %"; "-" when |whole| is 0.
std::string Percent(double part, double whole);

// Represents columns of text: the first is flush left, the others flush right unless |left| has
// their number.
class TextTable {
 public:
  explicit TextTable(std::vector<std::string> head, std::vector<size_t> left = {0});
  void Add(std::vector<std::string> row);
  bool empty() const { return rows_.size() == 1; }
  // Lines indented by |indent| blanks.
  std::string ToString(size_t indent = 2) const;

 private:
  std::vector<std::vector<std::string>> rows_;
  std::vector<size_t> left_;
};

// Columns a terminal needs for UTF-8 |text|, counting one for each code point.
size_t DisplayWidth(std::string_view text);
// |text| for XML and HTML.
std::string Escaped(std::string_view text);

}  // namespace weir::trace_tool
