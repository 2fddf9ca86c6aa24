// What a driver's calls cost: create, map, set access, unmap, release by granule size; first touch
// after a remap; copy rates; a counter hand-over. Works with any driver.
//
//   weir_remap_bench [--driver host|host-populate|sim|cuda] [--total MiB] [--json FILE]
//   weir_remap_bench --beside [--driver host|host-populate|cuda] [--granules MiB,...] [--json FILE]
//
// Times are medians over the granules of a run, in microseconds, of one call on one granule; "run"
// is one SetAccess over all granules, per granule. With --beside: a remap's parts while the device
// does this and that (remap_beside.h), within a minute.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "bench/vmm/bench_driver.h"
#include "bench/vmm/beside_report.h"
#include "bench/vmm/remap_beside.h"
#include "bench/vmm/time_limit.h"
#include "vmm/driver.h"
#include "vmm/trace.h"

namespace weir::bench {
namespace {

void Must(const Status& s) {
  WEIR_CHECK(s.ok(), s.ToString().c_str());
}

// Microseconds per call.
class Samples {
 public:
  void Time(Driver& driver, const std::function<void()>& call) {
    const TimeNs begin = driver.Now();
    call();
    values_.push_back(static_cast<double>(driver.Now() - begin) / 1e3);
  }
  double Median() {
    if (values_.empty()) return 0;
    std::sort(values_.begin(), values_.end());
    return values_[values_.size() / 2];
  }

 private:
  std::vector<double> values_;
};

struct Row {
  uint64_t granule_bytes = 0;
  double create = 0, map = 0, set_access = 0, set_access_run = 0, touch_cold = 0, touch_warm = 0,
         unmap = 0, release = 0, copy_gb_s = 0;
};

// Writes one word a page, as a step that reads or writes the whole granule would fault it in.
void TouchAll(VirtAddr at, uint64_t bytes, uint64_t page) {
  for (uint64_t i = 0; i < bytes; i += page) *reinterpret_cast<volatile uint64_t*>(at + i) = i;
}

Row Measure(Driver& driver, uint64_t granule, uint64_t total) {
  const DriverProperties& p = driver.properties();
  const uint64_t n = std::clamp<uint64_t>(total / granule, 4, 512);
  Row row{.granule_bytes = granule};
  Samples create, map, access, unmap, release, cold, warm;
  const VirtAddr base = driver.Reserve(n * granule, granule).value();
  std::vector<AllocId> allocs(n);
  for (AllocId& a : allocs) {
    create.Time(driver, [&] { a = driver.Create(Tier::kHbm, granule).value(); });
  }
  // Round 0 takes pages from the system where the driver is lazy: it is not counted.
  for (int round = 0; round < 3; ++round) {
    Samples discard;
    const auto pick = [&](Samples& s) -> Samples& { return round == 0 ? discard : s; };
    for (uint64_t i = 0; i < n; ++i) {
      pick(map).Time(driver, [&] { Must(driver.Map(base + i * granule, allocs[i])); });
    }
    if (round == 2) {
      const TimeNs begin = driver.Now();
      Must(driver.SetAccess(base, n * granule, Access::kReadWrite));
      row.set_access_run = static_cast<double>(driver.Now() - begin) / 1e3 / static_cast<double>(n);
    } else {
      for (uint64_t i = 0; i < n; ++i) {
        pick(access).Time(driver, [&] {
          Must(driver.SetAccess(base + i * granule, granule, Access::kReadWrite));
        });
      }
    }
    if (p.host_addressable) {
      for (uint64_t i = 0; i < n; ++i) {
        const auto touch = [&] { TouchAll(base + i * granule, granule, p.granularity_bytes); };
        pick(cold).Time(driver, touch);
        pick(warm).Time(driver, touch);
      }
    }
    if (round == 2) {
      const StreamId stream = driver.CreateStream("bench-copy").value();
      const uint64_t half = n / 2 * granule;
      Must(driver.Copy(stream, base + half, base, half));
      Must(driver.Wait(driver.Record(stream).value()));
      const TimeNs begin = driver.Now();
      Must(driver.Copy(stream, base, base + half, half));
      Must(driver.Wait(driver.Record(stream).value()));
      row.copy_gb_s = static_cast<double>(half) / static_cast<double>(driver.Now() - begin);
      Must(driver.DestroyStream(stream));
    }
    for (uint64_t i = 0; i < n; ++i) {
      pick(unmap).Time(driver, [&] { Must(driver.Unmap(base + i * granule)); });
    }
  }
  for (const AllocId a : allocs) release.Time(driver, [&] { Must(driver.Release(a)); });
  Must(driver.Free(base));
  row.create = create.Median();
  row.map = map.Median();
  row.set_access = access.Median();
  row.unmap = unmap.Median();
  row.release = release.Median();
  row.touch_cold = cold.Median();
  row.touch_warm = warm.Median();
  return row;
}

// Microseconds from a host store to the end of a stream's wait, there and back; and the cost of a
// store that nobody waits for, in nanoseconds.
void MeasureCounters(Driver& driver, double* hand_over_us, double* store_ns) {
  const StreamId stream = driver.CreateStream("bench-count").value();
  const VirtAddr go = driver.CreateCounter().value();
  const VirtAddr done = driver.CreateCounter().value();
  constexpr uint64_t kRounds = 500;
  for (uint64_t i = 1; i <= kRounds; ++i) {
    Must(driver.WaitCounter(stream, go, i));
    Must(driver.WriteCounter(stream, done, i));
  }
  Samples samples;
  for (uint64_t i = 1; i <= kRounds; ++i) {
    samples.Time(driver, [&] {
      driver.StoreCounter(go, i);
      Must(driver.HostWaitCounter(done, i, 1'000'000'000));
    });
  }
  *hand_over_us = samples.Median();
  constexpr uint64_t kStores = 1'000'000;
  const TimeNs begin = driver.Now();
  for (uint64_t i = 0; i < kStores; ++i) driver.StoreCounter(go, kRounds + i);
  *store_ns = static_cast<double>(driver.Now() - begin) / static_cast<double>(kStores);
  Must(driver.DestroyStream(stream));
}

// A minute in all, of which no row begins in the last sixth.
constexpr TimeNs kBesideLimitNs = 60'000'000'000;
constexpr TimeNs kBesideRowsNs = 50'000'000'000;

struct Options {
  std::string driver = "host";
  std::string json;
  uint64_t total = 512 * kMiB;
  bool beside = false;
  std::vector<uint64_t> granules;  // of --beside; empty: its own
};

// "2,8" as MiB.
Result<std::vector<uint64_t>> ParseGranules(const std::string& text) {
  std::vector<uint64_t> granules;
  for (const char* at = text.c_str();; ++at) {
    char* end = nullptr;
    const uint64_t mib = std::strtoull(at, &end, 10);
    if (end == at || !IsPowerOfTwo(mib) || mib > 32 || (*end != ',' && *end != '\0')) {
      return InvalidArgument("--granules " + text +
                             "; accepted are powers of two of 1 to 32 (MiB), with commas between");
    }
    granules.push_back(mib * kMiB);
    if (*end == '\0') return granules;
    at = end;
  }
}

Result<Options> ParseOptions(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--beside") {
      options.beside = true;
      continue;
    }
    if (flag != "--driver" && flag != "--total" && flag != "--json" && flag != "--granules") {
      return InvalidArgument("unknown option " + flag +
                             "; known: --driver, --total, --json, --beside, --granules");
    }
    if (++i == argc) return InvalidArgument("option " + flag + " needs a value");
    if (flag == "--driver") options.driver = argv[i];
    if (flag == "--total") options.total = std::strtoull(argv[i], nullptr, 10) * kMiB;
    if (flag == "--json") options.json = argv[i];
    if (flag == "--granules") options.granules = WEIR_TRY(ParseGranules(argv[i]));
  }
  if (!options.granules.empty() && !options.beside) {
    return InvalidArgument("--granules is an option of --beside");
  }
  return options;
}

Status WriteFile(const std::string& path, const std::string& text) {
  if (path.empty()) return OkStatus();
  std::FILE* out = std::fopen(path.c_str(), "w");
  if (out == nullptr) return IoError("cannot write " + path);
  const bool written = std::fputs(text.c_str(), out) >= 0;
  return std::fclose(out) == 0 && written ? OkStatus() : IoError("cannot write " + path);
}

Status RunTable(const Options& options) {
  const std::unique_ptr<Driver> made = WEIR_TRY(MakeDriver(options.driver, WithPeer::kNo));
  Driver& driver = *made;
  std::printf("driver %s on %s, granularity %llu\n", options.driver.c_str(),
              driver.properties().device.c_str(),
              static_cast<unsigned long long>(driver.properties().granularity_bytes));
  std::printf("%10s %8s %8s %8s %8s %10s %10s %8s %8s %8s\n", "granule", "create", "map", "access",
              "run", "touch cold", "touch warm", "unmap", "release", "GB/s");
  std::string rows;
  for (uint64_t granule = 64 * kKiB; granule <= 32 * kMiB; granule *= 2) {
    if (granule % driver.properties().granularity_bytes != 0) continue;
    const Row r = Measure(driver, granule, options.total);
    std::printf("%6llu KiB %8.2f %8.2f %8.2f %8.2f %10.1f %10.1f %8.2f %8.2f %8.2f\n",
                static_cast<unsigned long long>(granule / kKiB), r.create, r.map, r.set_access,
                r.set_access_run, r.touch_cold, r.touch_warm, r.unmap, r.release, r.copy_gb_s);
    char text[512];
    std::snprintf(text, sizeof text,
                  "%s\n    {\"granule_bytes\": %llu, \"create_us\": %.3f, \"map_us\": %.3f, "
                  "\"set_access_us\": %.3f, \"set_access_run_us\": %.3f, \"touch_cold_us\": %.3f, "
                  "\"touch_warm_us\": %.3f, \"unmap_us\": %.3f, \"release_us\": %.3f, "
                  "\"copy_gb_s\": %.3f}",
                  rows.empty() ? "" : ",", static_cast<unsigned long long>(granule), r.create,
                  r.map, r.set_access, r.set_access_run, r.touch_cold, r.touch_warm, r.unmap,
                  r.release, r.copy_gb_s);
    rows += text;
  }
  double hand_over_us = 0;
  double store_ns = 0;
  MeasureCounters(driver, &hand_over_us, &store_ns);
  std::printf("counter: there and back %.2f us, store without waiters %.1f ns\n", hand_over_us,
              store_ns);
  char head[512];
  std::snprintf(head, sizeof head,
                "{\n  \"driver\": \"%s\",\n  \"device\": \"%s\",\n  \"counter_round_trip_us\": "
                "%.3f,\n  \"counter_store_ns\": %.3f,\n  \"rows\": [",
                options.driver.c_str(), driver.properties().device.c_str(), hand_over_us, store_ns);
  return WriteFile(options.json, head + rows + "\n  ]\n}\n");
}

Status RunBeside(const Options& options) {
  const TimeLimit limit(kBesideLimitNs, "remaps beside work");
  BesideOptions beside{.driver = options.driver,
                       .rows_until_ns = TraceMonotonicNs() + kBesideRowsNs};
  if (!options.granules.empty()) beside.granules = options.granules;
  BesideReport report;
  const Status measured = MeasureBeside(beside, &report, [&report](const BesideRow& row) {
    if (report.rows.size() == 1) PrintBesideHeading();
    PrintBesideRow(row);
  });
  if (!report.rows.empty()) {  // an error in the middle leaves what was measured before it
    std::printf("driver %s on %s\n", options.driver.c_str(), report.device.c_str());
    PrintBesideEnd(report);
    WEIR_TRY(WriteFile(options.json, BesideJson(options.driver, report)));
  }
  return measured;
}

int Main(int argc, char** argv) {
  const Result<Options> options = ParseOptions(argc, argv);
  if (!options.ok()) {
    std::fprintf(stderr, "%s\n", options.status().message().c_str());
    return 2;
  }
  const Status status = options->beside ? RunBeside(*options) : RunTable(*options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}

}  // namespace
}  // namespace weir::bench

int main(int argc, char** argv) {
  return weir::bench::Main(argc, argv);
}
