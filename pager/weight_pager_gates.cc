// What the compute thread does at a gate: wait, look at what arrived, repair what did not.
//
// Repair is the one place where the compute thread calls the driver beyond the counters: the engine
// thread makes no pager call during a step, and a driver serialises its own calls.
#define XXH_INLINE_ALL
#include <algorithm>

#include <xxhash.h>

#include "pager/weight_pager_impl.h"
#include "vmm/trace.h"

namespace weir {

Status WeightPager::Arrive(uint32_t gate) {
  Impl& m = *impl_;
  const std::vector<int32_t>& table = m.gate_table();
  if (gate >= table.size()) {
    return InvalidArgument("gate " + std::to_string(gate) + " of " + std::to_string(table.size()));
  }
  if (table[gate] < 0) [[likely]]
    return OkStatus();
  if (m.passes.empty()) return BadState("a gate was reached outside a step");
  const auto chunk = static_cast<uint32_t>(table[gate]);
  const Pass& pass = m.passes.front();
  WeightPagerStats& stats = m.step.stats;
  ++stats.gate_arrivals;
  TraceEmit(TraceType::kGateArrive, 0, gate, stats_.steps, chunk);
  const uint64_t number = pass.base + chunk;
  GateView before{.produced = m.driver.LoadCounter(m.produced), .repairs = stats.repairs};
  uint64_t waited = 0;
  bool fault = before.produced < number + 1;
  Status status;
  if (fault) {
    before.begun = m.progress.begun.load(std::memory_order_relaxed);
    before.now_ns = m.driver.Now();
    status = m.WaitForChunk(pass, chunk);
    waited = m.driver.Now() - before.now_ns;
  }
  if (status.ok() && m.options.verify_stripes) {
    const uint64_t repairs = stats.repairs;
    const TimeNs begin = m.driver.Now();
    status = m.VerifyChunk(*pass.plan, chunk);
    if (stats.repairs != repairs) {  // its bytes had to move again
      fault = true;
      waited += m.driver.Now() - begin;
    }
  }
  if (fault) {
    ++stats.faults;
    stats.stall_ns += waited;
    stats.max_stall_ns = std::max(stats.max_stall_ns, waited);
    TraceEmit(TraceType::kFaultMajor, static_cast<uint8_t>(m.CauseOfFault(before, number)), gate,
              stats_.steps, chunk, waited);
  }
  if (!status.ok()) {
    return m.step.copy_error =
               status.WithContext(m.DescribeChunk(*pass.plan, layout_.segments_per_layer(), chunk));
  }
  m.step.passed[chunk] = 1;
  TraceEmit(TraceType::kGatePass, 0, gate, stats_.steps, chunk, waited);
  return OkStatus();
}

FaultCause WeightPager::Impl::CauseOfFault(const GateView& before, uint64_t number) const {
  if (step.stats.repairs != before.repairs) return FaultCause::kRepair;
  if (number < progress.untraced_end) return FaultCause::kUnknown;
  // The stream is in order: what was late and ended after the arrival was this copy or one before.
  const TimeNs late = progress.late_end_ns.load(std::memory_order_relaxed);
  if (late != 0 && late >= before.now_ns) return FaultCause::kLateCopy;
  if (first_round) return FaultCause::kNewPlan;
  return before.begun > before.produced ? FaultCause::kStillCopying : FaultCause::kNotStarted;
}

void WeightPager::Depart(uint32_t gate) {
  Impl& m = *impl_;
  const std::vector<int32_t>& table = m.gate_table();
  if (gate >= table.size() || table[gate] < 0) [[likely]]
    return;
  const auto chunk = static_cast<uint32_t>(table[gate]);
  // `consumed` says that everything up to this chunk is done with.
  WEIR_CHECK(chunk == m.step.departed, "segments depart in the order in which they are read");
  m.step.departed = chunk + 1;
  m.driver.StoreCounter(m.consumed, m.passes.front().base + chunk + 1);
}

DeviceGates WeightPager::device_gates() const {
  const Impl& m = *impl_;
  const bool begun = !m.passes.empty();
  return {.produced = m.gate_produced,
          .consumed = m.gate_consumed,
          .pass_base = begun ? m.passes.back().base : 0,
          .timeout_ns = m.options.gate_timeout_ns,
          .chunk_of_gate = (begun ? *m.passes.back().plan : *m.cover).chunk_of_gate()};
}

Status WeightPager::Report(const DeviceGateLog& log) {
  Impl& m = *impl_;
  if (m.passes.empty()) return BadState("no step has begun");
  const EvictionPlan& plan = *m.passes.front().plan;
  if (!m.armed(plan)) return OkStatus();
  if (!log.times.empty() || !m.stamped.empty()) m.TraceDeviceStep(log, stats_.steps);
  WeightPagerStats& stats = m.step.stats;
  stats.gate_arrivals += log.passed;
  stats.faults += log.faults;
  stats.stall_ns += log.stall_ns;
  stats.max_stall_ns = std::max(stats.max_stall_ns, log.max_stall_ns);
  m.step.departed = log.departed;
  const bool failed = log.failed_gate >= 0;
  const auto passed = failed ? 0 : std::min<size_t>(log.passed, m.step.passed.size());
  std::fill_n(m.step.passed.begin(), passed, uint8_t{1});
  if (!failed) return OkStatus();
  const int32_t chunk = plan.chunk_of_gate()[static_cast<size_t>(log.failed_gate)];
  return m.step.copy_error =
             DriverError("has not arrived within " +
                         std::to_string(m.options.gate_timeout_ns / 1'000'000) + " ms")
                 .WithContext(m.DescribeChunk(plan, layout_.segments_per_layer(),
                                              static_cast<uint32_t>(std::max(chunk, 0))));
}

std::string WeightPager::Impl::DescribeChunk(const EvictionPlan& plan, uint32_t segments,
                                             uint32_t chunk) const {
  const StripeChunk& c = plan.chunks()[chunk];
  return "gate " + std::to_string(c.gate) + " (layer " + std::to_string(c.gate / segments) +
         ", segment " + std::to_string(c.gate % segments) + ", stripe of slots " +
         std::to_string(c.first.value) + " to " + std::to_string(c.first.value + c.count) + ")";
}

Status WeightPager::Impl::WaitForChunk(const Pass& pass, uint32_t chunk) {
  const uint64_t number = pass.base + chunk;
  Status error;
  for (uint32_t attempt = 0; attempt < kAttempts; ++attempt) {
    switch (AwaitProduced(number + 1, &error)) {
      case WaitOutcome::kArrived: return OkStatus();
      case WaitOutcome::kTimedOut:
        return DriverError("has not arrived within " +
                           std::to_string(options.gate_timeout_ns / 1'000'000) + " ms");
      case WaitOutcome::kStreamFailed: break;
    }
    Status repaired = RepairFrom(pass, number);
    if (repaired.ok()) return repaired;
    error = std::move(repaired);
  }
  return error.WithContext("copied " + std::to_string(kAttempts) + " times in vain");
}

// Fetches what is missing up to chunk |number| on a new stream and waits for it, then queues again
// what was queued after it.
Status WeightPager::Impl::RepairFrom(const Pass& pass, uint64_t number) {
  const EvictionPlan& plan = *pass.plan;
  WEIR_TRY(ReplaceStream());
  const uint64_t end = queued;
  const uint64_t missing_from = driver.LoadCounter(produced);
  queued = missing_from;
  WeightPagerStats& stats = step.stats;
  for (uint64_t i = missing_from; i <= number; ++i) {
    if (driver.LoadCounter(consumed) < RequiredConsumed(plan, pass.base, i)) {
      return BadState("a gate was reached before an earlier layer departed from its ring slot");
    }
  }
  Status synchronous = QueueUpTo(plan, pass.base, number + 1, &stats);
  if (synchronous.ok()) synchronous = driver.Wait(last_copy);
  if (!synchronous.ok()) {
    queued = end;  // the next attempt starts from `produced` again
    return synchronous;
  }
  stats.repairs += number + 1 - missing_from;
  const uint64_t n = plan.chunks().size();
  for (Pass& p : passes) {
    WEIR_TRY(QueueUpTo(plan, pass.base, std::min(end, p.base + n), &stats));
    p.copied = last_copy;
  }
  return QueueUpTo(plan, pass.base, end, &stats);
}

// --- Verification --------------------------------------------------------------------------------

Result<uint64_t> WeightPager::Impl::SumOfSlot(uint32_t slot) {
  if (driver.properties().host_addressable) {
    return XXH3_64bits(reinterpret_cast<const void*>(SlotAddress(slot)), granule_bytes);
  }
  scratch.resize(granule_bytes);
  WEIR_TRY(driver.Read(SlotAddress(slot), scratch));
  return XXH3_64bits(scratch.data(), scratch.size());
}

Result<bool> WeightPager::Impl::SumsMatch(uint32_t first, uint32_t count) {
  for (uint32_t s = first; s < first + count; ++s) {
    if (WEIR_TRY(SumOfSlot(s)) != sums[s]) return false;
  }
  return true;
}

// A copy that was reported complete may still have been lost. Fetched again on a stream of its own,
// since the copy stream may be waiting for the very layer that stands at this gate.
Status WeightPager::Impl::VerifyChunk(const EvictionPlan& plan, uint32_t chunk) {
  const StripeChunk& c = plan.chunks()[chunk];
  for (uint32_t attempt = 0; attempt <= kAttempts; ++attempt) {
    if (WEIR_TRY(SumsMatch(c.first.value, c.count))) return OkStatus();
    if (attempt == kAttempts) break;
    ++step.stats.repairs;
    if (!repair_stream.valid()) repair_stream = WEIR_TRY(driver.CreateStream("weir-repair"));
    Status fetched = backing->Fetch(repair_stream, c.first.value * granule_bytes,
                                    c.count * granule_bytes, SlotAddress(c.first.value));
    if (fetched.ok()) {
      Result<EventId> event = driver.Record(repair_stream);
      fetched = event.ok() ? driver.Wait(*event) : event.status();
    }
    if (!fetched.ok()) {
      (void)driver.DestroyStream(repair_stream);
      backing->StreamGone(repair_stream);
      repair_stream = StreamId();
    }
  }
  return DataLoss("its bytes differ from the backing copy's checksum after " +
                  std::to_string(kAttempts) + " fetches");
}

Status WeightPager::Impl::ComputeSums() {
  const size_t slots = place_of_slot.size();
  sums.assign(slots, 0);
  std::vector<std::byte> bytes(granule_bytes);
  for (uint32_t s = 0; s < slots; ++s) {
    if (!MayLeave(s)) continue;
    WEIR_TRY(backing->Load(s * granule_bytes, bytes));
    sums[s] = XXH3_64bits(bytes.data(), bytes.size());
    if (!InRing(place_of_slot[s]) && WEIR_TRY(SumOfSlot(s)) != sums[s]) {
      return DataLoss("slot " + std::to_string(s) +
                      " of the weights differs from its backing copy");
    }
  }
  return OkStatus();
}

}  // namespace weir
