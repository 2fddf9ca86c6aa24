#include "engine/server/exposition.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <initializer_list>

#include "vmm/check.h"

namespace weir::server {
namespace {

// A line end in |text| would begin a new line of the format; in labels quotes are escaped too.
enum class Escape : uint8_t { kHelp, kLabel };
void AppendEscaped(std::string* out, std::string_view text, Escape escape) {
  for (const char c : text) {
    if (c == '\\') {
      *out += "\\\\";
    } else if (c == '\n') {
      *out += "\\n";
    } else if (c == '"' && escape == Escape::kLabel) {
      *out += "\\\"";
    } else {
      *out += c;
    }
  }
}

std::string NumberText(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  char text[32];
  const auto end = std::to_chars(std::begin(text), std::end(text), value);
  return {text, end.ptr};
}

std::string_view TypeName(Exposition::Type type) {
  switch (type) {
    case Exposition::Type::kCounter: return "counter";
    case Exposition::Type::kGauge: return "gauge";
    case Exposition::Type::kHistogram: return "histogram";
  }
  return "untyped";
}

}  // namespace

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)), counts_(new std::atomic<uint64_t>[bounds_.size() + 1]()) {
  WEIR_CHECK(std::is_sorted(bounds_.begin(), bounds_.end()), "rising bounds");
}

void Histogram::Observe(double value) {
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  counts_[static_cast<size_t>(bucket)].fetch_add(1, std::memory_order_relaxed);
  sum_.store(sum_.load(std::memory_order_relaxed) + value, std::memory_order_relaxed);
}

std::vector<double> OneTwoFive(double most) {
  std::vector<double> bounds;
  for (double decade = 1; decade <= most; decade *= 10) {
    for (const double digit : {1.0, 2.0, 5.0}) {
      if (decade * digit <= most) bounds.push_back(decade * digit);
    }
  }
  return bounds;
}

void Exposition::Family(std::string_view name, Type type, std::string_view help) {
  name_ = name;
  text_ += "# HELP " + name_ + " ";
  AppendEscaped(&text_, help, Escape::kHelp);
  text_ += "\n# TYPE " + name_ + " ";
  text_ += TypeName(type);
  text_ += '\n';
}

void Exposition::Line(std::string_view suffix, const Labels& labels, const Labels& more,
                      double value) {
  text_ += name_;
  text_ += suffix;
  char before = '{';
  for (const Labels* list : std::initializer_list<const Labels*>{&common_, &labels, &more}) {
    for (const auto& [key, text] : *list) {
      text_ += before;
      text_ += key + "=\"";
      AppendEscaped(&text_, text, Escape::kLabel);
      text_ += '"';
      before = ',';
    }
  }
  if (before == ',') text_ += '}';
  text_ += ' ' + NumberText(value) + '\n';
}

void Exposition::Sample(const Labels& labels, double value) {
  Line("", labels, {}, value);
}

void Exposition::Sample(const Histogram& histogram) {
  uint64_t count = 0;
  const std::span<const double> bounds = histogram.bounds();
  for (size_t i = 0; i < bounds.size(); ++i) {
    count += histogram.count(i);
    Line("_bucket", {}, {{"le", NumberText(bounds[i])}}, static_cast<double>(count));
  }
  count += histogram.count(bounds.size());
  Line("_bucket", {}, {{"le", "+Inf"}}, static_cast<double>(count));
  Line("_sum", {}, {}, histogram.sum());
  Line("_count", {}, {}, static_cast<double>(count));
}

}  // namespace weir::server
