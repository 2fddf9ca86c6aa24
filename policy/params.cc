#include "policy/params.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace weir {
namespace {

template <typename T>
bool ParseNumber(std::string_view text, T* out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return error == std::errc() && end == text.data() + text.size();
}

std::string Render(double v) {
  return FormatNumber(v);
}
std::string Render(uint64_t v) {
  return std::to_string(v);
}

std::string Render(Placement v) {
  return std::string(kPlacementNames[static_cast<size_t>(v)]);
}

template <typename Target>
std::string RangeOf(const Target& t) {
  if constexpr (requires { t.accepted; }) {
    std::string names;
    for (const Placement p : t.accepted) names += (names.empty() ? "" : ", ") + Render(p);
    return names;
  } else {
    return "[" + Render(t.least) + ", " + Render(t.most) + "]";
  }
}

template <typename Target>
Status SetTarget(const Target& target, std::string_view key, std::string_view text) {
  const auto refuse = [&](const char* what) {
    return InvalidArgument("parameter " + std::string(key) + " must be " + what + RangeOf(target) +
                           ", got \"" + std::string(text) + "\"");
  };
  if constexpr (requires { target.accepted; }) {
    for (const Placement p : target.accepted) {
      if (text != Render(p)) continue;
      *target.field = p;
      return OkStatus();
    }
    return refuse("one of ");
  } else {
    auto value = *target.field;
    if (!ParseNumber(text, &value) || !(value >= target.least && value <= target.most)) {
      return refuse("a number in ");
    }
    *target.field = value;
    return OkStatus();
  }
}

// Insertions, deletions, replacements and swaps of neighbours that make |a| from |b|.
size_t EditDistance(std::string_view a, std::string_view b) {
  const size_t width = b.size() + 1;
  std::vector<size_t> d((a.size() + 1) * width);
  for (size_t i = 0; i <= a.size(); ++i) d[i * width] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = d[(i - 1) * width + j - 1] + (a[i - 1] == b[j - 1] ? 0u : 1u);
      size_t least = std::min({d[(i - 1) * width + j] + 1, d[i * width + j - 1] + 1, replace});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        least = std::min(least, d[(i - 2) * width + j - 2] + 1);
      }
      d[i * width + j] = least;
    }
  }
  return d.back();
}

}  // namespace

std::string FormatNumber(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.6g", value);
  return text;
}

void ParamTable::Bind(std::string name, double* field, double least, double most,
                      std::string help) {
  entries_.push_back({std::move(name), Real{field, least, most}, std::move(help), Render(*field)});
}

void ParamTable::Bind(std::string name, uint64_t* field, uint64_t least, uint64_t most,
                      std::string help) {
  entries_.push_back({std::move(name), Count{field, least, most}, std::move(help), Render(*field)});
}

void ParamTable::Bind(std::string name, Placement* field, std::vector<Placement> accepted,
                      std::string help) {
  entries_.push_back(
      {std::move(name), Choice{field, std::move(accepted)}, std::move(help), Render(*field)});
}

Status ParamTable::Set(std::string_view key, std::string_view value) {
  for (const Entry& entry : entries_) {
    if (entry.name != key) continue;
    return std::visit([&](const auto& target) { return SetTarget(target, key, value); },
                      entry.target);
  }
  std::vector<std::string> known;
  for (const Entry& entry : entries_) known.push_back(entry.name);
  return NotFound(UnknownNameMessage("parameter", key, known));
}

std::vector<ParamInfo> ParamTable::Describe() const {
  std::vector<ParamInfo> infos;
  for (const Entry& entry : entries_) {
    const std::string range =
        std::visit([](const auto& target) { return RangeOf(target); }, entry.target);
    infos.push_back({entry.name, entry.default_value, range, entry.help});
  }
  return infos;
}

std::vector<std::pair<std::string, std::string>> ParamTable::Values() const {
  std::vector<std::pair<std::string, std::string>> values;
  for (const Entry& entry : entries_) {
    values.emplace_back(entry.name,
                        std::visit([](const auto& t) { return Render(*t.field); }, entry.target));
  }
  return values;
}

std::string NearestName(std::string_view name, const std::vector<std::string>& known) {
  if (name.size() > 64) return {};  // no typo, and the distance is quadratic
  std::string nearest;
  size_t nearest_distance = std::max<size_t>(2, name.size() / 2) + 1;  // farther is no help
  for (const std::string& candidate : known) {
    const size_t distance = EditDistance(name, candidate);
    if (distance < nearest_distance) {
      nearest_distance = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::string UnknownNameMessage(std::string_view what, std::string_view name,
                               const std::vector<std::string>& known) {
  std::string message = "unknown " + std::string(what) + " \"" + std::string(name) + "\"";
  if (known.empty()) return message + "; there are none here";
  message += "; known are: ";
  for (size_t i = 0; i < known.size(); ++i) message += (i == 0 ? "" : ", ") + known[i];
  const std::string nearest = NearestName(name, known);
  if (!nearest.empty()) message += ". Did you mean \"" + nearest + "\"?";
  return message;
}

}  // namespace weir
