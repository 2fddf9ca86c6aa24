// Diff: two traces side by side.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "tools/trace/summary.h"

namespace weir::trace_tool {

enum class DiffUnit : uint8_t { kNumber, kNs, kBytes, kRate, kPercent, kSeconds };
// Which way a measure is better.
enum class DiffGoal : uint8_t { kNone, kLess, kMore };

struct DiffRow {
  std::string group, name;
  DiffUnit unit = DiffUnit::kNumber;
  DiffGoal goal = DiffGoal::kNone;
  double a = 0, b = 0;
  bool shown = true;  // false: nothing in either trace

  // How much worse |b| is than |a|, in per cent; 0 where it is not, or has no goal. Infinite from
  // 0.
  double WorseBy() const;
};

std::vector<DiffRow> Diff(const Summary& a, const Summary& b);
std::string DiffText(const std::vector<DiffRow>& rows, const std::string& name_a,
                     const std::string& name_b);
nlohmann::ordered_json DiffJson(const std::vector<DiffRow>& rows);

}  // namespace weir::trace_tool
