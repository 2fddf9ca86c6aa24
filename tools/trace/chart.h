// Charts: the pieces that a picture of a trace is made of, as SVG text.
//
// Represents one panel of a page whose panels share the time axis. Values are given by column;
// panels draw them as steps, so that nothing is invented between two columns.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weir::trace_tool {

// Where panels lie on the page, in pixels.
struct ChartFrame {
  double left = 76, width = 900, right = 208;  // |right| has the legends
  double from_s = 0, seconds = 1;
  size_t columns = 1;
  double X(double column) const { return left + width * column / static_cast<double>(columns); }
  double XOfSeconds(double s) const { return left + width * (s - from_s) / seconds; }
  double page_width() const { return left + width + right; }
};

enum class AxisUnit : uint8_t { kNumber, kBytes, kPercent, kRate };

struct Series {
  std::string name;
  std::string color;
  std::vector<double> values;  // by column
};

class Chart {
 public:
  // |top|, |height|: of the drawing, without its title.
  Chart(const ChartFrame& frame, std::string title, double top, double height)
      : frame_(frame), title_(std::move(title)), top_(top), height_(height) {}

  // The greatest value of the axis; at least |most|.
  Chart& Scale(double most, AxisUnit unit);
  // Series on top of each other, the first at the bottom.
  Chart& Stack(const std::vector<Series>& series);
  Chart& Line(const Series& series, double stroke = 1.5, bool in_legend = true);
  // A level over the whole width.
  Chart& Level(double value, const std::string& color, const std::string& name);
  // Cells of rows x columns with values in 0..1, row 0 at the bottom.
  Chart& HeatMap(const std::vector<std::vector<float>>& columns, size_t rows);
  Chart& LegendRamp(const std::string& low, const std::string& high);
  Chart& LegendText(const std::string& text);
  Chart& Raw(const std::string& svg);
  // With frame, axes and legend; |with_time|: the time axis below.
  std::string Svg(bool with_time) const;

  double Y(double value) const { return top_ + height_ * (1 - value / most_); }
  double top() const { return top_; }
  double height() const { return height_; }

 private:
  void Legend(const std::string& color, const std::string& name, bool line);
  std::string Steps(const std::vector<double>& values, bool backwards) const;

  const ChartFrame& frame_;
  const std::string title_;
  const double top_, height_;
  double most_ = 1;
  AxisUnit unit_ = AxisUnit::kNumber;
  bool heat_ = false;
  size_t rows_ = 0;
  std::string body_, legend_;
  double legend_y_ = 0;
};

// The text of an axis value: "250 MiB", "40 %".
std::string AxisText(double value, AxisUnit unit);
// Steps of 1, 2 or 5 (of powers of 2 for bytes), about |wanted| of them up to |most|.
std::vector<double> AxisTicks(double most, AxisUnit unit, size_t wanted);
// The colour of a share that is at home.
std::string HeatColor(float share);

}  // namespace weir::trace_tool
