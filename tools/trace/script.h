// One record as a line of text, a row of CSV or a JSON object.
#pragma once

#include <string>

#include "tools/trace/meta.h"
#include "tools/trace/reader.h"

namespace weir::trace_tool {

// "    1.234567890   0 fault_major late-copy  gate=layer 3 mlp step=7 chunk=2 waited=80.2 ms":
// seconds, thread, type and cause, arguments.
std::string EventLine(const TraceEvent& event, const TraceReader& reader);
// The arguments with their names: "gate=layer 3 mlp step=7 chunk=2 waited=80.2 ms".
std::string ArgumentText(const TraceRecord& record, const TraceMeta& meta);
// {"time_ns":...,"thread":...,"type":"map","cause":"hbm","args":{...}} without a line end.
std::string EventJson(const TraceEvent& event, const TraceReader& reader);
// time_ns,seconds,thread,type,cause,arg0..arg5, the numbers as they are.
std::string EventCsv(const TraceEvent& event, const TraceReader& reader);
inline constexpr const char* kCsvHead =
    "time_ns,seconds,thread,type,cause,arg0,arg1,arg2,arg3,arg4,arg5\n";

}  // namespace weir::trace_tool
