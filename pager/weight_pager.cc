#include "pager/weight_pager.h"

#include <algorithm>

#include "pager/weight_pager_impl.h"
#include "vmm/trace.h"

namespace weir {
namespace {

// How long a wait goes on before the copy stream's health is looked at.
constexpr uint64_t kHealthCheckNs = 5'000'000;

std::vector<WeightSegment> MergedSegments(const WeightLayout& layout) {
  std::vector<WeightSegment> all;
  if (layout.lookup.bytes > 0) all.push_back(layout.lookup);
  for (const auto& layer : layout.layers) {
    for (const WeightSegment& s : layer) {
      if (s.bytes > 0) all.push_back(s);
    }
  }
  std::sort(all.begin(), all.end(),
            [](const WeightSegment& a, const WeightSegment& b) { return a.offset < b.offset; });
  std::vector<WeightSegment> merged;
  for (const WeightSegment& s : all) {
    if (!merged.empty() && merged.back().offset + merged.back().bytes == s.offset) {
      merged.back().bytes += s.bytes;
    } else {
      merged.push_back(s);
    }
  }
  return merged;
}

// Whether the copy of a slot is an allocation that can be mapped there.
Status CheckReadInPlace(const BackingStore& backing, uint64_t granule_bytes) {
  if (backing.piece_bytes() == granule_bytes) return OkStatus();
  const std::string what = "weights cannot be read in place: their backing copy in tier " +
                           std::string(TierName(backing.tier()));
  if (backing.piece_bytes() == 0) return Unsupported(what + " is no memory that can be mapped");
  return Unsupported(what + " lies in pieces of " + std::to_string(backing.piece_bytes()) +
                     " bytes, their granules have " + std::to_string(granule_bytes) +
                     "; accepted are pieces of that size");
}

}  // namespace

// --- Life ----------------------------------------------------------------------------------------

WeightPager::WeightPager(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<WeightPager>> WeightPager::Create(AddressSpace& space, BackingStore* backing,
                                                         WeightLayout layout,
                                                         const EvictionTarget& initial,
                                                         const WeightPagerOptions& options) {
  if (layout.region_bytes == 0) return InvalidArgument("the weight layout has no bytes");
  const bool lookup = layout.lookup.bytes > 0;
  if (backing == nullptr && (!initial.empty() || lookup)) {
    return InvalidArgument("weights cannot be away at load without a backing store");
  }
  if (backing != nullptr && backing->bytes() < layout.region_bytes) {
    return InvalidArgument("the backing store has " + std::to_string(backing->bytes()) +
                           " bytes, the weights " + std::to_string(layout.region_bytes));
  }
  const uint64_t granule = space.pool().granule_bytes();
  EvictionPlan plan = WEIR_TRY(EvictionPlan::Make(layout, granule, initial));
  if (lookup || (!initial.empty() && initial.placement == Placement::kInPlace)) {
    WEIR_TRY(CheckReadInPlace(*backing, granule));
  }

  auto impl = std::make_unique<Impl>(space, backing, options);
#ifdef WEIR_VALIDATE
  impl->options.verify_stripes = true;
#endif
  impl->granule_bytes = granule;
  impl->covered = MergedSegments(layout);
  impl->weights = WEIR_TRY(space.Reserve("weights", layout.region_bytes));
  const size_t slots = space.region(impl->weights).slots.size();
  impl->place_of_slot = plan.PlaceOfSlots(slots);
  impl->cover = std::make_shared<const EvictionPlan>(plan);
  // From here on the destructor gives back what was made.
  std::unique_ptr<WeightPager> pager(new WeightPager(std::move(impl)));
  Impl& m = *pager->impl_;
  pager->region_ = m.weights;
  pager->layout_ = std::move(layout);
  if (backing != nullptr) {
    // The ring is always smaller than what it stands in for, so this is the most it can ever be.
    m.ring = WEIR_TRY(space.Reserve("ring", slots * granule));
    m.copy_stream = WEIR_TRY(m.driver.CreateStream("weir-weights"));
    WEIR_TRY(m.MakeCounters());
  }
  RemapPlan remap;
  remap.cause = RemapCause::kLoad;
  for (uint32_t i = 0; i < plan.ring_granules(); ++i) {
    remap.MapFresh(m.ring, SlotIndex(i), Owner::kRing);
  }
  for (uint32_t s = 0; s < slots; ++s) {
    const SlotPlace place = m.place_of_slot[s];
    if (InRing(place)) {
      remap.MapAlias(m.weights, SlotIndex(s), m.ring, SlotIndex(static_cast<uint32_t>(place)));
    } else if (place == kInBackingCopy) {
      WEIR_TRY(m.MapBackingCopy(&remap, s));
    } else {
      remap.MapFresh(m.weights, SlotIndex(s), Owner::kWeights);
    }
  }
  const TimeNs begin = m.driver.Now();
  WEIR_TRY(space.Commit(remap).WithContext("mapping the weights"));
  m.remap_cost.SetMapping(static_cast<double>(m.driver.Now() - begin) /
                          static_cast<double>(remap.ops.size()));
  pager->plan_ = std::move(plan);
  return pager;
}

WeightPager::~WeightPager() {
  Impl& m = *impl_;
  // Whatever copies are queued must not wait for a compute that is never going to come.
  m.SetConsumed(m.queued + m.after()->chunks().size() + 1);
  for (const StreamId stream : {m.copy_stream, m.repair_stream}) {
    if (!stream.valid()) continue;
    (void)m.driver.DestroyStream(stream);
    m.backing->StreamGone(stream);
  }
  m.TraceCopiesAtRest();
  for (const VirtAddr counter : {m.produced, m.consumed}) {
    if (counter != 0) (void)m.driver.DestroyCounter(counter);
  }
  for (const VirtAddr word : {m.gate_produced, m.gate_consumed}) {
    if (word != 0) (void)m.driver.DestroyGateWord(word);
  }
  RemapPlan remap;
  remap.cause = RemapCause::kShutdown;
  for (const RegionId id : {m.weights, m.ring}) {
    if (!id.valid()) continue;
    const Region& region = m.space.region(id);
    for (uint32_t s = 0; s < region.slots.size(); ++s) {
      if (region.slots[s].valid()) remap.Unmap(id, SlotIndex(s));
    }
  }
  // If this fails the address space's own destructor unmaps.
  if (!remap.empty()) (void)m.space.Commit(remap);
}

Status WeightPager::Impl::MakeCounters() {
  if (options.device_gates) {
    gate_produced = WEIR_TRY(driver.CreateGateWord());
    gate_consumed = WEIR_TRY(driver.CreateGateWord());
  } else {
    produced = WEIR_TRY(driver.CreateCounter());
    consumed = WEIR_TRY(driver.CreateCounter());
  }
  return OkStatus();
}

void WeightPager::Impl::SetConsumed(uint64_t value) {
  if (consumed != 0) driver.StoreCounter(consumed, value);
  if (gate_consumed != 0) (void)driver.Write(gate_consumed, std::as_bytes(std::span(&value, 1)));
}

void WeightPager::Impl::SetProduced(uint64_t value) {
  if (produced != 0) driver.StoreCounter(produced, value);
  if (gate_produced != 0) (void)driver.Write(gate_produced, std::as_bytes(std::span(&value, 1)));
}

VirtAddr WeightPager::base() const {
  return impl_->space.region(region_).base;
}

uint32_t WeightPager::max_steps_under_way() const {
  return impl_->options.max_steps_under_way;
}

uint32_t WeightPager::max_granules_per_layer() const {
  return EvictionPlan::MaxGranulesPerLayer(layout_, impl_->granule_bytes);
}

Status WeightPager::CanReadInPlace() const {
  if (impl_->backing == nullptr) return BadState("there is no backing copy to read in place");
  return CheckReadInPlace(*impl_->backing, impl_->granule_bytes);
}

Status WeightPager::Impl::CheckServing() const {
  switch (state) {
    case State::kServing: return OkStatus();
    case State::kLoading: return BadState("the weights are not sealed yet");
    case State::kInStep: return BadState("a step is under way");
    case State::kRefilling: return BadState("weights are being written anew");
    case State::kBroken: break;
  }
  return BadState("the weights are incomplete: a transition failed and so did going back");
}

void WeightPager::SetLinkRate(double bytes_per_ns) {
  impl_->progress.bytes_per_ns = bytes_per_ns;
  impl_->progress.measured = bytes_per_ns > 0;
}

void WeightPager::TraceState() const {
  const Impl& m = *impl_;
  // Of the steps that begin from now on. Copies queued so far were not traced, so none are ahead.
  m.TracePlacement(*m.after(), 0);
  // What it has still to remap is about to be told of.
  if (in_transition() && m.passes.front().advanced > 0) {
    m.TraceTransition(m.passes.front(), stats_.steps);
  }
}

// --- Steps ---------------------------------------------------------------------------------------

const EvictionPlan& WeightPager::planned() const {
  return *impl_->after();
}

bool WeightPager::streamed_evenly() const {
  return impl_->streamed_evenly;
}

const Status& WeightPager::copy_error() const {
  return impl_->copy_error;
}

Status WeightPager::BeginStep() {
  Impl& m = *impl_;
  m.copy_error = OkStatus();
  if (m.state != Impl::State::kInStep) WEIR_TRY(m.CheckServing());
  if (m.passes.size() == m.options.max_steps_under_way) return BadState("a step is under way");
  if (!m.passes.empty() && m.passes.back().held) {
    return BadState("the gates of the step before are still held closed");
  }
  if (m.restart_pending || m.queued_in_vain) {
    if (!m.passes.empty()) {
      return BadState("a step was given up; those under way must end first");
    }
    if (Status rest = m.BringToRest(); !rest.ok()) return m.copy_error = std::move(rest);
    m.Restart(&stats_);
  }
  Pass pass{.plan = m.after(), .to = std::exchange(m.heading, nullptr)};
  if (pass.to) pass.plan = WEIR_TRY(m.Covering(layout_, pass.plan, pass.to));
  if (m.armed(*pass.plan)) {
    const uint64_t n = pass.plan->chunks().size();
    pass.held = pass.to != nullptr || pass.plan != m.numbered;
    if (pass.held) {
      pass.base = m.queued + n;
      m.queued = pass.base;
      m.next_base = pass.base + n;
      m.numbered = pass.plan;
    } else {
      const Status queued = m.QueuePass(&pass, &stats_);
      if (!queued.ok()) {
        m.queued_in_vain = true;
        return m.copy_error = queued.WithContext("queueing the copies of a step");
      }
    }
  }
  m.passes.push_back(std::move(pass));
  if (m.passes.size() == 1) m.ExpectOldest();
  m.state = Impl::State::kInStep;
  return OkStatus();
}

void WeightPager::CancelStep() {
  Impl& m = *impl_;
  WEIR_CHECK(!m.passes.empty(), "no step has begun");
  const Pass pass = std::move(m.passes.back());
  m.passes.pop_back();
  if (m.passes.empty()) m.state = Impl::State::kServing;
  m.homecoming = {};
  if (!m.armed(*pass.plan)) return;
  // Some of its kernels may run all the same and depart from its chunks: nobody else may use them.
  m.queued = std::max(m.queued, pass.base + pass.plan->chunks().size());
  m.queued_in_vain = true;
}

Status WeightPager::EndStep() {
  Impl& m = *impl_;
  if (m.state != Impl::State::kInStep) return BadState("no step has begun");
  Pass pass = std::move(m.passes.front());
  m.passes.pop_front();
  if (m.passes.empty()) m.state = Impl::State::kServing;
  ++stats_.steps;
  const WeightPagerStats& s = m.step.stats;
  stats_.gate_arrivals += s.gate_arrivals;
  stats_.faults += s.faults;
  stats_.stall_ns += s.stall_ns;
  stats_.max_stall_ns = std::max(stats_.max_stall_ns, s.max_stall_ns);
  stats_.repairs += s.repairs;
  stats_.chunks_copied += s.chunks_copied;
  stats_.bytes_copied += s.bytes_copied;
  const auto missed = std::find(m.step.passed.begin(), m.step.passed.end(), 0);
  const auto missed_chunk = static_cast<uint32_t>(missed - m.step.passed.begin());
  const uint32_t departed = m.step.departed;
  if (!m.step.copy_error.ok()) m.copy_error = std::move(m.step.copy_error);
  m.ExpectOldest();
  const EvictionPlan& plan = *pass.plan;
  m.streamed_evenly = pass.advanced == 0 && plan.target().placement != Placement::kLayer;
  if (!m.armed(plan)) return OkStatus();
  const size_t n = plan.chunks().size();
  Status failed;
  if (m.restart_pending) {
    failed = BadState("a step before this one failed");
  } else if (pass.held) {
    m.homecoming = {};
    m.queued = std::max(m.queued, pass.base + n);
  } else if (missed_chunk == n && departed == n) {
    // All of the pass has arrived, so this waits for nothing. It is the last look at errors that a
    // driver reports through events only, while its counters go on (CUDA's host functions).
    failed = m.driver.Wait(pass.copied);
    if (!failed.ok()) {
      m.copy_error = failed;
    } else {
      m.first_round = false;
      if (pass.to || pass.between) EndTransition(pass);
      return OkStatus();
    }
  }
  // The pass is given up, and with it those begun after it. Once nobody computes any more, let the
  // copies drain and begin a fresh one.
  m.restart_pending = true;
  if (m.passes.empty()) {
    const Status rest = m.BringToRest();
    if (rest.ok()) m.Restart(&stats_);
  }
  if (!failed.ok()) return failed.WithContext("a copy of the step's weights");
  if (pass.held) return BadState("the step ended while its gates were held closed");
  const uint32_t chunk = std::min(missed_chunk, departed);
  return BadState("the step ended before " +
                  m.DescribeChunk(plan, layout_.segments_per_layer(), chunk) + " was " +
                  (missed_chunk <= departed ? "passed" : "departed from"));
}

void WeightPager::Impl::ExpectOldest() {
  step.stats = {};
  step.copy_error = OkStatus();
  step.departed = 0;
  step.passed.assign(passes.empty() ? 0 : passes.front().plan->chunks().size(), 0);
}

// --- The copy stream -----------------------------------------------------------------------------

uint64_t WeightPager::Impl::RequiredConsumed(const EvictionPlan& plan, uint64_t base,
                                             uint64_t number) {
  const uint64_t n = plan.chunks().size();
  const uint64_t index = (number - base) % n;
  const StripeChunk& chunk = plan.chunks()[index];
  // At least N numbers are left out below a first pass, so this does not go below zero.
  return number - index + chunk.previous_user + 1 - (chunk.previous_pass ? n : 0);
}

Status WeightPager::Impl::QueueChunk(const EvictionPlan& plan, uint64_t base, uint64_t number,
                                     uint32_t count) {
  const uint64_t index = (number - base) % plan.chunks().size();
  StripeChunk chunk = plan.chunks()[index];
  const VirtAddr opens = gate_produced != 0 ? gate_produced : produced;
  if (count == 0) {
    NoteNoCopy(number);
    return driver.WriteCounter(copy_stream, opens, number + 1);
  }
  chunk.first.value += chunk.count - count;
  chunk.count = count;
  const VirtAddr readers = gate_consumed != 0 ? gate_consumed : consumed;
  WEIR_TRY(driver.WaitCounter(copy_stream, readers, RequiredConsumed(plan, base, number)));
  // Faults take their cause from what is noted here.
  const bool wanted = TraceEnabled(TraceType::kCopy) || TraceEnabled(TraceType::kFaultMajor);
  const bool traced = wanted && gate_produced == 0;
  const bool stamped_now = wanted && gate_produced != 0;
  auto begin = traced ? std::make_shared<TimeNs>(0) : nullptr;
  if (traced) {
    WEIR_TRY(driver.HostFunction(copy_stream, [this, begin, number] {
      *begin = driver.Now();
      progress.begun.store(number + 1, std::memory_order_relaxed);
      return OkStatus();
    }));
  } else if (stamped_now) {
    WEIR_TRY(StampBegin(chunk, index, number, RequiredConsumed(plan, base, number)));
  } else {
    progress.untraced_end = number + 1;
  }
  WEIR_TRY(backing->Fetch(copy_stream, chunk.first.value * granule_bytes,
                          chunk.count * granule_bytes, SlotAddress(chunk.first.value)));
  if (traced) {
    WEIR_TRY(driver.HostFunction(copy_stream, [this, begin, chunk, index] {
      OnCopied(chunk, index, *begin);
      return OkStatus();
    }));
  } else if (stamped_now) {
    WEIR_TRY(StampEnd());
  }
  return driver.WriteCounter(copy_stream, opens, number + 1);
}

// On the copy stream, behind the copy and before `produced` says so.
void WeightPager::Impl::OnCopied(const StripeChunk& chunk, uint64_t index, TimeNs begin_ns) {
  const TimeNs end = driver.Now();
  const uint64_t bytes = chunk.count * granule_bytes;
  JudgeCopy(bytes, {begin_ns, end});
  TraceEmit(TraceType::kCopy, static_cast<uint8_t>(backing->tier()), index, weights.value,
            chunk.first.value, bytes, begin_ns, end);
}

void WeightPager::Impl::JudgeCopy(uint64_t bytes, CopySpan span) {
  constexpr double kLateFactor = 4;
  constexpr double kLateSlackNs = 100'000;
  const auto took = static_cast<double>(span.end_ns - span.begin_ns);
  const auto size = static_cast<double>(bytes);
  double& rate = progress.bytes_per_ns;
  if (rate > 0 && took > kLateFactor * size / rate + kLateSlackNs) {
    progress.late_end_ns.store(span.end_ns, std::memory_order_relaxed);
  }
  if (!progress.measured && took > 0) rate = std::max(rate, size / took);
}

Status WeightPager::Impl::QueueNext(const EvictionPlan& plan, uint64_t base, uint32_t count,
                                    WeightPagerStats* stats) {
  // A call that failed changed nothing (D7), and copying a chunk twice does no harm: try again.
  Status status = QueueChunk(plan, base, queued, count);
  for (uint32_t i = 1; i < kAttempts && !status.ok(); ++i) {
    status = QueueChunk(plan, base, queued, count);
  }
  WEIR_TRY(std::move(status));
  stats->chunks_copied += count > 0 ? 1 : 0;
  stats->bytes_copied += count * granule_bytes;
  ++queued;
  return OkStatus();
}

Status WeightPager::Impl::QueueUpTo(const EvictionPlan& plan, uint64_t base, uint64_t end,
                                    WeightPagerStats* stats) {
  if (queued >= end) return OkStatus();
  while (queued < end) {
    const uint32_t count = plan.chunks()[(queued - base) % plan.chunks().size()].count;
    WEIR_TRY(QueueNext(plan, base, count, stats));
  }
  last_copy = WEIR_TRY(driver.Record(copy_stream));
  return OkStatus();
}

// The next pass of the plan whose prefix is queued already, and the prefix of the one after it.
Status WeightPager::Impl::QueuePass(Pass* pass, WeightPagerStats* stats) {
  const EvictionPlan& plan = *pass->plan;
  if (Result<bool> health = driver.IsComplete(last_copy); passes.empty() && !health.ok()) {
    // A copy of the prefix failed while nobody looked.
    WEIR_TRY(ReplaceStream());
    const uint64_t arrived = options.device_gates ? next_base : driver.LoadCounter(produced);
    stats->repairs += queued - arrived;
    queued = arrived;
    SetProduced(arrived);
  }
  pass->base = next_base;
  const uint64_t end = next_base + plan.chunks().size();
  WEIR_TRY(QueueUpTo(plan, next_base, end, stats));
  pass->copied = last_copy;
  WEIR_TRY(QueueUpTo(plan, next_base, end + plan.prefix_chunks(), stats));
  next_base = end;
  return OkStatus();
}

WaitOutcome WeightPager::Impl::AwaitProduced(uint64_t at_least, Status* stream_error) {
  if (!copy_stream.valid()) {
    *stream_error = DriverError("there is no copy stream: making a new one failed");
    return WaitOutcome::kStreamFailed;
  }
  const TimeNs begin = driver.Now();
  for (;;) {
    const uint64_t waited = driver.Now() - begin;
    const uint64_t left = waited < options.gate_timeout_ns ? options.gate_timeout_ns - waited : 0;
    // Under virtual time a wait ends by itself as soon as nothing can open the gate any more.
    const uint64_t slice = driver.properties().virtual_time ? left : std::min(left, kHealthCheckNs);
    // With device gates the host learns of the last copy only.
    Status status = gate_produced == 0  ? driver.HostWaitCounter(produced, at_least, slice)
                    : last_copy.valid() ? driver.WaitFor(last_copy, slice)
                                        : OkStatus();
    if (status.ok()) return WaitOutcome::kArrived;
    if (status.code() != StatusCode::kShouldWait) {
      *stream_error = std::move(status);
      return WaitOutcome::kStreamFailed;
    }
    if (last_copy.valid()) {
      if (Result<bool> health = driver.IsComplete(last_copy); !health.ok()) {
        *stream_error = health.status();
        return WaitOutcome::kStreamFailed;
      }
    }
    if (left <= slice) return WaitOutcome::kTimedOut;
  }
}

Status WeightPager::Impl::ReplaceStream() {
  const StreamId old = copy_stream;
  copy_stream = StreamId();
  last_copy = EventId();
  // What is left on a failed stream is dropped by the driver, so this does not wait for long.
  if (old.valid()) {
    TraceEmit(TraceType::kCopyFailed, 0);
    (void)driver.DestroyStream(old);
    backing->StreamGone(old);
  }
  copy_stream = WEIR_TRY(driver.CreateStream("weir-weights"));
  last_copy = WEIR_TRY(driver.Record(copy_stream));
  return OkStatus();
}

Status WeightPager::Impl::BringToRest() {
  WEIR_TRY(AwaitRest());
  TraceCopiesAtRest();  // before anything is remapped: they ended by now
  return OkStatus();
}

Status WeightPager::Impl::AwaitRest() {
  const auto replace = [this]() -> Status {
    WEIR_TRY(ReplaceStream());
    SetProduced(queued);  // what was lost is copied again by the fresh pass
    restart_pending = true;
    return OkStatus();
  };
  if (!copy_stream.valid()) return replace();
  // No compute runs: a pass that was given up, or was not begun, has no readers left.
  if (queued_in_vain) restart_pending = true;
  if (restart_pending) SetConsumed(queued);
  // Not the last copy that QueueUpTo recorded: it may have given up behind that one.
  Result<EventId> all = driver.Record(copy_stream);
  if (!all.ok()) return replace();
  last_copy = *all;
  Status error;
  switch (AwaitProduced(queued, &error)) {
    case WaitOutcome::kTimedOut:
      return DriverError("the copy stream did not come to rest within " +
                         std::to_string(options.gate_timeout_ns / 1'000'000) + " ms");
    case WaitOutcome::kStreamFailed: return replace();
    case WaitOutcome::kArrived: break;
  }
  return driver.Wait(last_copy).ok() ? OkStatus() : replace();
}

void WeightPager::Impl::TracePlacement(const EvictionPlan& plan, uint64_t ahead_bytes) const {
  const EvictionTarget& target = plan.target();
  TraceEmit(
      TraceType::kPlacement, static_cast<uint8_t>(target.placement), target.granules_per_layer,
      target.placement == Placement::kInPlace ? 0 : target.ring_slots, plan.evicted_granules(),
      plan.evicted_granules() * granule_bytes, plan.chunks().size(), ahead_bytes);
}

void WeightPager::Impl::TraceTransition(const Pass& pass, uint64_t number) const {
  const TransitionKind kind = pass.to ? TransitionKind::kMoves : TransitionKind::kCopiesOnly;
  const EvictionPlan& plan = *pass.plan;
  const EvictionTarget& target = (pass.to ? *pass.to : plan).target();
  TraceEmit(TraceType::kTransition, static_cast<uint8_t>(kind), number, target.granules_per_layer,
            target.ring_slots, plan.evicted_granules() * granule_bytes, plan.chunks().size(),
            PrefixBytes(plan));
}

uint64_t WeightPager::Impl::PrefixBytes(const EvictionPlan& plan) const {
  return plan.prefix_granules() * granule_bytes;
}

void WeightPager::Impl::Restart(WeightPagerStats* stats) {
  const EvictionPlan& plan = *cover;
  restart_pending = false;
  queued_in_vain = false;
  numbered = cover;
  TracePlacement(plan, PrefixBytes(plan));
  if (!armed(plan)) return;
  next_base = queued + plan.chunks().size();
  queued = next_base;
  SetConsumed(next_base);
  SetProduced(next_base);
  // If this fails BeginStep goes on from here, and reports it if it fails again.
  if (!QueueUpTo(plan, next_base, next_base + plan.prefix_chunks(), stats).ok()) {
    TraceEmit(TraceType::kCopyFailed, 0);
  }
}

}  // namespace weir
