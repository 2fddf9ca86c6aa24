#include "tools/trace/chart.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "tools/trace/text.h"

namespace weir::trace_tool {
namespace {

constexpr double kLegendLine = 17;

}  // namespace

std::string AxisText(double value, AxisUnit unit) {
  switch (unit) {
    case AxisUnit::kBytes: {
      std::string text = HumanBytes(value);
      // "1.00 GiB" says no more than "1 GiB".
      const size_t point = text.find('.');
      if (point != std::string::npos) {
        size_t end = text.find(' ');
        while (text[end - 1] == '0') text.erase(--end, 1);
        if (text[end - 1] == '.') text.erase(end - 1, 1);
      }
      return value == 0 ? "0" : text;
    }
    case AxisUnit::kPercent: return fmt::format("{:g} %", value * 100);
    case AxisUnit::kRate:
      if (value == 0) return "0";
      return value >= 1e9   ? fmt::format("{:g} GB/s", value / 1e9)
             : value >= 1e6 ? fmt::format("{:g} MB/s", value / 1e6)
                            : fmt::format("{:g} kB/s", value / 1e3);
    case AxisUnit::kNumber:
      return value >= 10000 ? fmt::format("{:g}k", value / 1000) : fmt::format("{:g}", value);
  }
  return "";
}

std::vector<double> AxisTicks(double most, AxisUnit unit, size_t wanted) {
  std::vector<double> ticks;
  if (!(most > 0) || !std::isfinite(most)) return {0};
  const double raw = most / static_cast<double>(std::max<size_t>(1, wanted));
  double step = 1;
  if (unit == AxisUnit::kBytes) {
    step = std::exp2(std::round(std::log2(raw)));
  } else {
    const double power = std::pow(10, std::floor(std::log10(raw)));
    const double mantissa = raw / power;
    step = power * (mantissa < 1.5 ? 1 : mantissa < 3.5 ? 2 : mantissa < 7.5 ? 5 : 10);
  }
  for (double v = 0; v <= most * 1.0001 && ticks.size() < 64; v += step) ticks.push_back(v);
  return ticks;
}

// From amber, nothing is at home, to dark blue, everything is.
std::string HeatColor(float share) {
  struct Rgb {
    double r, g, b;
  };
  constexpr Rgb kStops[] = {{226, 146, 45}, {247, 226, 186}, {133, 172, 214}, {31, 74, 125}};
  const double at = std::clamp(static_cast<double>(share), 0.0, 1.0) * 3;
  const auto i = std::min<size_t>(2, static_cast<size_t>(at));
  const double f = at - static_cast<double>(i);
  const auto mix = [f](double a, double b) { return static_cast<int>(a + (b - a) * f + 0.5); };
  return fmt::format("#{:02x}{:02x}{:02x}", mix(kStops[i].r, kStops[i + 1].r),
                     mix(kStops[i].g, kStops[i + 1].g), mix(kStops[i].b, kStops[i + 1].b));
}

Chart& Chart::Scale(double most, AxisUnit unit) {
  most_ = std::max(most, 1e-9);
  unit_ = unit;
  return *this;
}

void Chart::Legend(const std::string& color, const std::string& name, bool line) {
  const double x = frame_.left + frame_.width + 14;
  const double y = top_ + 5 + legend_y_;
  legend_ += line ? fmt::format(
                        "<line x1='{:.0f}' x2='{:.0f}' y1='{:.1f}' y2='{:.1f}' stroke='{}' "
                        "stroke-width='2.5'/>",
                        x, x + 12, y + 1, y + 1, color)
                  : fmt::format(
                        "<rect x='{:.0f}' y='{:.1f}' width='12' height='11' rx='2' "
                        "fill='{}' stroke='#0002'/>",
                        x, y - 5, color);
  legend_ += fmt::format("<text x='{:.0f}' y='{:.1f}'>{}</text>\n", x + 18, y + 5, Escaped(name));
  legend_y_ += kLegendLine;
}

Chart& Chart::LegendText(const std::string& text) {
  legend_ += fmt::format("<text class='dim' x='{:.0f}' y='{:.1f}'>{}</text>\n",
                         frame_.left + frame_.width + 14, top_ + 10 + legend_y_, Escaped(text));
  legend_y_ += kLegendLine;
  return *this;
}

Chart& Chart::LegendRamp(const std::string& low, const std::string& high) {
  const double x = frame_.left + frame_.width + 14;
  for (int i = 0; i < 40; ++i) {
    legend_ += fmt::format("<rect x='{:.1f}' y='{:.1f}' width='3.2' height='11' fill='{}'/>",
                           x + 3 * i, top_ + legend_y_, HeatColor(static_cast<float>(i) / 39));
  }
  legend_ += fmt::format(
      "<text x='{0:.0f}' y='{2:.1f}'>{3}</text><text x='{1:.0f}' y='{2:.1f}' "
      "text-anchor='end'>{4}</text>\n",
      x, x + 123, top_ + 25 + legend_y_, Escaped(low), Escaped(high));
  legend_y_ += 2.4 * kLegendLine;
  return *this;
}

// The upper edge of |values| as steps; runs of one value are one line.
std::string Chart::Steps(const std::vector<double>& values, bool backwards) const {
  std::string path;
  const size_t n = values.size();
  const auto corner = [&](size_t column, double value) {
    path += fmt::format("{:.1f},{:.1f} ", frame_.X(static_cast<double>(column)),
                        Y(std::clamp(value, 0.0, most_)));
  };
  for (size_t k = 0; k < n;) {
    size_t end = k + 1;
    const auto at = [&](size_t i) { return values[backwards ? n - 1 - i : i]; };
    while (end < n && at(end) == at(k)) ++end;
    corner(backwards ? n - k : k, at(k));
    corner(backwards ? n - end : end, at(k));
    k = end;
  }
  return path;
}

Chart& Chart::Stack(const std::vector<Series>& series) {
  std::vector<double> low(frame_.columns, 0.0);
  for (const Series& s : series) {
    std::vector<double> high = low;
    bool any = false;
    for (size_t i = 0; i < high.size(); ++i) {
      high[i] += s.values[i];
      any = any || s.values[i] > 0;
    }
    if (any) {
      body_ += fmt::format("<path d='M{}L{}Z' fill='{}'/>\n", Steps(high, false), Steps(low, true),
                           s.color);
    }
    low = std::move(high);
  }
  // The legend in the order in which the eye meets them.
  for (size_t i = series.size(); i-- > 0;) Legend(series[i].color, series[i].name, false);
  return *this;
}

Chart& Chart::Line(const Series& s, double stroke, bool in_legend) {
  body_ += fmt::format(
      "<path d='M{}' fill='none' stroke='{}' stroke-width='{}' stroke-linejoin='round'/>\n",
      Steps(s.values, false), s.color, stroke);
  if (in_legend) Legend(s.color, s.name, true);
  return *this;
}

Chart& Chart::Level(double value, const std::string& color, const std::string& name) {
  if (value <= most_) {
    body_ += fmt::format(
        "<line x1='{:.1f}' x2='{:.1f}' y1='{:.1f}' y2='{:.1f}' stroke='{}' "
        "stroke-dasharray='5 4'/>\n",
        frame_.left, frame_.left + frame_.width, Y(value), Y(value), color);
    Legend(color, name, true);
  } else {
    LegendText(name);
  }
  return *this;
}

Chart& Chart::HeatMap(const std::vector<std::vector<float>>& columns, size_t rows) {
  heat_ = true;
  rows_ = rows;
  const double cell = height_ / static_cast<double>(rows);
  for (size_t row = 0; row < rows; ++row) {
    for (size_t i = 0; i < columns.size();) {
      size_t end = i + 1;
      if (columns[i].empty()) {
        i = end;
        continue;
      }
      const std::string color = HeatColor(columns[i][row]);
      while (end < columns.size() && !columns[end].empty() &&
             HeatColor(columns[end][row]) == color) {
        ++end;
      }
      const double x = frame_.X(static_cast<double>(i));
      body_ += fmt::format(
          "<rect x='{:.1f}' y='{:.2f}' width='{:.1f}' height='{:.2f}' fill='{}'/>\n", x,
          top_ + height_ - cell * static_cast<double>(row + 1),
          frame_.X(static_cast<double>(end)) - x + 0.15, cell + (cell > 4 ? -0.5 : 0.1), color);
      i = end;
    }
  }
  return *this;
}

Chart& Chart::Raw(const std::string& svg) {
  body_ += svg;
  return *this;
}

std::string Chart::Svg(bool with_time) const {
  std::string out = fmt::format("<text class='title' x='{:.0f}' y='{:.1f}'>{}</text>\n",
                                frame_.left, top_ - 12, Escaped(title_));
  const double right = frame_.left + frame_.width;
  const double bottom = top_ + height_;
  std::string grid;
  if (heat_) {
    const size_t step = std::max<size_t>(1, (rows_ + 7) / 8);
    for (size_t row = 0; row < rows_; row += step) {
      const double y =
          bottom - height_ * (static_cast<double>(row) + 0.5) / static_cast<double>(rows_);
      grid += fmt::format("<text class='tick' x='{:.0f}' y='{:.1f}'>{}</text>\n", frame_.left - 8,
                          y + 4, row);
    }
  } else {
    for (const double v : AxisTicks(most_, unit_, static_cast<size_t>(height_ / 34))) {
      grid += fmt::format(
          "<line x1='{:.1f}' x2='{:.1f}' y1='{:.1f}' y2='{:.1f}' class='grid'/>"
          "<text class='tick' x='{:.0f}' y='{:.1f}'>{}</text>\n",
          frame_.left, right, Y(v), Y(v), frame_.left - 8, Y(v) + 4, AxisText(v, unit_));
    }
  }
  const std::vector<double> steps = AxisTicks(frame_.seconds, AxisUnit::kNumber, 9);
  const double step = steps.size() > 1 ? steps[1] : frame_.seconds;
  const double first = std::ceil(frame_.from_s / step - 1e-6);
  for (int k = 0; k < 64; ++k) {
    const double i = first + k;
    const double x = frame_.XOfSeconds(i * step);
    if (x > right + 0.5) break;
    grid +=
        fmt::format("<line x1='{0:.1f}' x2='{0:.1f}' y1='{1:.1f}' y2='{2:.1f}' class='grid'/>\n", x,
                    heat_ ? bottom : top_, bottom + (with_time ? 4 : 0));
    if (!with_time) continue;
    grid += fmt::format("<text x='{:.1f}' y='{:.1f}' text-anchor='middle'>{:g} s</text>\n", x,
                        bottom + 18, std::round(i * step * 1e6) / 1e6);
  }
  out += grid + body_;
  out += fmt::format(
      "<rect x='{:.1f}' y='{:.1f}' width='{:.1f}' height='{:.1f}' fill='none' stroke='#8a8f98'/>\n",
      frame_.left, top_, frame_.width, height_);
  return out + legend_;
}

}  // namespace weir::trace_tool
