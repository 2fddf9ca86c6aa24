// TraceBuilder: makes trace files for tests, good ones and hostile ones.
//
// Represents a small server: pool of 16 granules, weights of 2 layers with 2 segments of 2 granules
// each (8 slots), a ring of 2 slots, KV with 1 granule and 4 blocks an extent.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "vmm/trace_format.h"

namespace weir::trace_tool {

class TraceBuilder {
 public:
  static constexpr uint64_t kGranule = 2U << 20;
  enum : uint64_t { kWeights = 0, kRing = 1, kKv = 2 };

  std::string meta = DefaultMeta();
  uint64_t start_ns = 1'000'000;
  uint64_t mask = 0;

  static std::string DefaultMeta();

  // The next record is 1 us later.
  TraceBuilder& At(uint64_t time_ns);
  TraceBuilder& Thread(uint32_t thread);
  TraceBuilder& Add(TraceType type, uint8_t cause, std::vector<uint64_t> args);
  uint64_t now() const { return now_; }
  size_t size() const { return records_.size(); }
  std::vector<TraceRecord>& records() { return records_; }

  // A server's life, in pieces.
  TraceBuilder& Pool(uint64_t granules = 16);
  // All 8 weight slots on granules 0..7, loaded.
  TraceBuilder& Load();
  // Maps KV extent |extent| onto |granule|; |capacity| blocks afterwards.
  TraceBuilder& GrowKv(uint64_t extent, uint64_t granule, uint64_t capacity);
  // Evicts slots 1, 3, 5, 7 (the last of each segment); granules 1 and 3 become the ring.
  TraceBuilder& Evict();
  // Evicts the same slots, which show their backing copy in host memory from then on.
  TraceBuilder& ReadInPlace();
  // Brings them home, onto granules 1, 3, 5 and 7.
  TraceBuilder& HomeFromInPlace();
  // One step under that placement: nothing is copied or waited for.
  TraceBuilder& OpenStep(uint64_t number);
  // One step of |tokens| under that placement: copies on thread 1, gates on thread 0. |late| has
  // the gate that faults, for 80 us; -1: none.
  TraceBuilder& Step(uint64_t number, int late = -1);
  // Steps |first| to |last| under that placement as a GPU runs them: each begins on the host while
  // the one before it runs, gates are on thread 2.
  TraceBuilder& DeviceSteps(uint64_t first, uint64_t last);
  // Three of them, |moving| in the middle: behind its gates slots 3 and 7 come home, the first by a
  // fresh granule, the other by that of the ring, which is down to one afterwards.
  TraceBuilder& DeviceMove(uint64_t moving);
  // A whole, correct life: Pool, Load, GrowKv, Evict, requests, 5 steps, policy decisions.
  TraceBuilder& Life();

  // The file, in blocks of |block_records|.
  std::string File(size_t block_records = 64) const;

 private:
  // Copies slot |slot| and lets |step| pass |gate|, which waits for it.
  void DeviceGate(uint64_t step, uint64_t gate, uint64_t chunk, uint64_t slot);

  std::vector<TraceRecord> records_;
  uint64_t now_ = 1'000'000;
  uint32_t thread_ = 0;
  uint64_t plan_ = 0;
};

// Writes |bytes| to a new file in the test's scratch folder and returns its path.
std::string WriteScratch(const std::string& name, const std::string& bytes);

}  // namespace weir::trace_tool
