// TraceError: what ends a command of weir-trace.
//
// The tool may include nothing of weir but the trace format, so it has no Status. It throws this
// one type, inside this folder only: Main turns it into a message and exit status 2.
#pragma once

#include <stdexcept>

namespace weir::trace_tool {

// The text says what was wrong and what is accepted.
class TraceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace weir::trace_tool
