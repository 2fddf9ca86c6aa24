#include "bench/vmm/remap_beside.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <thread>

#include "bench/vmm/bench_driver.h"
#include "bench/vmm/device_work.h"
#include "bench/vmm/remap_load.h"
#include "bench/vmm/remap_scene.h"

namespace weir::bench {
namespace {

// What a row is measured for at most; a helping of a gate, which would not end by itself.
constexpr uint64_t kRowNs = 200'000'000;
constexpr uint64_t kHelpingLimitNs = 20'000'000;
constexpr size_t kSamples = 300;

enum class Order : uint8_t {
  kEach,  // unmap, map, set access of one granule after the other
  kRun,   // unmap all of a run, map all, set access once
};
enum class Companion : uint8_t { kNone, kSpins, kPolls };

struct Variant {
  std::string name;
  Order order = Order::kEach;
  RemapPlace place = RemapPlace::kNear;
  RemapCrowd crowd = RemapCrowd::kNone;
  Companion companion = Companion::kNone;
};

struct RowSpec {
  LoadSpec load;
  Variant variant;
  bool without_peer = false;  // also with a driver that has no peer tier
};

// |link|: where weights that are away would be.
std::vector<RowSpec> AllRows(Tier link) {
  const LoadSpec rest{.name = "rest"};
  const LoadSpec reads{.name = "reads", .reads = true};
  const LoadSpec gate{.name = "gate", .gate = true};
  std::vector<RowSpec> rows;
  for (const LoadSpec& load : {rest, reads, gate}) rows.push_back({load, {}, true});
  const auto with_copies = [](LoadSpec load, Tier from) {
    if (!load.rests()) load.name += " + ";
    load.name += std::string(TierName(from)) + " copies";
    load.copies = from;
    return load;
  };
  for (const LoadSpec& load : {
           LoadSpec{.name = "launches", .launches = true},
           LoadSpec{.name = "graph", .graph = true},
           LoadSpec{.name = "gate + launches", .launches = true, .gate = true},
           LoadSpec{.name = "gate + graph", .graph = true, .gate = true},
       }) {
    rows.push_back({load, {}, false});
  }
  for (const Tier from : {Tier::kPeer, Tier::kHost}) {
    for (const LoadSpec& load : {LoadSpec{}, reads, gate}) {
      rows.push_back({with_copies(load, from), {}, false});
    }
  }
  // A weight pager moves a chunk of granules in one plan, to and from a ring.
  const Variant as_paged{
      .name = "run, aliased", .order = Order::kRun, .crowd = RemapCrowd::kAliases};
  rows.push_back({with_copies(gate, link), as_paged, false});
  const std::array<Variant, 7> variants{{
      as_paged,
      {.name = "run", .order = Order::kRun},
      {.name = "aliased", .crowd = RemapCrowd::kAliases},
      {.name = "far", .place = RemapPlace::kFar},
      {.name = "crowded", .crowd = RemapCrowd::kMany},
      {.name = "a thread spins", .companion = Companion::kSpins},
      {.name = "a thread polls", .companion = Companion::kPolls},
  }};
  for (const LoadSpec& load : {rest, reads, with_copies(reads, link), gate}) {
    for (const Variant& variant : variants) rows.push_back({load, variant, false});
  }
  return rows;
}

// A host thread that is busy beside the one that remaps.
class CompanionThread {
 public:
  CompanionThread(Companion kind, DeviceWork* work, StreamId stream) {
    if (kind == Companion::kNone) return;
    thread_ = std::thread([this, kind, work, stream] {
      while (!stop_.load(std::memory_order_relaxed)) {
        if (kind == Companion::kPolls) work->Poll(stream);
      }
    });
  }
  ~CompanionThread() {
    stop_.store(true, std::memory_order_relaxed);
    if (thread_.joinable()) thread_.join();
  }
  CompanionThread(const CompanionThread&) = delete;
  CompanionThread& operator=(const CompanionThread&) = delete;

 private:
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

// Of one granule, in microseconds.
struct Sample {
  double unmap = 0, map = 0, access = 0;
  double all() const { return unmap + map + access; }
};

// Slots [first, first + count) get other granules: each the one of the slot before it, the first
// the spare one.
Result<Sample> Remap(Driver& driver, RemapScene& scene, uint32_t first, uint32_t count) {
  const TimeNs begin = driver.Now();
  for (uint32_t i = first; i < first + count; ++i) WEIR_TRY(driver.Unmap(scene.slot(i)));
  const TimeNs unmapped = driver.Now();
  AllocId& spare = scene.granule(RemapScene::kSlots);
  for (uint32_t i = first; i < first + count; ++i) {
    WEIR_TRY(driver.Map(scene.slot(i), spare));
    std::swap(spare, scene.granule(i));
  }
  const TimeNs mapped = driver.Now();
  WEIR_TRY(driver.SetAccess(scene.slot(first), count * scene.granule_bytes(), Access::kReadWrite));
  const TimeNs end = driver.Now();
  const double us = 1e-3 / count;
  return Sample{.unmap = static_cast<double>(unmapped - begin) * us,
                .map = static_cast<double>(mapped - unmapped) * us,
                .access = static_cast<double>(end - mapped) * us};
}

Quantiles QuantilesOf(const std::vector<Sample>& samples, double (*part)(const Sample&)) {
  std::vector<double> v(samples.size());
  std::transform(samples.begin(), samples.end(), v.begin(), part);
  std::sort(v.begin(), v.end());
  const auto at = [&](double q) {
    return v.empty() ? 0 : v[static_cast<size_t>(q * static_cast<double>(v.size() - 1) + 0.5)];
  };
  return {at(0.5), at(0.9), at(0.99)};
}

class Section {
 public:
  Section(const BesideOptions& options, BesideReport* report,
          const std::function<void(const BesideRow&)>& on_row)
      : options_(options), report_(report), on_row_(on_row) {}

  Status Run(Driver& driver, const std::vector<RowSpec>& rows) {
    report_->device = driver.properties().device;
    const LoadStreams streams{.compute = WEIR_TRY(driver.CreateStream("bench-load")),
                              .copy = WEIR_TRY(driver.CreateStream("bench-copy"))};
    Result<std::unique_ptr<DeviceWork>> work = DeviceWork::Create(driver);
    if (!work.ok()) {
      if (work.status().code() != StatusCode::kUnsupported) return work.status();
      Lacks("no reads, launches, graphs and gates: " + work.status().message());
    }
    const Device device{driver, work.ok() ? work->get() : nullptr, streams};
    for (const uint64_t granule : options_.granules) WEIR_TRY(RunGranule(device, granule, rows));
    return OkStatus();
  }
  // Each thing once.
  void Lacks(const std::string& what) {
    if (std::find(report_->lacks.begin(), report_->lacks.end(), what) == report_->lacks.end()) {
      report_->lacks.push_back(what);
    }
  }

 private:
  struct Device {
    Driver& driver;
    DeviceWork* work;  // null: there is none
    LoadStreams streams;
  };
  bool TimeIsUp(Driver& driver) const { return driver.Now() >= options_.rows_until_ns; }
  Status RunGranule(const Device& device, uint64_t granule, const std::vector<RowSpec>& rows);
  Status RunRow(const Device& device, RemapScene& scene, const RowSpec& spec);
  static Status Sampling(Driver& driver, RemapLoad& load, RemapScene& scene, Order order,
                         std::vector<Sample>* samples, BesideRow* row);

  const BesideOptions& options_;
  BesideReport* report_;
  const std::function<void(const BesideRow&)>& on_row_;
};

Status Section::RunGranule(const Device& device, uint64_t granule,
                           const std::vector<RowSpec>& rows) {
  Driver& driver = device.driver;
  if (TimeIsUp(driver)) {
    Lacks("granules of " + std::to_string(granule / kMiB) + " MiB, in part or at all: out of time");
    return OkStatus();
  }
  const std::unique_ptr<RemapScene> scene = WEIR_TRY(RemapScene::Create(driver, granule));
  if (std::any_of(rows.begin(), rows.end(), [](const RowSpec& r) { return r.load.copies; })) {
    for (const std::string& lack : scene->lacks()) Lacks(lack);
  }
  for (const RowSpec& row : rows) {
    if (TimeIsUp(driver)) {
      Lacks("granules of " + std::to_string(granule / kMiB) + " MiB, from \"" + row.load.name +
            "\" on: out of time");
      return OkStatus();
    }
    const bool needs_work = row.load.needs_work() || row.variant.companion == Companion::kPolls;
    if (needs_work && device.work == nullptr) continue;
    const Status status = RunRow(device, *scene, row);
    if (status.code() == StatusCode::kUnsupported || status.code() == StatusCode::kNoMemory) {
      const std::string& variant = row.variant.name;
      Lacks("\"" + row.load.name + (variant.empty() ? "" : ", " + variant) +
            "\": " + status.message());
      WEIR_TRY(scene->Clear());  // it may have settled in part
    } else if (!status.ok()) {
      return status.WithContext(row.load.name + ", granules of " + std::to_string(granule / kMiB) +
                                " MiB");
    }
  }
  return OkStatus();
}

Status Section::RunRow(const Device& device, RemapScene& scene, const RowSpec& spec) {
  Driver& driver = device.driver;
  const std::unique_ptr<RemapLoad> load =
      WEIR_TRY(RemapLoad::Create(driver, device.work, device.streams, spec.load, scene.memory()));
  WEIR_TRY(scene.Settle(spec.variant.place, spec.variant.crowd));
  BesideRow row{.granule_bytes = scene.granule_bytes(),
                .peer = driver.properties().has_peer,
                .load = spec.load.name,
                .variant = spec.variant.name};
  std::vector<Sample> samples;
  {
    const CompanionThread companion(spec.variant.companion, device.work, device.streams.compute);
    const TimeNs begin = driver.Now();
    // The first round touches tables that the later ones find.
    WEIR_TRY(Remap(driver, scene, 0, RemapScene::kSlots));
    while (samples.size() < kSamples && driver.Now() - begin < kRowNs) {
      WEIR_TRY(load->Begin());
      WEIR_TRY(Sampling(driver, *load, scene, spec.variant.order, &samples, &row));
      WEIR_TRY(load->End());
    }
  }
  WEIR_TRY(scene.Clear());
  if (samples.empty() && row.outlasted == 0) {
    return Unsupported("it had ended before the first remap, each time");
  }
  row.samples = samples.size();
  row.unmap = QuantilesOf(samples, [](const Sample& s) { return s.unmap; });
  row.map = QuantilesOf(samples, [](const Sample& s) { return s.map; });
  row.access = QuantilesOf(samples, [](const Sample& s) { return s.access; });
  row.all = QuantilesOf(samples, [](const Sample& s) { return s.all(); });
  report_->rows.push_back(row);
  on_row_(row);
  return OkStatus();
}

// Remaps until the helping is over.
Status Section::Sampling(Driver& driver, RemapLoad& load, RemapScene& scene, Order order,
                         std::vector<Sample>* samples, BesideRow* row) {
  const uint32_t count = order == Order::kRun ? RemapScene::kSlots : 1;
  const TimeNs begin = driver.Now();
  for (uint32_t slot = 0; samples->size() < kSamples && driver.Now() - begin < kHelpingLimitNs;
       slot = (slot + count) % RemapScene::kSlots) {
    if (!WEIR_TRY(load.Running())) return OkStatus();
    const Sample sample = WEIR_TRY(Remap(driver, scene, slot, count));
    if (!WEIR_TRY(load.Running())) {
      ++row->outlasted;
      row->longest_outlasting_us = std::max(row->longest_outlasting_us, sample.all() * count);
      return OkStatus();
    }
    samples->push_back(sample);
  }
  return OkStatus();
}

}  // namespace

Status MeasureBeside(const BesideOptions& options, BesideReport* report,
                     const std::function<void(const BesideRow&)>& on_row) {
  Section section(options, report, on_row);
  std::vector<RowSpec> first;
  std::vector<RowSpec> rest;
  for (const RowSpec& row : AllRows(Tier::kHost)) (row.without_peer ? first : rest).push_back(row);
  {
    const auto driver = WEIR_TRY(MakeDriver(options.driver, WithPeer::kNo));
    if (driver->properties().virtual_time) return DeviceWork::Create(*driver).status();
    WEIR_TRY(section.Run(*driver, first));
    if (options.driver != "cuda") return section.Run(*driver, rest);
  }
  // A driver with a peer repeats the rows before: that is what shows what the peer costs.
  Result<std::unique_ptr<Driver>> peer = MakeDriver(options.driver, WithPeer::kYes);
  if (peer.ok()) return section.Run(**peer, AllRows(Tier::kPeer));
  if (peer.status().code() != StatusCode::kNotFound &&
      peer.status().code() != StatusCode::kUnsupported) {
    return peer.status();
  }
  section.Lacks("no peer: " + peer.status().message());
  const auto driver = WEIR_TRY(MakeDriver(options.driver, WithPeer::kNo));
  return section.Run(*driver, rest);
}

}  // namespace weir::bench
