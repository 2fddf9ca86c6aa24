#include "bench/vmm/beside_report.h"

#include <cmath>
#include <cstdio>

#include <nlohmann/json.hpp>

namespace weir::bench {
namespace {

double ToResolution(double us) {  // a nanosecond, that of the clock
  return std::round(us * 1e3) / 1e3;
}

nlohmann::ordered_json ToJson(const Quantiles& q) {
  return {{"p50", ToResolution(q.p50)}, {"p90", ToResolution(q.p90)}, {"p99", ToResolution(q.p99)}};
}

void PrintQuantiles(const Quantiles& q, bool any) {
  if (!any) {
    std::printf(" | %7s %7s %7s", "-", "-", "-");
    return;
  }
  std::printf(" | %7.1f %7.1f %7.1f", q.p50, q.p90, q.p99);
}

}  // namespace

void PrintBesideHeading() {
  std::printf("us a granule, each as 50 %% / 90 %% / 99 %%\n%3s %-4s %-20s %-14s", "MiB", "peer",
              "the device", "otherwise");
  for (const char* part : {"unmap", "map", "set access", "the remap"}) {
    std::printf(" | %23s", part);
  }
  std::printf(" | %4s %s\n", "n", "outlasted");
}

void PrintBesideRow(const BesideRow& row) {
  std::printf("%3llu %-4s %-20s %-14s", static_cast<unsigned long long>(row.granule_bytes / kMiB),
              row.peer ? "yes" : "no", row.load.c_str(), row.variant.c_str());
  for (const Quantiles* q : {&row.unmap, &row.map, &row.access, &row.all}) {
    PrintQuantiles(*q, row.samples > 0);
  }
  std::printf(" | %4llu", static_cast<unsigned long long>(row.samples));
  if (row.outlasted > 0) {
    std::printf(" %llu (<= %.0f us)", static_cast<unsigned long long>(row.outlasted),
                row.longest_outlasting_us);
  }
  std::printf("\n");
  std::fflush(stdout);  // what is known when the time is up
}

void PrintBesideEnd(const BesideReport& report) {
  std::printf(
      "outlasted: remaps that ended after the load beside them had (longest, all its granules): "
      "in no figure.\nMany and long ones: remaps wait for running work.\n");
  for (const std::string& lack : report.lacks) std::printf("not measured: %s\n", lack.c_str());
}

std::string BesideJson(const std::string& driver, const BesideReport& report) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const BesideRow& row : report.rows) {
    rows.push_back({{"granule_bytes", row.granule_bytes},
                    {"peer", row.peer},
                    {"load", row.load},
                    {"variant", row.variant},
                    {"samples", row.samples},
                    {"unmap_us", ToJson(row.unmap)},
                    {"map_us", ToJson(row.map)},
                    {"set_access_us", ToJson(row.access)},
                    {"remap_us", ToJson(row.all)},
                    {"outlasted", row.outlasted},
                    {"longest_outlasting_us", ToResolution(row.longest_outlasting_us)}});
  }
  const nlohmann::ordered_json out{{"driver", driver},
                                   {"device", report.device},
                                   {"rows", std::move(rows)},
                                   {"not_measured", report.lacks}};
  return out.dump(2) + "\n";
}

}  // namespace weir::bench
