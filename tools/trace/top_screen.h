// The screen of `weir-trace top`, as text: any width from 40 columns on, with or without colour.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "tools/trace/live_view.h"

namespace weir::trace_tool {

struct ScreenOptions {
  size_t width = 80, height = 24;
  bool color = false;
  bool unicode = true;
};

// Lines of at most |width| columns, at most |height| of them; colours are escape sequences.
std::vector<std::string> TopScreen(const LiveView& view, const ScreenOptions& options);

}  // namespace weir::trace_tool
