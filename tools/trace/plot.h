// Plot: a trace as one picture: who has the memory, which layers are at home, what it costs.
#pragma once

#include <string>

#include "tools/trace/reader.h"
#include "tools/trace/timeline.h"

namespace weir::trace_tool {

// A whole SVG document.
std::string PlotSvg(const Timeline& timeline, const TraceReader& reader);
// The same in a page that needs nothing else, with the values under the pointer.
std::string PlotHtml(const Timeline& timeline, const TraceReader& reader);

}  // namespace weir::trace_tool
