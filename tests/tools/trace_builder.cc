#include "tests/tools/trace_builder.h"

#define XXH_INLINE_ALL
#include <cstring>
#include <fstream>

#include <gtest/gtest.h>
#include <unistd.h>
#include <xxhash.h>

namespace weir::trace_tool {
namespace {

using T = TraceType;
enum : uint64_t { kFree, kPinned, kMapped };
enum : uint8_t { kPlanLoad, kPlanEvict, kPlanRestore, kPlanKvGrow };
constexpr uint8_t kTierHost = 2, kPlacementInPlace = 2;
enum : uint64_t { kOwnerWeights = 1, kOwnerRing = 2, kOwnerKv = 3 };

template <typename V>
std::string Bytes(const V& value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

}  // namespace

std::string TraceBuilder::DefaultMeta() {
  return R"({"program": "weir", "version": "0.1.0", "commit": "abc", "host": "unit", "pid": 42,
  "model": "tiny", "driver": "host", "device": "cpu", "granule_bytes": 2097152,
  "pools": [{"tier": 0, "granules": 16}],
  "regions": [{"id": 0, "name": "weights", "slots": 8, "bytes": 16777216},
              {"id": 1, "name": "ring", "slots": 2, "bytes": 4194304},
              {"id": 2, "name": "kv", "slots": 8, "bytes": 16777216}],
  "weights": {"region": 0, "layers": [
     [{"offset": 0, "bytes": 4194304}, {"offset": 4194304, "bytes": 4194304}],
     [{"offset": 8388608, "bytes": 4194304}, {"offset": 12582912, "bytes": 4194304}]]},
  "segments": ["attention", "mlp"],
  "gates": ["layer 0 attention", "layer 0 mlp", "layer 1 attention", "layer 1 mlp"],
  "ring": {"slots": 2, "region": 1},
  "kv": {"region": 2, "block_bytes": 524288, "block_tokens": 16, "blocks_per_extent": 4,
         "granules_per_extent": 1},
  "link": {"bytes_per_ns": 50.0}, "policy": {"name": "tide", "parameters": {"headroom": "0.1"}},
  "reasons": ["nothing to do", "KV is short"], "max_num_seqs": 8})";
}

TraceBuilder& TraceBuilder::At(uint64_t time_ns) {
  now_ = time_ns;
  return *this;
}

TraceBuilder& TraceBuilder::Thread(uint32_t thread) {
  thread_ = thread;
  return *this;
}

TraceBuilder& TraceBuilder::Add(TraceType type, uint8_t cause, std::vector<uint64_t> args) {
  TraceRecord r;
  r.time_ns = now_;
  r.type = static_cast<uint16_t>(type);
  r.cause = cause;
  r.thread = thread_;
  std::copy(args.begin(), args.end(), r.args);
  records_.push_back(r);
  now_ += 1000;
  return *this;
}

TraceBuilder& TraceBuilder::Pool(uint64_t granules) {
  for (uint64_t g = 0; g < granules; ++g) Add(T::kCreate, 0, {g, kGranule});
  return *this;
}

TraceBuilder& TraceBuilder::Load() {
  Add(T::kPlanBegin, kPlanLoad, {++plan_, 8});
  for (uint64_t g = 0; g < 8; ++g) {
    Add(T::kGranuleState, 0, {g, kFree, kPinned, kOwnerWeights});
  }
  for (uint64_t g = 0; g < 8; ++g) Add(T::kMap, 0, {kWeights, g, g, 0, kOwnerWeights});
  for (uint64_t g = 0; g < 8; ++g) {
    Add(T::kGranuleState, 0, {g, kPinned, kMapped, kOwnerWeights});
  }
  return Add(T::kPlanCommit, kPlanLoad, {plan_, 8, 0, 20'000});
}

TraceBuilder& TraceBuilder::GrowKv(uint64_t extent, uint64_t granule, uint64_t capacity) {
  Add(T::kPlanBegin, kPlanKvGrow, {++plan_, 1});
  Add(T::kGranuleState, 0, {granule, kFree, kPinned, kOwnerKv});
  Add(T::kMap, 0, {kKv, extent, granule, 0, kOwnerKv});
  Add(T::kGranuleState, 0, {granule, kPinned, kMapped, kOwnerKv});
  Add(T::kPlanCommit, kPlanKvGrow, {plan_, 1, 0, 4'000});
  return Add(T::kKvCapacity, 0, {extent * 4, 4, 1, capacity});
}

TraceBuilder& TraceBuilder::Evict() {
  Add(T::kPlanBegin, kPlanEvict, {++plan_, 10});
  Add(T::kMap, 0, {kRing, 0, 1, 1, kOwnerWeights});
  Add(T::kMap, 0, {kRing, 1, 3, 1, kOwnerWeights});
  for (const uint64_t s : {1U, 3U, 5U, 7U}) Add(T::kUnmap, 0, {kWeights, s, s});
  for (const uint64_t s : {1U, 3U, 5U, 7U}) {
    Add(T::kMap, 0, {kWeights, s, s == 1 || s == 5 ? 1U : 3U, 1, kOwnerWeights});
  }
  for (const uint64_t g : {5U, 7U}) {
    Add(T::kGranuleState, 0, {g, kMapped, kPinned, kOwnerWeights});
    Add(T::kGranuleState, 0, {g, kPinned, kFree, 0});
  }
  Add(T::kPlanCommit, kPlanEvict, {plan_, 0, 2, 50'000});
  Add(T::kOwner, 0, {1, kOwnerWeights, kOwnerRing});
  Add(T::kOwner, 0, {3, kOwnerWeights, kOwnerRing});
  for (const uint64_t s : {1U, 3U, 5U, 7U}) Add(T::kEvict, 0, {kWeights, s, 1});
  return Add(T::kPlacement, 0, {2, 2, 4, 4 * kGranule, 4, 0});
}

TraceBuilder& TraceBuilder::ReadInPlace() {
  Add(T::kPlanBegin, kPlanEvict, {++plan_, 8});
  for (const uint64_t s : {1U, 3U, 5U, 7U}) Add(T::kUnmap, 0, {kWeights, s, s});
  for (const uint64_t s : {1U, 3U, 5U, 7U}) {
    Add(T::kMap, kTierHost,
        {kWeights, s, s, static_cast<uint64_t>(MapKind::kForeign), kOwnerWeights});
  }
  for (const uint64_t g : {1U, 3U, 5U, 7U}) {
    Add(T::kGranuleState, 0, {g, kMapped, kPinned, kOwnerWeights});
    Add(T::kGranuleState, 0, {g, kPinned, kFree, 0});
  }
  Add(T::kPlanCommit, kPlanEvict, {plan_, 0, 4, 50'000});
  for (const uint64_t s : {1U, 3U, 5U, 7U}) Add(T::kEvict, 0, {kWeights, s, 1});
  return Add(T::kPlacement, kPlacementInPlace, {2, 0, 4, 4 * kGranule, 0, 0});
}

TraceBuilder& TraceBuilder::HomeFromInPlace() {
  Add(T::kPlanBegin, kPlanRestore, {++plan_, 8});
  for (const uint64_t g : {1U, 3U, 5U, 7U}) {
    Add(T::kGranuleState, 0, {g, kFree, kPinned, kOwnerWeights});
  }
  for (const uint64_t s : {1U, 3U, 5U, 7U}) Add(T::kUnmap, kTierHost, {kWeights, s, s});
  for (const uint64_t s : {1U, 3U, 5U, 7U}) {
    Add(T::kMap, 0, {kWeights, s, s, 0, kOwnerWeights});
    Add(T::kGranuleState, 0, {s, kPinned, kMapped, kOwnerWeights});
  }
  Add(T::kPlanCommit, kPlanRestore, {plan_, 4, 0, 50'000});
  for (const uint64_t s : {1U, 3U, 5U, 7U}) {
    Add(T::kFill, kTierHost, {kWeights, s, 1, kGranule, now_, now_ + 500});
  }
  return Add(T::kPlacement, 0, {0, 2, 0, 0, 0, 0});
}

TraceBuilder& TraceBuilder::OpenStep(uint64_t number) {
  Add(T::kStepBegin, 0, {number, 2, 2, 0, 64});
  return Add(T::kStepEnd, 0, {number, 2, 2, 1000, 0, 0});
}

TraceBuilder& TraceBuilder::Step(uint64_t number, int late) {
  const uint64_t begin = now_;
  Add(T::kStepBegin, 0, {number, 2, 2, 0, 64});
  uint64_t stall = 0;
  for (uint64_t gate = 0; gate < 4; ++gate) {
    const uint64_t copy_begin = now_;
    const uint64_t took = static_cast<int>(gate) == late ? 80'000 : 0;
    Add(T::kGateArrive, 0, {gate, number, gate});
    now_ += 40'000 + took;
    Thread(1).Add(T::kCopy, 2, {gate, kWeights, 2 * gate + 1, kGranule, copy_begin, now_});
    Thread(0);
    if (took != 0) {
      Add(T::kFaultMajor, static_cast<uint8_t>(FaultCause::kLateCopy), {gate, number, gate, took});
    }
    Add(T::kGatePass, 0, {gate, number, gate, took});
    stall += took;
  }
  return Add(T::kStepEnd, 0, {number, 2, 2, now_ - begin, stall, 4 * kGranule});
}

TraceBuilder& TraceBuilder::DeviceSteps(uint64_t first, uint64_t last) {
  Add(T::kStepBegin, 0, {first, 2, 2, 0, 64});
  for (uint64_t step = first; step <= last; ++step) {
    const uint64_t begin = now_;
    if (step < last) Add(T::kStepBegin, 0, {step + 1, 2, 2, 1, 64});
    for (uint64_t gate = 0; gate < 4; ++gate) DeviceGate(step, gate, gate, 2 * gate + 1);
    const uint64_t end = now_;
    now_ += 10'000;
    Thread(0).Add(T::kDeviceStep, 0, {step, begin, end, 500});
    Add(T::kStepEnd, 0, {step, 2, 2, end - begin, 164'000, 4 * kGranule});
  }
  return *this;
}

void TraceBuilder::DeviceGate(uint64_t step, uint64_t gate, uint64_t chunk, uint64_t slot) {
  const uint64_t copy_begin = now_;
  Thread(2).Add(T::kGateArrive, 0, {gate, step, chunk});
  now_ += 40'000;
  Thread(1).Add(T::kCopy, 1, {chunk, kWeights, slot, kGranule, copy_begin, now_});
  Thread(2).Add(T::kFaultMajor, static_cast<uint8_t>(FaultCause::kStillCopying),
                {gate, step, chunk, 41'000});
  Add(T::kGatePass, 0, {gate, step, chunk, 41'000});
  Thread(0);
}

TraceBuilder& TraceBuilder::DeviceMove(uint64_t moving) {
  const uint64_t before = moving - 1, after = moving + 1;
  uint64_t begin = now_;
  // What the host learns when |step| has ended on the device, before it goes on.
  const auto ran = [&](uint64_t step) {
    const uint64_t end = now_;
    now_ += 10'000;
    Add(T::kDeviceStep, 0, {step, begin, end, 500});
    begin = end;
  };
  const auto ended = [&](uint64_t step, uint64_t gates) {
    Add(T::kStepEnd, 0, {step, 2, 2, 200'000, gates * 41'000, gates * kGranule});
  };
  Add(T::kStepBegin, 0, {before, 2, 2, 0, 64});
  Add(T::kStepBegin, 0, {moving, 2, 2, 1, 64});
  for (uint64_t gate = 0; gate < 4; ++gate) DeviceGate(before, gate, gate, 2 * gate + 1);
  ran(before);

  Add(T::kTransition, static_cast<uint8_t>(TransitionKind::kMoves),
      {moving, 1, 2, 4 * kGranule, 4, 0});
  DeviceGate(moving, 0, 0, 1);
  ended(before, 4);
  Add(T::kPlanBegin, kPlanRestore, {++plan_, 2});
  Add(T::kUnmap, 0, {kWeights, 3, 3});
  Add(T::kGranuleState, 0, {5, kFree, kPinned, kOwnerWeights});
  Add(T::kMap, 0, {kWeights, 3, 5, 0, kOwnerWeights});
  Add(T::kGranuleState, 0, {5, kPinned, kMapped, kOwnerWeights});
  Add(T::kPlanCommit, kPlanRestore, {plan_, 1, 0, 4'000});
  DeviceGate(moving, 1, 1, 3);
  DeviceGate(moving, 2, 2, 5);
  Add(T::kPlanBegin, kPlanRestore, {++plan_, 1});
  Add(T::kUnmap, 0, {kRing, 1, 3});
  Add(T::kPlanCommit, kPlanRestore, {plan_, 0, 0, 2'000});
  Add(T::kOwner, 0, {3, kOwnerRing, kOwnerWeights});
  Add(T::kStepBegin, 0, {after, 2, 2, 1, 64});
  DeviceGate(moving, 3, 3, 7);
  ran(moving);

  Add(T::kTransition, static_cast<uint8_t>(TransitionKind::kCopiesOnly),
      {after, 1, 2, 2 * kGranule, 2, 0});
  ended(moving, 4);
  DeviceGate(after, 0, 0, 1);
  DeviceGate(after, 2, 1, 5);
  ran(after);
  ended(after, 2);
  // As if the next one had to come to rest first: the account of the last round is due.
  return Add(T::kPlacement, 0, {1, 2, 2, 2 * kGranule, 2, 0});
}

TraceBuilder& TraceBuilder::Life() {
  Pool().Load().GrowKv(0, 8, 4);
  Add(T::kRequest, static_cast<uint8_t>(RequestEvent::kAdded), {1, 32, 0, 0, 0});
  Add(T::kPolicyInput, 0, {1, 3, 12, 4, 900'000, 0});
  Add(T::kPolicyDecision, 0, {1, 2, 0, 0, 2, 1});
  Evict().GrowKv(1, 5, 8);
  Add(T::kKvAlloc, 0, {1, 0, 3});
  Add(T::kRequest, static_cast<uint8_t>(RequestEvent::kScheduled), {1, 32, 0, 0, 0});
  Add(T::kQueue, 0, {1, 0, 3, 0, 5, 8});
  for (uint64_t i = 0; i < 5; ++i) {
    Step(10 + i, i == 2 ? 1 : -1);
    if (i == 0) Add(T::kRequest, static_cast<uint8_t>(RequestEvent::kFirstToken), {1, 32, 0, 1, 0});
    Add(T::kQueue, 0, {1, 0, 3, 0, 5, 8});
  }
  Add(T::kRequest, static_cast<uint8_t>(RequestEvent::kFinished), {1, 32, 0, 5, 0});
  Add(T::kKvFree, 0, {1, 2, 1, 0});
  Add(T::kKvFree, 0, {1, 0, 2, 2});
  return Add(T::kQueue, 0, {0, 0, 0, 2, 6, 8});
}

std::string TraceBuilder::File(size_t block_records) const {
  TraceFileHeader header;
  std::memcpy(header.magic, kTraceFileMagic, sizeof header.magic);
  header.start_ns = start_ns;
  header.start_unix_ns = 1'700'000'000'000'000'000;
  header.mask = mask;
  header.meta_bytes = static_cast<uint32_t>(meta.size());
  std::string file = Bytes(header) + meta;
  file.resize((file.size() + 63) / 64 * 64);
  for (size_t i = 0; i < records_.size(); i += block_records) {
    const size_t n = std::min(block_records, records_.size() - i);
    TraceBlockHeader block;
    block.records = static_cast<uint32_t>(n);
    block.checksum = XXH3_64bits(&records_[i], n * sizeof(TraceRecord));
    file += Bytes(block);
    file.append(reinterpret_cast<const char*>(&records_[i]), n * sizeof(TraceRecord));
  }
  return file;
}

std::string WriteScratch(const std::string& name, const std::string& bytes) {
  const std::string path = ::testing::TempDir() + "/" + std::to_string(::getpid()) + "_" + name;
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

}  // namespace weir::trace_tool
