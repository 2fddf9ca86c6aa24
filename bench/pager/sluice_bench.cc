// What the sluice costs on this machine: step time, stall and copy rate with parts of the weights
// away, and what moving the border costs. Host driver; the compute reads every byte of every layer
// |intensity| times and does nothing else, so it is as memory-bound as decoding.
//
//   weir_sluice_bench [--layers N] [--layer-mib N] [--granule-kib N] [--steps N]
//                    [--link-gb-s X] [--json FILE]
//
// --link-gb-s makes the link to the backing copy as slow as X GB/s, so that stalls can be seen.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "pager/weight_pager.h"
#include "vmm/host_driver.h"

namespace weir {
namespace {

struct Config {
  uint32_t layers = 30;
  uint64_t layer_bytes = 7 * kMiB;
  uint64_t granule_bytes = 256 * kKiB;
  uint32_t steps = 30;
  double link_gb_s = 0;  // 0: as fast as the machine copies
  std::string json;
};

struct Row {
  std::string placement;
  uint32_t percent = 0;
  uint32_t intensity = 1;
  uint32_t evicted = 0, ring = 0, freed = 0;  // granules
  double step_ms = 0, step_max_ms = 0, stall_ms = 0, faults = 0, copy_gb_s = 0;
  double evict_ms = 0, restore_ms = 0;
  uint64_t remapped = 0;  // by the eviction
};

// Two segments a layer, as attention and MLP: 2/7 and 5/7 of it.
WeightLayout MakeLayout(const Config& c) {
  WeightLayout layout;
  const uint64_t first = AlignDown(c.layer_bytes * 2 / 7, 64);
  for (uint32_t l = 0; l < c.layers; ++l) {
    const uint64_t at = l * c.layer_bytes;
    layout.layers.push_back({{at, first}, {at + first, c.layer_bytes - first}});
  }
  layout.region_bytes = c.layers * c.layer_bytes;
  return layout;
}

// A backing store behind a link of a given speed: a fetch takes no less than its bytes need.
class SlowLink final : public BackingStore {
 public:
  SlowLink(Driver& driver, std::unique_ptr<BackingStore> inner, double gb_s)
      : driver_(driver), inner_(std::move(inner)), gb_s_(gb_s) {}
  Tier tier() const override { return inner_->tier(); }
  uint64_t bytes() const override { return inner_->bytes(); }
  Status Store(uint64_t offset, std::span<const std::byte> data) override {
    return inner_->Store(offset, data);
  }
  Status StoreFrom(StreamId stream, uint64_t offset, uint64_t bytes, VirtAddr src) override {
    return inner_->StoreFrom(stream, offset, bytes, src);
  }
  Status Seal() override { return inner_->Seal(); }
  Status Load(uint64_t offset, std::span<std::byte> out) override {
    return inner_->Load(offset, out);
  }
  Status Fetch(StreamId stream, uint64_t offset, uint64_t bytes, VirtAddr dst) override {
    auto begin = std::make_shared<std::chrono::steady_clock::time_point>();
    WEIR_TRY(driver_.HostFunction(stream, [begin] {
      *begin = std::chrono::steady_clock::now();
      return OkStatus();
    }));
    WEIR_TRY(inner_->Fetch(stream, offset, bytes, dst));
    const std::chrono::nanoseconds least(static_cast<int64_t>(static_cast<double>(bytes) / gb_s_));
    return driver_.HostFunction(stream, [begin, least] {
      std::this_thread::sleep_until(*begin + least);
      return OkStatus();
    });
  }

 private:
  Driver& driver_;
  std::unique_ptr<BackingStore> inner_;
  double gb_s_;
};

double Median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

class Bench {
 public:
  explicit Bench(const Config& c) : c_(c) {}

  Status SetUp() {
    driver_ = WEIR_TRY(HostDriver::Create({.populate = HostPopulate::kOnSetAccess}));
    const WeightLayout layout = MakeLayout(c_);
    const uint64_t granules = CeilDiv(layout.region_bytes, c_.granule_bytes);
    pool_ = WEIR_TRY(GranulePool::Create(*driver_, {.tier = Tier::kHbm,
                                                    .granule_bytes = c_.granule_bytes,
                                                    .count = static_cast<uint32_t>(granules)}));
    space_ = WEIR_TRY(AddressSpace::Create(*driver_, *pool_, {}));
    backing_ = WEIR_TRY(
        CreateMemoryBackingStore(*driver_, Tier::kHost, layout.region_bytes, c_.granule_bytes));
    if (c_.link_gb_s > 0) {
      backing_ = std::make_unique<SlowLink>(*driver_, std::move(backing_), c_.link_gb_s);
    }
    pager_ = WEIR_TRY(WeightPager::Create(*space_, backing_.get(), layout, {}, {}));
    std::vector<uint64_t> words(c_.layer_bytes / 8);
    for (uint32_t l = 0; l < c_.layers; ++l) {
      for (size_t i = 0; i < words.size(); ++i)
        words[i] = (l * words.size() + i) * 0x9E3779B97F4AULL;
      WEIR_TRY(pager_->Write(l * c_.layer_bytes, std::as_bytes(std::span(words))));
    }
    return pager_->Seal();
  }

  Result<Row> Run(const EvictionTarget& target, uint32_t percent, uint32_t intensity) {
    Row row;
    row.placement = target.empty()                           ? "resident"
                    : target.placement == Placement::kStripe ? "stripe"
                                                             : "layer";
    row.percent = percent;
    row.intensity = intensity;
    const uint64_t remapped = pager_->stats().granules_remapped;
    TimeNs begin = driver_->Now();
    WEIR_TRY(pager_->Apply(target));
    row.evict_ms = static_cast<double>(driver_->Now() - begin) / 1e6;
    row.remapped = pager_->stats().granules_remapped - remapped;
    row.evicted = pager_->plan().evicted_granules();
    row.ring = pager_->plan().ring_granules();
    row.freed = pager_->plan().freed_granules();
    for (int warm = 0; warm < 3; ++warm) WEIR_TRY(Step(intensity).status());
    const WeightPagerStats before = pager_->stats();
    std::vector<double> ms;
    double total_ms = 0;
    for (uint32_t i = 0; i < c_.steps; ++i) {
      begin = driver_->Now();
      const uint64_t sum = WEIR_TRY(Step(intensity));
      ms.push_back(static_cast<double>(driver_->Now() - begin) / 1e6);
      total_ms += ms.back();
      if (reference_ == 0) reference_ = sum;
      if (sum != reference_) return DataLoss("the step read other bytes than were loaded");
    }
    const WeightPagerStats& after = pager_->stats();
    row.step_ms = Median(ms);
    row.step_max_ms = *std::max_element(ms.begin(), ms.end());
    row.stall_ms = static_cast<double>(after.stall_ns - before.stall_ns) / 1e6 / c_.steps;
    row.faults = static_cast<double>(after.faults - before.faults) / c_.steps;
    row.copy_gb_s = static_cast<double>(after.bytes_copied - before.bytes_copied) / total_ms / 1e6;
    begin = driver_->Now();
    WEIR_TRY(pager_->Apply({}));
    row.restore_ms = static_cast<double>(driver_->Now() - begin) / 1e6;
    return row;
  }

  uint32_t max_per_layer() const { return pager_->max_granules_per_layer(); }

 private:
  // The sum of all words, which tells whether the bytes were right.
  Result<uint64_t> Step(uint32_t intensity) {
    WEIR_TRY(pager_->BeginStep());
    uint64_t sum = 0;
    const WeightLayout& layout = pager_->layout();
    for (uint32_t gate = 0; gate < layout.gates(); ++gate) {
      WEIR_TRY(pager_->Arrive(gate));
      const WeightSegment& s = layout.layers[gate / 2][gate % 2];
      const auto* words = reinterpret_cast<const uint64_t*>(pager_->base() + s.offset);
      const size_t n = s.bytes / 8;
      uint64_t again = 0;
      for (uint32_t k = 0; k < intensity; ++k) {
        again = 0;
        for (size_t i = 0; i < n; ++i) again += words[i];
        asm volatile("" ::: "memory");  // each turn reads again
      }
      sum += again;
      pager_->Depart(gate);
    }
    WEIR_TRY(pager_->EndStep());
    return sum;
  }

  Config c_;
  std::unique_ptr<HostDriver> driver_;
  std::unique_ptr<GranulePool> pool_;
  std::unique_ptr<AddressSpace> space_;
  std::unique_ptr<BackingStore> backing_;
  std::unique_ptr<WeightPager> pager_;
  uint64_t reference_ = 0;
};

void PrintRow(const Row& r, double granule_mib) {
  std::printf("%-9s %5u %5u %9.1f %7.1f %9.2f %9.2f %9.2f %7.1f %8.2f %8u %8.2f %8.2f\n",
              r.placement.c_str(), r.intensity, r.percent, r.freed * granule_mib,
              r.ring * granule_mib, r.step_ms, r.step_max_ms, r.stall_ms, r.faults, r.copy_gb_s,
              static_cast<unsigned>(r.remapped), r.evict_ms, r.restore_ms);
  std::fflush(stdout);
}

Status WriteJson(const Config& c, const std::vector<Row>& rows) {
  std::FILE* f = std::fopen(c.json.c_str(), "w");
  if (f == nullptr) return IoError("cannot write " + c.json);
  std::fprintf(f,
               "{\"layers\": %u, \"link_gb_s\": %.3f, \"layer_bytes\": %llu, \"granule_bytes\": "
               "%llu, \"rows\": [\n",
               c.layers, c.link_gb_s, static_cast<unsigned long long>(c.layer_bytes),
               static_cast<unsigned long long>(c.granule_bytes));
  for (size_t i = 0; i < rows.size(); ++i) {
    const Row& r = rows[i];
    std::fprintf(f,
                 "  {\"placement\": \"%s\", \"intensity\": %u, \"percent\": %u, \"evicted\": %u, "
                 "\"ring\": %u, \"freed\": %u, \"step_ms\": %.3f, \"step_max_ms\": %.3f, "
                 "\"stall_ms\": %.3f, \"faults\": %.1f, \"copy_gb_s\": %.3f, \"remapped\": %llu, "
                 "\"evict_ms\": %.3f, \"restore_ms\": %.3f}%s\n",
                 r.placement.c_str(), r.intensity, r.percent, r.evicted, r.ring, r.freed, r.step_ms,
                 r.step_max_ms, r.stall_ms, r.faults, r.copy_gb_s,
                 static_cast<unsigned long long>(r.remapped), r.evict_ms, r.restore_ms,
                 i + 1 < rows.size() ? "," : "");
  }
  std::fprintf(f, "]}\n");
  return std::fclose(f) == 0 ? OkStatus() : IoError("cannot write " + c.json);
}

Status RunAll(const Config& c) {
  Bench bench(c);
  WEIR_TRY(bench.SetUp());
  const double granule_mib = static_cast<double>(c.granule_bytes) / static_cast<double>(kMiB);
  std::printf("%u layers of %.1f MiB, granules of %.2f MiB, %u steps a row\n", c.layers,
              static_cast<double>(c.layer_bytes) / static_cast<double>(kMiB), granule_mib, c.steps);
  std::printf("%-9s %5s %5s %9s %7s %9s %9s %9s %7s %8s %8s %8s %8s\n", "placement", "reads",
              "%away", "freed MiB", "ring", "step ms", "max ms", "stall ms", "faults", "copyGB/s",
              "remaps", "evict ms", "home ms");
  std::vector<Row> rows;
  for (const uint32_t intensity : {1U, 4U}) {
    for (const Placement placement : {Placement::kStripe, Placement::kLayer}) {
      for (const uint32_t percent : {0U, 10U, 25U, 50U, 75U}) {
        if (percent == 0 && placement == Placement::kLayer) continue;
        EvictionTarget target;
        target.placement = placement;
        const uint64_t per_layer = c.layer_bytes * percent / 100 / c.granule_bytes;
        target.granules_per_layer =
            static_cast<uint32_t>(std::min<uint64_t>(per_layer, bench.max_per_layer()));
        target.layers = c.layers * percent / 100;
        if (placement == Placement::kLayer && target.layers <= target.ring_slots && percent > 0) {
          target.layers = target.ring_slots + 1;
        }
        rows.push_back(WEIR_TRY(bench.Run(target, percent, intensity)));
        PrintRow(rows.back(), granule_mib);
      }
    }
  }
  return c.json.empty() ? OkStatus() : WriteJson(c, rows);
}

int Main(int argc, char** argv) {
  Config c;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const uint64_t value = std::strtoull(argv[i + 1], nullptr, 10);
    if (name == "--layers") {
      c.layers = static_cast<uint32_t>(value);
    } else if (name == "--layer-mib") {
      c.layer_bytes = value * kMiB;
    } else if (name == "--granule-kib") {
      c.granule_bytes = value * kKiB;
    } else if (name == "--steps") {
      c.steps = static_cast<uint32_t>(std::max<uint64_t>(value, 1));
    } else if (name == "--link-gb-s") {
      c.link_gb_s = std::strtod(argv[i + 1], nullptr);
    } else if (name == "--json") {
      c.json = argv[i + 1];
    } else {
      std::fprintf(stderr, "unknown option %s\n", name.c_str());
      return 2;
    }
  }
  const Status status = RunAll(c);
  if (status.ok()) return 0;
  std::fprintf(stderr, "sluice_bench: %s\n", status.ToString().c_str());
  return 1;
}

}  // namespace
}  // namespace weir

int main(int argc, char** argv) {
  return weir::Main(argc, argv);
}
