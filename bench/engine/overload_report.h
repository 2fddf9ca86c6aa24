// What weir_overload_bench says of what it measured: rows of a table, and JSON.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "bench/engine/overload_run.h"
#include "policy/tide.h"

namespace weir::overload {

using Json = nlohmann::ordered_json;

Json FiguresJson(const Figures& figures);
Json LatencyJson(const Latencies& latencies);
void Append(Latencies* to, const Latencies& from);

void Header(const char* title);
// |base|: tokens/s that the gain is over; 0: none is printed.
void Row(const std::string& name, const Figures& figures, double base, const Latencies& latencies);

// Of repeats: the means, and counts in all.
Figures MeanOf(const std::vector<Figures>& all);
// Over |resident|, repeat by repeat with the same requests: the mean gain and its standard
// deviation, into |row| and printed where there are several.
void Gains(const std::vector<Figures>& all, const std::vector<Figures>& resident, Json* row);

// What |tide| believes now of the border in force and of those around it, and what that follows
// from; printed too.
Json Beliefs(const EngineCore& core, const TidePolicy& tide);

}  // namespace weir::overload
