// What a granule's remap costs beside running work: rows of (driver, granule, load, how), measured
// one after the other until the time is up.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "vmm/driver.h"

namespace weir::bench {

struct BesideOptions {
  std::string driver = "host";  // as MakeDriver takes it
  std::vector<uint64_t> granules{2 * kMiB, 8 * kMiB, 16 * kMiB, 32 * kMiB};
  TimeNs rows_until_ns = 0;  // of a steady clock: no row begins after it
};

// Microseconds a granule.
struct Quantiles {
  double p50 = 0, p90 = 0, p99 = 0;
};

struct BesideRow {
  uint64_t granule_bytes = 0;
  bool peer = false;    // the driver has a peer tier
  std::string load;     // what the device does
  std::string variant;  // what is unlike the plain way; "" : nothing
  uint64_t samples = 0;
  Quantiles unmap, map, access, all;
  // Remaps that ended after their load had: in none of the samples. Many, and long ones: remaps
  // wait for running work.
  uint64_t outlasted = 0;
  double longest_outlasting_us = 0;
};

struct BesideReport {
  std::string device;
  std::vector<BesideRow> rows;
  std::vector<std::string> lacks;  // what was not measured, and why
};

// |on_row| sees each row as soon as it is there. An error of the driver ends the section.
Status MeasureBeside(const BesideOptions& options, BesideReport* report,
                     const std::function<void(const BesideRow&)>& on_row);

}  // namespace weir::bench
