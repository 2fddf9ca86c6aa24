// What the numbers of a trace mean: the metadata's JSON (vmm/trace_format.h lists the keys).
#pragma once

#include <string>

#include "engine/engine.h"

namespace weir {

std::string TraceMetadata(const EngineOptions& options, const EngineInfo& info, Memory& memory,
                          const Policy& policy);

}  // namespace weir
