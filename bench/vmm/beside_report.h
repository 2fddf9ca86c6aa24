// What MeasureBeside found, for people and for programs.
#pragma once

#include <string>

#include "bench/vmm/remap_beside.h"

namespace weir::bench {

void PrintBesideHeading();
void PrintBesideRow(const BesideRow& row);
// What was not measured and what the columns mean.
void PrintBesideEnd(const BesideReport& report);

std::string BesideJson(const std::string& driver, const BesideReport& report);

}  // namespace weir::bench
