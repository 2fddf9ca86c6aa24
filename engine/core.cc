#include "engine/core.h"

#include <algorithm>
#include <string>
#include <utility>

#include "engine/step_trace.h"
#include "vmm/trace.h"

namespace weir {
namespace {

constexpr double kSmoothing = 0.1;

double Smooth(double old, double now) {
  return old == 0 ? now : old + kSmoothing * (now - old);
}

RequestEvent EndEvent(FinishReason reason) {
  switch (reason) {
    case FinishReason::kCancelled: return RequestEvent::kCancelled;
    case FinishReason::kError: return RequestEvent::kFailed;
    case FinishReason::kNone:
    case FinishReason::kStop:
    case FinishReason::kLength: break;
  }
  return RequestEvent::kFinished;
}

}  // namespace

EngineCore::EngineCore(Driver& driver, Memory& memory, Compute& compute, Policy& policy,
                       const CoreOptions& options)
    : driver_(driver),
      memory_(memory),
      compute_(compute),
      policy_(policy),
      options_(options),
      scheduler_(memory.blocks(), options.scheduler,
                 [this](uint32_t blocks) {
                   // Growing is best effort: the scheduler looks at what there is afterwards.
                   const Status grown = memory_.GrowKv(blocks);
                   if (!grown.ok()) ++stats_.border_refusals;
                 }),
      recorded_pointers_(compute.RecordedPointersDigest()) {
  WEIR_CHECK(options.scheduler.max_batched_tokens <= compute.limits().max_rows, "step rows");
  WEIR_CHECK(options.scheduler.max_sequences <= compute.limits().max_sequences, "sequences");
  WEIR_CHECK(options.max_model_len <= compute.limits().max_context, "context");
}

EngineCore::~EngineCore() {
  for (auto& [id, sequence] : sequences_) scheduler_.Finish(sequence.get());
}

Result<RequestId> EngineCore::Add(CoreRequest request) {
  const uint32_t vocab = compute_.limits().vocab_size;
  if (request.prompt.empty()) return InvalidArgument("the prompt has no tokens");
  for (const int32_t token : request.prompt) {
    if (token < 0 || static_cast<uint32_t>(token) >= vocab) {
      return InvalidArgument("prompt token " + std::to_string(token) +
                             " is outside the vocabulary [0, " + std::to_string(vocab) + ")");
    }
  }
  const uint64_t prompt = request.prompt.size();
  if (prompt >= options_.max_model_len) {
    return InvalidArgument("the prompt has " + std::to_string(prompt) +
                           " tokens; with one to generate the model's context takes at most " +
                           std::to_string(options_.max_model_len - 1));
  }
  const uint64_t room = options_.max_model_len - prompt;
  if (request.sampling.max_tokens == 0 || request.sampling.max_tokens > room) {
    request.sampling.max_tokens = static_cast<uint32_t>(room);
  }
  WEIR_TRY(ValidateSampling(request.sampling, vocab));
  const uint64_t blocks = CeilDiv(prompt + 1, kBlockTokens);
  if (blocks > memory_.most_kv_blocks()) {
    return NoMemory("the prompt needs " + std::to_string(blocks) +
                    " KV blocks; the memory budget gives at most " +
                    std::to_string(memory_.most_kv_blocks()));
  }
  auto sequence = std::make_unique<Sequence>();
  sequence->id = next_id_++;
  sequence->arrival = sequence->id;
  sequence->prompt_tokens = static_cast<uint32_t>(prompt);
  sequence->tokens = std::move(request.prompt);
  sequence->sampling = std::move(request.sampling);
  sequence->root = PrefixRoot(request.cache_salt);
  sequence->priority = request.priority;
  sequence->added_ns = driver_.Now();
  sequence->history.AddPrompt(sequence->tokens);
  const RequestId id = sequence->id;
  sequence->TraceEvent(RequestEvent::kAdded);
  scheduler_.Add(sequence.get());
  sequences_.emplace(id, std::move(sequence));
  return id;
}

Status EngineCore::Finish(RequestId id, FinishReason reason) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return NotFound("no request " + std::to_string(id));
  Retire(*it->second, reason, {});
  return OkStatus();
}

// Takes the sequence out of everything and reports its end.
void EngineCore::Retire(Sequence& sequence, FinishReason reason, Status error) {
  scheduler_.Finish(&sequence);
  sequence.TraceEvent(EndEvent(reason));
  CoreOutput output;
  output.id = sequence.id;
  output.finished = true;
  output.reason = reason;
  output.error = std::move(error);
  output.prompt_tokens = sequence.prompt_tokens;
  output.cached_tokens = sequence.cached_tokens;
  output.scheduled_ns = sequence.first_scheduled_ns;
  // A token of this step may wait to be reported: the end goes into the same record.
  if (!outputs_.empty() && outputs_.back().id == sequence.id && !outputs_.back().finished) {
    output.tokens = std::move(outputs_.back().tokens);
    outputs_.back() = std::move(output);
  } else {
    outputs_.push_back(std::move(output));
  }
  ++(reason == FinishReason::kError ? stats_.requests_failed : stats_.requests_finished);
  sequences_.erase(sequence.id);
}

Result<bool> EngineCore::Step() {
  FollowRecorder();
  if (scheduler_.idle()) {
    // Nothing to run, but weights may still be away: let the policy bring them home.
    ++idle_steps_;
    ApplyPolicy();
    return false;
  }
  if (stats_.steps % options_.policy_interval == 0) ApplyPolicy();
  const std::vector<ScheduledSequence> scheduled = scheduler_.Schedule();
  stats_.peak_running = std::max(stats_.peak_running, scheduler_.running());
  if (scheduled.empty()) {
    HandleStarvation();
    TraceMemory();
    return true;
  }
  starved_in_a_row_ = 0;
  const Status status = RunStep(scheduled);
  if (!status.ok()) OnStepError(scheduled, status);
  TraceMemory();
  return true;
}

// S3: nothing runs. If no border has room for the first waiting request it fails; never a hang.
void EngineCore::HandleStarvation() {
  Sequence* first = scheduler_.front_waiting();
  WEIR_CHECK(first != nullptr && scheduler_.running() == 0, "an empty batch with work to do");
  const uint64_t need = CeilDiv(first->length(), kBlockTokens);
  const uint32_t available = memory_.blocks().available();
  starved_blocks_ = need > available ? need - available : 1;
  const uint32_t before = memory_.blocks().counts().capacity + memory_.pool().Available();
  ApplyPolicy();
  starved_blocks_ = 0;
  const uint32_t after = memory_.blocks().counts().capacity + memory_.pool().Available();
  if (after != before && ++starved_in_a_row_ < options_.max_starved_steps) return;
  starved_in_a_row_ = 0;
  Retire(*first, FinishReason::kError,
         NoMemory("the request holds " + std::to_string(first->length()) + " tokens and needs " +
                  std::to_string(need) + " KV blocks, but only " + std::to_string(available) +
                  " can be had under policy " + std::string(policy_.name())));
}

PolicySnapshot EngineCore::Snapshot() const {
  const MemoryView view = memory_.view();
  const BlockCounts& blocks = memory_.blocks().counts();
  const KvGeometry& geometry = memory_.kv().geometry();
  PolicySnapshot s;
  s.step = stats_.steps + idle_steps_;
  s.now_ns = driver_.Now();
  s.granule_bytes = view.granule_bytes;
  s.pool_total = view.pool.total;
  s.pool_free = view.pool.free - view.pool.committed;
  s.weights = {.bytes = memory_.weights().layout().region_bytes,
               .layers = static_cast<uint32_t>(memory_.weights().layout().layers.size()),
               .max_granules_per_layer = memory_.max_granules_per_layer(),
               .granules_per_layer = view.granules_per_layer,
               .ring_slots = memory_.ring_slots()};
  s.kv = {.granules_per_extent = geometry.granules_per_extent,
          .blocks_per_extent = geometry.blocks_per_extent,
          .block_tokens = kBlockTokens,
          .mapped_extents = view.kv_extents,
          .max_extents = memory_.kv().max_extents(),
          .used_blocks = blocks.used,
          .cached_blocks = blocks.cached,
          .free_blocks = blocks.free};
  s.demand = {.running = scheduler_.running(),
              .waiting = scheduler_.waiting() + queued_.requests,
              .max_running = options_.scheduler.max_sequences,
              .waiting_blocks = scheduler_.waiting_blocks() + queued_.blocks,
              .expected_blocks = scheduler_.expected_blocks() + queued_.expected_blocks,
              .starved_blocks = starved_blocks_,
              .tokens_per_seq = scheduler_.mean_running_tokens(),
              .preemptions = scheduler_.stats().preemptions};
  s.cost = cost_.cost();
  s.step_ns = smoothed_step_ns_;
  s.stall_ns_per_step = smoothed_stall_ns_;
  return s;
}

void EngineCore::ApplyPolicy() {
  const PolicySnapshot snapshot = Snapshot();
  const PolicyDecision decision = policy_.Decide(snapshot);
  // D2: a decision is a wish; what breaks an invariant is clipped.
  const uint32_t wanted =
      std::min(decision.granules_per_layer, snapshot.weights.max_granules_per_layer);
  if (wanted != decision.granules_per_layer) ++stats_.border_refusals;
  TraceDecision(snapshot, decision, wanted != decision.granules_per_layer);
  if (wanted == snapshot.weights.granules_per_layer) return;
  Status moved = MoveBorder(wanted, std::max(2U, decision.ring_slots));
  if (moved.ok()) {
    ++stats_.border_moves;
  } else {
    ++stats_.border_refusals;
    last_border_error_ = std::move(moved);
  }
}

Status EngineCore::MoveBorder(uint32_t granules_per_layer, uint32_t ring_slots) {
  const TimeNs start = driver_.Now();
  Memory::KvHolder holder;
  holder.patch = [this](const auto& moves) { scheduler_.PatchBlocks(moves); };
  holder.lost = [this] {
    scheduler_.PreemptAll();
    memory_.blocks().ClearPrefixCache();
  };
  Status status = memory_.MoveBorder(granules_per_layer, ring_slots, holder);
  stats_.border_ns += driver_.Now() - start;
  return status;
}

StepBatch EngineCore::BuildBatch(const std::vector<ScheduledSequence>& scheduled) const {
  StepBatch batch;
  for (const ScheduledSequence& s : scheduled) {
    const Sequence& q = *s.sequence;
    StepSequence step;
    step.first_row = batch.rows();
    step.rows = s.tokens;
    step.context = q.computed + s.tokens;
    step.wants_logits = step.context == q.length();
    const uint64_t blocks = CeilDiv(step.context, kBlockTokens);
    for (uint64_t i = 0; i < blocks; ++i) step.blocks.push_back(static_cast<int32_t>(q.blocks[i]));
    for (uint32_t i = q.computed; i < step.context; ++i) {
      batch.tokens.push_back(q.tokens[i]);
      batch.positions.push_back(static_cast<int32_t>(i));
    }
    batch.sequences.push_back(std::move(step));
  }
  return batch;
}

Status EngineCore::RunStep(const std::vector<ScheduledSequence>& scheduled) {
  const StepBatch batch = BuildBatch(scheduled);
  WeightPager& weights = memory_.weights();
  WEIR_DCHECK(compute_.RecordedPointersDigest() == recorded_pointers_ && compute_.recordings() == 1,
              "S1: a recorded pointer changed");
  const uint64_t stall_before = weights.stats().stall_ns;
  const uint64_t bytes_before = weights.stats().bytes_copied;
  const TimeNs start = driver_.Now();
  for (const ScheduledSequence& s : scheduled) {
    if (s.sequence->first_scheduled_ns == 0) s.sequence->first_scheduled_ns = start;
  }
  StepTrace trace(StepKind::kServing, batch, driver_, weights);
  Status run = weights.BeginStep();
  if (!run.ok()) return trace.Failed(std::move(run));
  const TimeNs compute_start = driver_.Now();
  run = compute_.Run(batch, weights);
  stats_.compute_ns += driver_.Now() - compute_start;
  Status end = weights.EndStep();
  if (run.ok()) run = std::move(end);
  if (!run.ok()) return trace.Failed(std::move(run));

  scheduler_.OnComputed(scheduled);
  SampleAll(scheduled);
  ++stats_.steps;
  failed_in_a_row_ = 0;
  const TimeNs step_ns = driver_.Now() - start;
  Observe(batch, step_ns, weights.stats().stall_ns - stall_before,
          weights.stats().bytes_copied - bytes_before);
  trace.Ended(step_ns);
  if (keep_records_) {
    const BlockCounts& blocks = memory_.blocks().counts();
    records_.push_back({.step = stats_.steps,
                        .start_ns = start,
                        .step_ns = step_ns,
                        .stall_ns = weights.stats().stall_ns - stall_before,
                        .rows = batch.rows(),
                        .running = scheduler_.running(),
                        .waiting = scheduler_.waiting(),
                        .kv_used = blocks.used,
                        .kv_cached = blocks.cached,
                        .kv_capacity = blocks.capacity,
                        .evicted_granules = weights.plan().evicted_granules()});
  }
  return OkStatus();
}

void EngineCore::Observe(const StepBatch& batch, TimeNs step_ns, TimeNs stall_ns,
                         uint64_t streamed) {
  smoothed_step_ns_ = Smooth(smoothed_step_ns_, static_cast<double>(step_ns));
  smoothed_stall_ns_ = Smooth(smoothed_stall_ns_, static_cast<double>(stall_ns));
  StepSample sample;
  sample.tokens = batch.rows();
  for (const StepSequence& s : batch.sequences) {
    // Causal: the i-th new token attends to (context - rows + i + 1) tokens.
    sample.context_sum += static_cast<double>(s.rows) * (s.context - (s.rows - 1) / 2.0);
  }
  sample.evicted_bytes = static_cast<double>(streamed);
  sample.stall_ns = static_cast<double>(stall_ns);
  sample.step_ns = static_cast<double>(step_ns);
  cost_.Observe(sample);
}

void EngineCore::SampleAll(const std::vector<ScheduledSequence>& scheduled) {
  uint32_t row = 0;
  for (const ScheduledSequence& s : scheduled) {
    Sequence& sequence = *s.sequence;
    if (sequence.computed != sequence.length()) {
      stats_.prompt_tokens_computed += s.tokens;
      continue;
    }
    stats_.prompt_tokens_computed += s.tokens - 1;
    Result<SampledToken> sampled =
        sampler_.Sample(compute_.logits(row++), sequence.sampling, sequence.history, sequence.id,
                        sequence.length(), options_.eos_ids);
    if (!sampled.ok()) {
      Retire(sequence, FinishReason::kError, sampled.status());
      continue;
    }
    CoreOutput output;
    output.id = sequence.id;
    output.prompt_tokens = sequence.prompt_tokens;
    output.cached_tokens = sequence.cached_tokens;
    output.scheduled_ns = sequence.first_scheduled_ns;
    outputs_.push_back(std::move(output));
    Accept(sequence, std::move(*sampled), &outputs_.back());
  }
}

void EngineCore::Accept(Sequence& sequence, SampledToken token, CoreOutput* output) {
  const int32_t id = token.token;
  sequence.tokens.push_back(id);
  sequence.history.AddOutput(id);
  sequence.last_token_ns = driver_.Now();
  if (sequence.first_token_ns == 0) {
    sequence.first_token_ns = sequence.last_token_ns;
    sequence.TraceEvent(RequestEvent::kFirstToken);
  }
  ++stats_.output_tokens;
  output->tokens.push_back(std::move(token));
  const FinishReason reason = CheckFinish(sequence, id);
  if (reason != FinishReason::kNone) Retire(sequence, reason, {});
}

FinishReason EngineCore::CheckFinish(const Sequence& sequence, int32_t token) const {
  const SamplingParams& p = sequence.sampling;
  if (sequence.output_tokens() >= p.min_tokens) {
    const auto is = [token](const std::vector<int32_t>& ids) {
      return std::find(ids.begin(), ids.end(), token) != ids.end();
    };
    if ((!p.ignore_eos && is(options_.eos_ids)) || is(p.stop_token_ids)) return FinishReason::kStop;
  }
  if (sequence.output_tokens() >= p.max_tokens || sequence.length() >= options_.max_model_len) {
    return FinishReason::kLength;
  }
  return FinishReason::kNone;
}

void EngineCore::OnStepError(const std::vector<ScheduledSequence>& scheduled, const Status& error) {
  ++stats_.failed_steps;
  if (++failed_in_a_row_ < options_.max_failed_steps) return;  // the same work is tried again
  failed_in_a_row_ = 0;
  for (const ScheduledSequence& s : scheduled) {
    Retire(*s.sequence, FinishReason::kError, error.WithContext("the step failed repeatedly"));
  }
}

// --- Trace ---------------------------------------------------------------------------------------

void EngineCore::FollowRecorder() {
  Tracer* const tracer = GetTracer();
  if (tracer == nullptr || !tracer->FollowRecorder()) return;
  TraceEmit(TraceType::kSnapshotBegin, 0);
  memory_.TraceState();
  scheduler_.TraceState();
  TraceEmit(TraceType::kSnapshotEnd, 0);
  TraceMemory();
}

void EngineCore::TraceDecision(const PolicySnapshot& snapshot, const PolicyDecision& decision,
                               bool clipped) {
  constexpr uint64_t kSample = 64;
  const uint64_t number = decisions_++;
  Tracer* const tracer = GetTracer();
  if (tracer == nullptr ||
      !(TraceEnabled(TraceType::kPolicyDecision) || TraceEnabled(TraceType::kPolicyInput))) {
    return;
  }
  const uint32_t before = snapshot.weights.granules_per_layer;
  if (decision.granules_per_layer == before && !clipped && number % kSample != 0) return;
  const uint32_t mapped = snapshot.kv.mapped_extents * snapshot.kv.blocks_per_extent;
  TraceEmit(TraceType::kPolicyInput, 0, number, snapshot.demand.waiting,
            snapshot.demand.expected_blocks, mapped, snapshot.step_ns, snapshot.stall_ns_per_step);
  TraceEmit(TraceType::kPolicyDecision, 0, number, decision.granules_per_layer, before,
            clipped ? 1 : 0, decision.ring_slots, tracer->ReasonIndex(decision.reason));
}

// What there is after a step: the queue, KV, and what is short.
void EngineCore::TraceMemory() {
  const BlockCounts& blocks = memory_.blocks().counts();
  TraceEmit(TraceType::kQueue, 0, scheduler_.running(), scheduler_.waiting(), blocks.used,
            blocks.cached, blocks.free, blocks.capacity);
  if (!TraceEnabled(TraceType::kPressure)) return;
  const uint32_t free = memory_.pool().counts().free - memory_.pool().counts().committed;
  PressureLevel level = PressureLevel::kNone;
  if (blocks.free == 0) {
    level = free >= memory_.kv().geometry().granules_per_extent ? PressureLevel::kFreeGranules
            : blocks.cached > 0                                 ? PressureLevel::kCached
                                                                : PressureLevel::kFull;
  }
  if (level == traced_pressure_) return;
  traced_pressure_ = level;
  TraceEmit(TraceType::kPressure, static_cast<uint8_t>(level), level, free);
}

std::vector<CoreOutput> EngineCore::TakeOutputs() {
  return std::exchange(outputs_, {});
}

Status EngineCore::CheckIntegrity() {
  WEIR_TRY(memory_.CheckIntegrity());
  if (sequences_.empty() && memory_.blocks().counts().used != 0) {
    return BadState(std::to_string(memory_.blocks().counts().used) +
                    " KV blocks are used by nobody");
  }
  if (compute_.recordings() != 1) return BadState("a step was recorded twice (S1)");
  if (compute_.RecordedPointersDigest() != recorded_pointers_) {
    return BadState("a recorded pointer changed (S1)");
  }
  return OkStatus();
}

}  // namespace weir
