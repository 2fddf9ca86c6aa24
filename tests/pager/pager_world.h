// A driver, a pool, an address space, a backing store and a weight pager with known bytes in it,
// and a compute that reads every byte of every segment between its gates.
#pragma once

#include <cstring>
#include <memory>
#include <random>

#include <gtest/gtest.h>

#include "pager/weight_pager.h"
#include "tests/pager/fault_driver.h"
#include "tests/pager/layouts.h"
#include "vmm/host_driver.h"
#include "vmm/sim_driver.h"

namespace weir::test {

enum class DriverKind : uint8_t { kHost, kSim };
inline std::string KindName(DriverKind kind) {
  return kind == DriverKind::kHost ? "Host" : "Sim";
}

enum class Backing : uint8_t { kNone, kHost, kFile };

inline constexpr uint64_t kGranule = 16 * kKiB;

inline std::unique_ptr<Driver> MakeDriver(DriverKind kind) {
  if (kind == DriverKind::kHost) {
    auto driver = HostDriver::Create({});
    EXPECT_TRUE(driver.ok()) << driver.status().ToString();
    return driver.ok() ? std::move(*driver) : nullptr;
  }
  auto driver = SimDriver::Create({});
  EXPECT_TRUE(driver.ok()) << driver.status().ToString();
  return driver.ok() ? std::move(*driver) : nullptr;
}

// The byte at |offset|: no two granules alike.
inline std::byte PatternAt(uint64_t offset) {
  uint64_t x = (offset / 8) * 0x9E3779B97F4A7C15ULL + 1;
  x ^= x >> 29;
  return static_cast<std::byte>((x * 0xBF58476D1CE4E5B9ULL) >> (8 * (offset % 8)));
}

inline std::vector<std::byte> Pattern(uint64_t bytes) {
  std::vector<std::byte> data(bytes);
  for (uint64_t i = 0; i < bytes; ++i) data[i] = PatternAt(i);
  return data;
}

struct WorldOptions {
  DriverKind driver = DriverKind::kHost;
  Backing backing = Backing::kHost;
  WeightLayout layout;
  uint32_t granules = 0;            // in the pool; 0: exactly the weights
  uint64_t piece_bytes = kGranule;  // of a store in memory
  EvictionTarget initial;
  WeightPagerOptions pager;
  bool load = true;
  bool poison = true;  // freed granules are filled, through maps of their own
};

class World {
 public:
  explicit World(WorldOptions options)
      : options_(std::move(options)),
        base_driver_(MakeDriver(options_.driver)),
        driver(*base_driver_),
        bytes(Pattern(options_.layout.region_bytes)) {
    const uint32_t weights = EvictionPlan::GranulesAtHome(options_.layout, kGranule);
    auto made_pool = GranulePool::Create(
        driver, {.tier = Tier::kHbm,
                 .granule_bytes = kGranule,
                 .count = options_.granules != 0 ? options_.granules : weights});
    EXPECT_TRUE(made_pool.ok()) << made_pool.status().ToString();
    pool = std::move(*made_pool);
    space = std::move(*AddressSpace::Create(driver, *pool, {.poison_freed = options_.poison}));
    if (options_.backing != Backing::kNone) {
      auto made = options_.backing == Backing::kHost
                      ? CreateMemoryBackingStore(driver, Tier::kHost, options_.layout.region_bytes,
                                                 options_.piece_bytes)
                      : CreateFileBackingStore(driver, options_.layout.region_bytes,
                                               {.io_bytes = 8 * kKiB});
      EXPECT_TRUE(made.ok()) << made.status().ToString();
      backing = std::move(*made);
    }
    auto made = WeightPager::Create(*space, backing.get(), options_.layout, options_.initial,
                                    options_.pager);
    created = made.status();
    if (!made.ok()) return;
    pager = std::move(*made);
    base = pager->base();
    if (options_.load) Load();
  }

  ~World() {
    pager.reset();
    if (pool) {
      EXPECT_EQ(pool->counts().free, pool->counts().total) << pool->Dump();
    }
    if (SimDriver* s = sim()) {
      EXPECT_EQ(s->violations(), 0U) << s->violation_list().front();
    }
  }

  // In pieces of odd sizes, as tensors come.
  void Load() {
    std::mt19937_64 rng(7);
    for (uint64_t at = 0; at < bytes.size();) {
      const uint64_t n = std::min<uint64_t>(bytes.size() - at, 1 + rng() % (3 * kGranule));
      ASSERT_TRUE(pager->Write(at, std::span(bytes).subspan(at, n)).ok());
      at += n;
    }
    const Status sealed = pager->Seal();
    ASSERT_TRUE(sealed.ok()) << sealed.ToString();
  }

  SimDriver* sim() { return dynamic_cast<SimDriver*>(base_driver_.get()); }

  // Whether [offset, offset + n) of the weights holds the bytes that were loaded.
  bool BytesAre(uint64_t offset, uint64_t n) {
    if (n == 0) return true;
    if (driver.properties().host_addressable) {
      return std::memcmp(reinterpret_cast<const void*>(base + offset), &bytes[offset], n) == 0;
    }
    std::vector<std::byte> here(n);
    return base_driver_->Read(base + offset, here).ok() &&
           std::memcmp(here.data(), &bytes[offset], n) == 0;
  }

  // What the engine does in a step; kDataLoss when a byte is wrong.
  Status Compute() {
    const WeightLayout& layout = options_.layout;
    const uint32_t segments = layout.segments_per_layer();
    if (!BytesAre(layout.lookup.offset, layout.lookup.bytes)) {
      return DataLoss("wrong bytes in the lookup table");
    }
    for (uint32_t gate = 0; gate < layout.gates(); ++gate) {
      WEIR_TRY(pager->Arrive(gate));
      const WeightSegment& s = layout.layers[gate / segments][gate % segments];
      if (!BytesAre(s.offset, s.bytes)) {
        return DataLoss("wrong bytes behind gate " + std::to_string(gate));
      }
      if (SimDriver* virtual_time = sim()) virtual_time->AdvanceBy(s.bytes / 4);
      pager->Depart(gate);
    }
    return OkStatus();
  }
  Status Step() {
    WEIR_TRY(pager->BeginStep());
    Status computed = Compute();
    Status ended = pager->EndStep();
    return computed.ok() ? ended : computed;
  }

  // Everything that must hold between steps.
  void CheckAll() {
    EXPECT_EQ(pager->base(), base);
    Status s = pool->CheckIntegrity();
    EXPECT_TRUE(s.ok()) << s.ToString();
    s = space->CheckIntegrity();
    EXPECT_TRUE(s.ok()) << s.ToString();
    s = pager->CheckIntegrity();
    EXPECT_TRUE(s.ok()) << s.ToString();
    const PoolCounts& c = pool->counts();
    const EvictionPlan& plan = pager->planned();
    if (!pager->settled() && plan.even()) return;  // less than that is away
    const uint32_t all = EvictionPlan::GranulesAtHome(options_.layout, kGranule);
    EXPECT_EQ(c.by_owner[static_cast<size_t>(Owner::kWeights)], all - plan.evicted_granules());
    EXPECT_EQ(c.by_owner[static_cast<size_t>(Owner::kRing)], plan.ring_granules());
  }

 private:
  WorldOptions options_;
  std::unique_ptr<Driver> base_driver_;

 public:
  FaultDriver driver;
  std::vector<std::byte> bytes;
  std::unique_ptr<BackingStore> backing;
  std::unique_ptr<GranulePool> pool;
  std::unique_ptr<AddressSpace> space;
  Status created;
  std::unique_ptr<WeightPager> pager;
  VirtAddr base = 0;
};

}  // namespace weir::test
